"""Exports metrics and traces of an app. Each tool that they are exported to has its own file."""
