"""The store's drivers, against real databases."""
