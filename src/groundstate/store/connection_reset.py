"""Finds what user code left set on a connection of ours that goes back to the pool: it is restored, or the connection is discarded.

Each such setting is logged once. Nothing here queries the database: the drivers know their own factories, and psycopg what the server
reports.
"""

from __future__ import annotations

import logging
import sqlite3
import weakref
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

log = logging.getLogger("groundstate.store")

SET = "groundstate_set"  # key in a connection's info: settings that outlast the transaction which made them
_RESTING = "groundstate_resting"  # key in a connection's info: its state before the first transaction
_OF_SQLITE = ("row_factory", "text_factory")
_OF_PSYCOPG = ("row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold")
# Settings that a server reports whenever they change. A pooler in transaction mode keeps these for each client.
_REPORTED = ("client_encoding", "DateStyle", "IntervalStyle", "standard_conforming_strings", "TimeZone")
_READ_ONLY = "25006"
_NO_MORE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH)
_told: weakref.WeakKeyDictionary[Engine, set[str]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Resting:
    """Remembers a driver's connection as it was before any user code ran on it."""

    engine: Engine
    driver: Any
    factories: tuple[tuple[str, object], ...]
    reported: tuple[tuple[bytes, object], ...]

    def put_back(self) -> None:
        """Restore the factories that make the connection's cursors and rows, and log each that was changed."""
        for name, was in self.factories:
            if getattr(self.driver, name) is not was:
                setattr(self.driver, name, was)
                _tell(
                    self.engine, name, f"a handler left {name} of our driver connection changed, which is put back: give a cursor its own"
                )

    def differs(self) -> list[str]:
        """Return the settings that have changed, as far as the server reports them."""
        if not self.reported or self.driver.closed:
            return []
        status = self.driver.pgconn.parameter_status
        return [f"SET {name.decode().lower()}" for name, was in self.reported if status(name) != was]


def resting(connection: Connection) -> Resting:
    """Return the state that this connection had before its first transaction."""
    info = connection.info
    found: Resting | None = info.get(_RESTING)
    if found is None:
        driver: Any = connection.connection.driver_connection
        of_sqlite = isinstance(driver, sqlite3.Connection)
        factories = tuple((name, getattr(driver, name)) for name in (_OF_SQLITE if of_sqlite else _OF_PSYCOPG))
        names = [] if of_sqlite else [name.encode() for name in _REPORTED]
        found = Resting(connection.engine, driver, factories, tuple((name, driver.pgconn.parameter_status(name)) for name in names))
        info[_RESTING] = found
    return found


def has_leftover_settings(connection: Connection, failed: bool) -> bool:
    """Return whether a transaction left settings on its connection that cannot be restored; restore those that can.

    failed: whether the transaction was rolled back, which also undid the settings made in it.
    """
    if connection.invalidated:
        return False
    there = resting(connection)
    there.put_back()
    by_statement: set[str] = connection.info.pop(SET, set())
    left = {*there.differs(), *(() if failed else by_statement)}
    for setting in sorted(left):
        cure = "say SET LOCAL, which ends with the transaction" if setting.startswith("SET") else "leave it out"
        _tell(connection.engine, setting, f"a handler left {setting} on our connection, which is thrown away for that: {cure}")
    return bool(left)


def may_be_of_it(error: BaseException) -> bool:
    """Return whether settings left on its connection may be why a transaction failed. That may be so for an error of Python code, or a
    database error which says that writing is not permitted; not for other errors of the database, or ours about a record.
    """
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None)
        return not error.connection_invalidated and (state == _READ_ONLY or getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _NO_MORE)
    if isinstance(error, SQLAlchemyError) or type(error).__module__.startswith("groundstate."):
        return getattr(error, "of_its_connection", False)
    return isinstance(error, Exception)


def say_failed(error: BaseException) -> None:
    """Log that a connection is discarded, since user code may have left settings on it."""
    log.debug(
        "a transaction failed by %s: its connection is thrown away, since a handler may have left settings on it",
        type(error).__name__,
        extra={"event": "connection_renewed"},
    )


def _tell(engine: Engine, setting: str, words: str) -> None:
    told = _told.setdefault(engine, set())
    if setting not in told:
        told.add(setting)
        log.warning("%s", words, extra={"event": "setting_left", "setting": setting})
