"""What tells one database from another by its URL, without what is secret."""

from __future__ import annotations

from sqlalchemy import URL

TELLING = ("host", "port", "options")  # several hosts; a search_path


def name_of(url: URL) -> str:
    """A database's URL as a label: without user, password and driver. Of its options those that tell one database from another."""
    told = {name: value for name, value in url.query.items() if name in TELLING}
    return URL.create(url.get_backend_name(), host=url.host, port=url.port, database=url.database, query=told).render_as_string()
