"""Telling the database's own trouble from what a record or its handler did. Decides nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError

_STATES = ("40", "08", "53", "57")  # serialisation and deadlock, connection, resources, operator intervention
_LOCK_NOT_AVAILABLE = "55P03"
_SQLITE = ("database is locked", "disk is full", "disk I/O error", "database table is locked")


class Illegible(Exception):
    """A row of our tables has something in it that nothing of ours writes: somebody edited it. `illegible.mend` makes it readable."""


def unreadable(error: BaseException) -> bool:
    """Whether what was fetched could not be turned into values: no word of the server's, and nothing wrong with the transaction."""
    if isinstance(error, DataError):
        return getattr(error.orig, "sqlstate", None) is None
    if isinstance(error, OperationalError):
        return "decode" in str(error.orig)  # SQLite: text that is no UTF-8
    return isinstance(error, ValueError | TypeError | LookupError | ArithmeticError)


@contextmanager
def reading_ours() -> Iterator[None]:
    """Around statements that fetch rows of our tables: what cannot be read in them is raised as Illegible."""
    try:
        yield
    except Exception as error:
        if not unreadable(error):
            raise
        raise Illegible(f"a row of ours cannot be read: {error}") from error


def locked(error: DBAPIError) -> bool:
    """Somebody else kept a row's lock for longer than we wait (PostgreSQL)."""
    return getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE


def transient(error: BaseException) -> bool:
    """What says nothing about the record: the same transaction may succeed a moment later, or once our own rows are mended."""
    if isinstance(error, Illegible):
        return True
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
