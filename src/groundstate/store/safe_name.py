"""Makes a label from the URL of a database. The label contains no secrets, and shows which database the URL leads to."""

from __future__ import annotations

from sqlalchemy import URL

# The query options of a URL that the label keeps, since they can select another database. A URL with several hosts has `host` and `port`
# as query options. The option `options` can set the search_path, for example.
TELLING = ("host", "port", "options")


def label_of_url(url: URL) -> str:
    """Return a database's URL as a label: without user, password and driver, and without the query options that are not in TELLING."""
    told = {name: value for name, value in url.query.items() if name in TELLING}
    return URL.create(url.get_backend_name(), host=url.host, port=url.port, database=url.database, query=told).render_as_string()
