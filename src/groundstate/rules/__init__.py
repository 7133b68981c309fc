"""Decisions: pure functions and the values they take. No clock, no I/O, no await; time is an argument."""
