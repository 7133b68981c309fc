"""The search: decides which schedules (the disturbances of one run) are tried, and which would only repeat an earlier run."""
