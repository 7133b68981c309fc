"""The worker of one database: its start, the iterations of its loop, its pauses and its end."""
