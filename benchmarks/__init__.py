"""The benchmarks: they compare groundstate with the bare database driver and with a plain ORM loop. Run them by `python -m benchmarks`.

No benchmark asserts a time. Compare only the ratios within one run, and never figures of two machines or of two runs.
"""
