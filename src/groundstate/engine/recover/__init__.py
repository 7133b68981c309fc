"""Settles what a start, a dead worker, a restored database or a change of the clock leaves behind."""
