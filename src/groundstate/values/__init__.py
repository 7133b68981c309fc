"""Defines plain values that every other layer uses: errors, answers, times and keys. It imports nothing else of groundstate."""
