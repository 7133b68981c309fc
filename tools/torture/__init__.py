"""The torture run: real processes of a shop are killed, stopped, cut off and deployed while orders come in; ledgers provide the evidence.

`python -m tools.torture` runs it; begin reading at __main__.py. Production code never imports this package.
"""
