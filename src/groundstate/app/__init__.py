"""What a user declares: stores, outsides, calls and reactions, checked where they are declared."""
