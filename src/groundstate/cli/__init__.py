"""The command line: reads arguments, and prints text or JSON. The engine, not this package, decides about records and attempts."""
