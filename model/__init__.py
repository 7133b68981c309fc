"""The protocol as a model for Spin, and the command that checks it: `python -m model`. See docs/model.md. Imports nothing of groundstate."""
