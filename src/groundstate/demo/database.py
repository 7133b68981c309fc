"""The shop's database as everybody but the worker sees it: an ordinary engine, with the manners that SQLite needs for two writers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url


def engine(url: str) -> Engine:
    """An engine for the shop's database; PostgreSQL by psycopg 3, whatever driver the URL names."""
    address = make_url(url)
    if address.get_backend_name() == "postgresql":
        return create_engine(address.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    made = create_engine(address, connect_args={"timeout": 30})
    event.listen(made, "connect", _mind_the_other_writer)
    return made


def _mind_the_other_writer(connection: Any, _: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")  # readers and the writer do not wait for each other
    connection.execute("PRAGMA synchronous=FULL")  # an order that was accepted outlives a power cut
