"""The benchmark of timers: groundstate and its peers, each as its docs recommend, on one PostgreSQL. `python -m benchmarks.timers` runs it.

It measures how late timers are, also after a kill before their time, and the cost of a hundred thousand that wait. See docs/benchmarks.md.
"""
