"""Makes a label from a database's URL that tells it from other databases, without what is secret."""

from __future__ import annotations

from sqlalchemy import URL

TELLING = ("host", "port", "options")  # URL options that tell databases apart: several hosts; a search_path


def name_of(url: URL) -> str:
    """Return a database's URL as a label: without user, password and driver, and with only those options that tell databases apart."""
    told = {name: value for name, value in url.query.items() if name in TELLING}
    return URL.create(url.get_backend_name(), host=url.host, port=url.port, database=url.database, query=told).render_as_string()
