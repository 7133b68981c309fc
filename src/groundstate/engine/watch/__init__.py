"""Notices work (by hints, sweeps and timers), and keeps the work queue of each reaction."""
