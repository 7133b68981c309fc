"""Exports metrics and traces of an app. The integration with each tool is in one file; no reaction is carried out here."""
