"""The SQLAlchemy engine with which every process but the worker opens the shop's database. On SQLite it has the settings that two writers
need.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url


def create_shop_engine(url: str) -> Engine:
    """Return an engine for the shop's database; for PostgreSQL the engine uses psycopg 3, even if the URL names another driver."""
    address = make_url(url)
    if address.get_backend_name() == "postgresql":
        return create_engine(address.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    made = create_engine(address, connect_args={"timeout": 30})
    event.listen(made, "connect", _set_sqlite_pragmas)
    return made


def _set_sqlite_pragmas(connection: Any, _: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")  # so that readers and the writer do not wait for each other
    connection.execute("PRAGMA synchronous=FULL")  # an accepted order must survive a power cut
