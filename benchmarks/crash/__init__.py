"""The same shop over groundstate and over its peers, killed by the same schedule: `python -m benchmarks.crash`.

Counts what was lost, doubled, stuck and unlisted, and measures no speed. See docs/crash-benchmark.md.
"""
