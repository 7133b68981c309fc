"""Connects to SQLite and PostgreSQL, and holds the locks that show which workers are alive: an interface, and its two implementations."""
