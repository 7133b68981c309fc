"""Makes a label from a database's URL that contains no secrets, and that tells the database from others."""

from __future__ import annotations

from sqlalchemy import URL

# query options of a URL that are kept in the label, since they can select another database: host and port (URLs with several hosts),
# options (such as search_path)
TELLING = ("host", "port", "options")


def label_of_url(url: URL) -> str:
    """Return a database's URL as a label: without user, password and driver, and with no options except TELLING."""
    told = {name: value for name, value in url.query.items() if name in TELLING}
    return URL.create(url.get_backend_name(), host=url.host, port=url.port, database=url.database, query=told).render_as_string()
