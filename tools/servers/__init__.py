"""Real servers for tests, on loopback ports and in temporary folders of their own."""
