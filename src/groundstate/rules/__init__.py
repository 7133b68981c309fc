"""Holds the pure functions that make groundstate's decisions, and the values that these functions take.

The functions read no clock, do no I/O and await nothing; the time is an argument.
"""
