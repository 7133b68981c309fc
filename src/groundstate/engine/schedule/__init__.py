"""Schedules: carries out and reports the ticks (the planned times) of `app.every`."""
