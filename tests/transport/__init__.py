"""Transports: one contract for all of them, and what is refused."""
