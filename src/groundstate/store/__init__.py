"""Connects to SQLite and PostgreSQL, and holds the locks that show which workers are alive: a port, and a driver for each."""
