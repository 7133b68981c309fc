"""What others may watch an app by: metrics and traces. Each guest stands in one file; nothing is carried out here."""
