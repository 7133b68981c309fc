"""Runs the handlers of a claimed batch, and applies outcomes to their records."""
