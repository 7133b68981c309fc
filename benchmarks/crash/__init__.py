"""The crash benchmark: the same shop over groundstate and over its peers, whose workers are killed by the same schedule.

`python -m benchmarks.crash` counts lost, doubled, stuck and unlisted orders; it measures no speed. See docs/crash-benchmark.md.
"""
