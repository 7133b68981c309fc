"""Databases and the locks that tell who is alive: a port, and its drivers for SQLite and PostgreSQL."""
