"""Tells whether a connection of the user's leads to one of our stores: by its URL, or by what the database reports of itself.

A host can have several names, a pooler listens on another port, and an engine that connects by a function has no true URL at all. So
PostgreSQL is asked when its server started and which database this is; and SQLite, which files the connection has open.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import SQLAlchemyError

from groundstate.store.safe_name import name_of
from groundstate.store.sqlite import sqlite_path

if TYPE_CHECKING:
    from groundstate.store.port import Database

_ASK_POSTGRES = text("""
    SELECT pg_postmaster_start_time()::text, (SELECT oid::bigint FROM pg_database WHERE datname = current_database())
""")
_POSTGRES_PORT = 5432


class StoreLocation:
    """Identifies the database of one store. database: the opened store, where a worker of this process has it; only then can PostgreSQL be
    asked.
    """

    def __init__(self, url: URL, database: Database | None = None) -> None:
        self.backend = url.get_backend_name()
        self.name = _name(url)
        self._path = sqlite_path(url) if self.backend == "sqlite" else ""
        self._database = None if database is None else weakref.ref(database)
        # The key is an engine's pool, since one pool always leads to one database.
        self._told: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()

    def is_at(self, url: URL) -> bool:
        """Return whether this URL surely leads to the store's database. Connects to nothing."""
        if url.get_backend_name() != self.backend:
            return False
        return _same_file(sqlite_path(url), self._path) if self.backend == "sqlite" else _name(url) == self.name

    def is_behind(self, connection: Connection) -> bool:
        """Return whether this connection leads to the store's database. May run one query on it, in a savepoint; on PostgreSQL once for
        each engine.
        """
        if connection.dialect.name != self.backend:
            return False
        if self.backend == "sqlite":
            return any(_same_file(path, self._path) for path in _files(connection))
        if _name(connection.engine.url) == self.name:
            return True
        pool = connection.engine.pool
        if pool not in self._told:
            ours = self._ours()
            theirs = None if ours is None else _asked(connection)
            if ours is None or theirs is None:
                return False  # this is unknown just now, and asked again later
            self._told[pool] = ours == theirs
        return self._told[pool]

    def _ours(self) -> tuple[Any, ...] | None:
        database = None if self._database is None else self._database()
        if database is not None:
            # Whatever keeps it from being asked, such as a `creator=` that raises: a session that asks must not fail for that.
            with suppress(Exception), database.reading() as connection:
                return tuple(connection.execute(_ASK_POSTGRES).one())
        return None


def _name(url: URL) -> str:
    if url.get_backend_name() != "postgresql":
        return name_of(url)
    database = url.database or url.username  # libpq's default is the user's name
    return name_of(url.set(port=url.port or _POSTGRES_PORT, database=database, host=url.host or None))


def _files(connection: Connection) -> list[str]:
    """Return every file of this connection, attached ones included; a database in memory has none."""
    return [str(row[2]) for row in connection.exec_driver_sql("PRAGMA database_list") if row[2]]


def _same_file(path: str, other: str) -> bool:
    if os.path.realpath(path) == other:
        return True
    with suppress(OSError):  # one of the files does not exist
        return Path(path).samefile(other)
    return False


def _asked(connection: Connection) -> tuple[Any, ...] | None:
    """Return what PostgreSQL reports of itself, or None where it does not answer. A savepoint keeps a failure from ending the user's
    transaction.
    """
    try:
        point = connection.begin_nested()
    except SQLAlchemyError:
        point = None  # this connection is in autocommit mode, and has no transaction
    try:
        return tuple(connection.execute(_ASK_POSTGRES).one())
    except SQLAlchemyError:
        return None
    finally:
        if point is not None:
            with suppress(SQLAlchemyError):
                point.rollback()
