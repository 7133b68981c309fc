"""The protocol as a model for Spin, and the command that checks it, `python -m model`: see docs/model.md. It imports no groundstate."""
