"""The search: which crash plans are tried, and which would only repeat a run that was tried."""
