"""Holds pure functions that decide, and the values they take. They read no clock, do no I/O and await nothing; time is an argument."""
