"""The torture run: a shop of real processes that is killed, stopped, cut off and deployed while orders come in, with a ledger as the judge.

`python -m groundstate.testing.torture` runs it; __main__.py is where to begin reading. Nothing in production imports this.
"""
