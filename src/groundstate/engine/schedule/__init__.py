"""Schedules: the ticks of `app.every`."""
