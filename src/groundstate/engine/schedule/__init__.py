"""Carries out schedules (`app.every`), and reports on their ticks (the times at which they are to run)."""
