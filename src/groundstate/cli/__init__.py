"""The command line: arguments in, text or JSON out. Decides nothing about records and attempts; the engine does."""
