"""The verdict on a run: what must hold in every run, and what a handler must not reach."""
