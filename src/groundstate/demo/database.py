"""The engine of the shop's database for every process but the worker, with the settings that SQLite needs for two writers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url


def engine(url: str) -> Engine:
    """Return an engine for the shop's database; for PostgreSQL it uses psycopg 3, whatever driver the URL names."""
    address = make_url(url)
    if address.get_backend_name() == "postgresql":
        return create_engine(address.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    made = create_engine(address, connect_args={"timeout": 30})
    event.listen(made, "connect", _mind_the_other_writer)
    return made


def _mind_the_other_writer(connection: Any, _: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")  # readers and the writer do not wait for each other
    connection.execute("PRAGMA synchronous=FULL")  # an accepted order must survive a power cut
