"""The verdict on a run: what must hold in every run, and which actions of a handler are forbidden."""
