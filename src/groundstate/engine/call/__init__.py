"""Makes calls to external services: begins them, runs them and applies their results."""
