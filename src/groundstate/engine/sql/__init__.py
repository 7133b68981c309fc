"""Builds and runs the statements over the user's rows, in groundstate's own transactions."""
