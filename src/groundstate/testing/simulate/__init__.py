"""Simulates one run: its processes, threads, clocks, databases and external services, and what happens at each crossing."""
