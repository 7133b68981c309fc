"""Timers of groundstate and of its peers, each as its docs recommend, on one PostgreSQL: `python -m benchmarks.timers`.

How late they are, what a kill before their time does to them, and what a hundred thousand that wait cost. See docs/benchmarks.md.
"""
