"""What a user declares: stores, external services, calls and reactions. Each declaration is checked when it is made."""
