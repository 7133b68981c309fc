"""How quick groundstate is beside the bare driver and a plain ORM loop on the same machine in the same run: `python -m benchmarks`.

Asserts no time. Figures of two machines, or of two runs, are not to be compared; the ratios within one run are.
"""
