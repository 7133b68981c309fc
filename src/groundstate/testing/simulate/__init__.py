"""One simulated run: its processes, threads, clocks, databases and external services, and what happens at each crash point."""
