"""Decides whether a connection of the user leads to the database of one of the app's stores.

Comparing URLs is not enough: a host can have several names, a pooler listens on another port, and the URL of an engine with a `creator=`
may be wrong. So PostgreSQL is asked for its start time and its database, and SQLite for the files that the connection has open.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import SQLAlchemyError

from groundstate.store.safe_name import label_of_url
from groundstate.store.sqlite import sqlite_path

if TYPE_CHECKING:
    from groundstate.store.port import Database

_ASK_POSTGRES = text("""
    SELECT pg_postmaster_start_time()::text, (SELECT oid::bigint FROM pg_database WHERE datname = current_database())
""")
_POSTGRES_PORT = 5432


class StoreLocation:
    """A StoreLocation tells whether URLs and connections lead to the database of one store.

    database: the store's database, if this process has opened it. If it is None, only URLs and file paths are compared, and no query is
    sent to PostgreSQL.
    """

    def __init__(self, url: URL, database: Database | None = None) -> None:
        self.backend = url.get_backend_name()
        self.name = _comparable_label(url)
        self._path = sqlite_path(url) if self.backend == "sqlite" else ""
        self._database = None if database is None else weakref.ref(database)
        # For each connection pool, whether it leads to the store's database. All connections of one pool lead to the same database.
        self._told: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()

    def is_at(self, url: URL) -> bool:
        """Return whether this URL surely leads to the store's database. No connection is made."""
        if url.get_backend_name() != self.backend:
            return False
        return _is_same_file(sqlite_path(url), self._path) if self.backend == "sqlite" else _comparable_label(url) == self.name

    def is_behind(self, connection: Connection) -> bool:
        """Return whether this connection leads to the store's database. The method may run a query on the connection.

        On PostgreSQL the query runs in a savepoint. Once the query has succeeded, its answer is kept for the connection's pool.
        """
        if connection.dialect.name != self.backend:
            return False
        if self.backend == "sqlite":
            return any(_is_same_file(path, self._path) for path in _paths_of_open_files(connection))
        if _comparable_label(connection.engine.url) == self.name:
            return True
        pool = connection.engine.pool
        if pool not in self._told:
            ours = self._identity_of_store()
            theirs = None if ours is None else _query_identity(connection)
            if ours is None or theirs is None:
                return False  # The answer is not known yet, so it is not kept: the next call queries again.
            self._told[pool] = ours == theirs
        return self._told[pool]

    def _identity_of_store(self) -> tuple[Any, ...] | None:
        database = None if self._database is None else self._database()
        if database is not None:
            # Every error is ignored, so that it does not make the user's session fail. The user's `creator=` may raise, for example.
            with suppress(Exception), database.reading() as connection:
                return tuple(connection.execute(_ASK_POSTGRES).one())
        return None


def _comparable_label(url: URL) -> str:
    if url.get_backend_name() != "postgresql":
        return label_of_url(url)
    database = url.database or url.username  # if the URL names no database, libpq uses the user name as the database name
    return label_of_url(url.set(port=url.port or _POSTGRES_PORT, database=database, host=url.host or None))


def _paths_of_open_files(connection: Connection) -> list[str]:
    """Return the paths of the database files that this connection has open, including attached files. A database in memory has none."""
    return [str(row[2]) for row in connection.exec_driver_sql("PRAGMA database_list") if row[2]]


def _is_same_file(path: str, other: str) -> bool:
    if os.path.realpath(path) == other:
        return True
    with suppress(OSError):  # raised if one of the files does not exist
        return Path(path).samefile(other)
    return False


def _query_identity(connection: Connection) -> tuple[Any, ...] | None:
    """Return a pair (server's start time, database's oid); None if the query fails. A savepoint protects the user's transaction."""
    try:
        point = connection.begin_nested()
    except SQLAlchemyError:
        point = None  # the connection is in autocommit mode, so there is no transaction to protect
    try:
        return tuple(connection.execute(_ASK_POSTGRES).one())
    except SQLAlchemyError:
        return None
    finally:
        if point is not None:
            with suppress(SQLAlchemyError):
                point.rollback()
