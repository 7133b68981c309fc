"""Finds settings that user code left changed on one of groundstate's connections, and restores them. If that is impossible, the caller must
discard the connection.

Each changed setting is logged once. Nothing here queries the database: the settings are read from the driver's connection, which for
psycopg also has the settings that the server reports.
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

SET = "groundstate_set"  # key in a connection's info for the settings that statements changed for longer than their transaction
_RESTING = "groundstate_resting"  # key in a connection's info for its InitialState
_OF_SQLITE = ("row_factory", "text_factory")
_OF_PSYCOPG = ("row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold")
# Names of settings that a server reports whenever they change. A pooler in transaction mode keeps their values for each client.
_REPORTED = ("client_encoding", "DateStyle", "IntervalStyle", "standard_conforming_strings", "TimeZone")
_READ_ONLY = "25006"
_NO_MORE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH)
_told: weakref.WeakKeyDictionary[Engine, set[str]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class InitialState:
    """An InitialState holds the settings of a driver's connection as they were before any user code ran on the connection."""

    engine: Engine
    driver: Any
    factories: tuple[tuple[str, object], ...]
    reported: tuple[tuple[bytes, object], ...]

    def restore_factories(self) -> None:
        """Restore the attributes of the driver's connection that user code changed, such as row_factory, and log each changed one once."""
        for name, was in self.factories:
            if getattr(self.driver, name) is not was:
                setattr(self.driver, name, was)
                _warn_once(
                    self.engine,
                    name,
                    f"a handler left {name} of our driver connection changed; it was restored: set it on a cursor instead",
                )

    def changed_settings(self) -> list[str]:
        """Return the settings that changed since this state was recorded, each as 'SET name'. Only settings that the server reports are
        found.
        """
        if not self.reported or self.driver.closed:
            return []
        status = self.driver.pgconn.parameter_status
        return [f"SET {name.decode().lower()}" for name, was in self.reported if status(name) != was]


def initial_state(connection: Connection) -> InitialState:
    """Return the InitialState of this connection, and record it at the first call, which must come before the first transaction."""
    info = connection.info
    found: InitialState | None = info.get(_RESTING)
    if found is None:
        driver: Any = connection.connection.driver_connection
        of_sqlite = isinstance(driver, sqlite3.Connection)
        factories = tuple((name, getattr(driver, name)) for name in (_OF_SQLITE if of_sqlite else _OF_PSYCOPG))
        names = [] if of_sqlite else [name.encode() for name in _REPORTED]
        found = InitialState(connection.engine, driver, factories, tuple((name, driver.pgconn.parameter_status(name)) for name in names))
        info[_RESTING] = found
    return found


def has_leftover_settings(connection: Connection, failed: bool) -> bool:
    """Restore the settings that a transaction left changed on its connection, and return whether some of them could not be restored.

    failed: whether the transaction was rolled back, so that its SET statements are undone already.
    """
    if connection.invalidated:
        return False
    there = initial_state(connection)
    there.restore_factories()
    by_statement: set[str] = connection.info.pop(SET, set())
    left = {*there.changed_settings(), *(() if failed else by_statement)}
    for setting in sorted(left):
        cure = "use SET LOCAL, which ends with the transaction" if setting.startswith("SET") else "leave it out"
        _warn_once(connection.engine, setting, f"a handler left {setting} on our connection, which is discarded for that: {cure}")
    return bool(left)


def may_be_due_to_settings(error: BaseException) -> bool:
    """Return whether a transaction may have failed with this error because of settings that were left on its connection.

    That is possible for an error of Python code, and for a database error which says that writing is not permitted. Other errors of the
    database, and most of groundstate's own errors, have other causes.
    """
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None)
        return not error.connection_invalidated and (state == _READ_ONLY or getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _NO_MORE)
    if isinstance(error, SQLAlchemyError) or type(error).__module__.startswith("groundstate."):
        return getattr(error, "of_its_connection", False)
    return isinstance(error, Exception)


def log_discarded_connection(error: BaseException) -> None:
    """Log that a connection is discarded after this error, since user code may have left settings on the connection."""
    log.debug(
        "a transaction failed with %s: its connection is discarded, since a handler may have left settings on it",
        type(error).__name__,
        extra={"event": "connection_renewed"},
    )


def _warn_once(engine: Engine, setting: str, words: str) -> None:
    told = _told.setdefault(engine, set())
    if setting not in told:
        told.add(setting)
        log.warning("%s", words, extra={"event": "setting_left", "setting": setting})
