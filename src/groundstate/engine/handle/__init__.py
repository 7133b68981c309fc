"""Runs the handlers of a batch of locked records, and writes the outcomes of calls into their records."""
