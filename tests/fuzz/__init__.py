"""Nonsense from every side: arguments, JSON, hints, our own rows, files and schemas. It is answered in words, and nothing is lost.

The suite runs a short form. `GROUNDSTATE_FUZZ=50 pytest tests/fuzz` makes fifty times as many examples, other ones each time.
"""
