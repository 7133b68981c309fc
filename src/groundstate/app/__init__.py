"""What a user declares: stores, external services, calls and reactions. Each is checked where it is declared."""
