"""The command line: arguments in, text or JSON out. The engine, not this package, decides about records and attempts."""
