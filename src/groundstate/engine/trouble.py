"""Telling the database's own trouble from what a record or its handler did. Decides nothing else."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

_STATES = ("40", "08", "53", "57")  # serialisation and deadlock, connection, resources, operator intervention
_LOCK_NOT_AVAILABLE = "55P03"
_SQLITE = ("database is locked", "disk is full", "disk I/O error", "database table is locked")


def locked(error: DBAPIError) -> bool:
    """Somebody else kept a row's lock for longer than we wait (PostgreSQL)."""
    return getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE


def transient(error: BaseException) -> bool:
    """A database error that says nothing about the record: the same transaction may succeed a moment later."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(state, str):
        return state[:2] in _STATES or state == _LOCK_NOT_AVAILABLE
    if any(words in str(error.orig) for words in _SQLITE):
        return True
    return isinstance(error, OperationalError | InterfaceError) and hasattr(error.orig, "sqlstate")  # psycopg, without a server's word
