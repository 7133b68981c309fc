"""Plain values that every other layer uses: errors, answers of calls, keys and their texts. Imports no other layer of groundstate."""
