"""Holds the statements over the user's rows, and the transactions that they run in."""
