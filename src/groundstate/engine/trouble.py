"""Telling the database's own trouble from what a record or its handler did. Decides nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Mapper

from groundstate.values.errors import WentBack

_STATES = ("40", "08", "53", "57")  # serialisation and deadlock, connection, resources, operator intervention
_LOCK_NOT_AVAILABLE = "55P03"
_NO_COLUMN, _NO_TABLE = "42703", "42P01"
_TOO_MANY = "53300"
# A refused connection comes without a state: the server's words, as they are in English.
_FULL = ("too many clients", "too many connections", "remaining connection slots")
_NOT_UP = ("the database system is starting up", "the database system is not", "the database system is in recovery mode")
_SQLITE = ("database is locked", "disk is full", "disk I/O error", "database table is locked")


class Illegible(Exception):
    """A row of our tables has something in it that nothing of ours writes: somebody edited it. `illegible.mend` makes it readable."""


class Row(NamedTuple):
    """A row beside the record that a handler changed."""

    mapper: Mapper[Any]
    identity: tuple[Any, ...]


class LostUpdate(Exception):
    """Somebody else wrote to rows that a handler read and changed: nothing was written, and it is done again with these locked first."""

    def __init__(self, rows: frozenset[Row]) -> None:
        super().__init__("rows beside the record were changed by somebody else since they were read: done again")
        self.rows = rows


class OtherServer(Exception):
    """A transaction runs on another server than the lock of this life is on, or on the same one after it was started anew.

    A failover, or a restart: that lock is gone, and commits may be. Nothing of this life may go on there before it is looked back.
    """


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


def crossed(error: BaseException) -> bool:
    """Whether this transaction and another one wait for each other, or came to one row at once: it is rolled back."""
    return str(getattr(getattr(error, "orig", None), "sqlstate", None)).startswith("40")


def locked(error: BaseException) -> bool:
    """Somebody else kept a row's lock for longer than we wait (PostgreSQL)."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == _LOCK_NOT_AVAILABLE


NO_COLUMN = "this code knows a column that the table has not: run your migrations, or the code that fits the table"
NO_TABLE = "this code knows a table that is not there: run your migrations, or the code that fits the database"


class RowRewritten(WentBack):
    """The row of this life was written by somebody else: perhaps by a restore of data alone. The next life looks who waits for a person."""


def undefined(error: BaseException) -> bool:
    """Whether a statement named a column or a table that is not there: the code is newer, or older, than the database."""
    return _lacked(error) is not None


def _lacked(error: BaseException) -> str | None:
    """The cure of it; None where that is not what was met."""
    if not isinstance(error, DBAPIError):
        return None
    state, words = getattr(error.orig, "sqlstate", None), str(error.orig)
    if state == _NO_COLUMN or (state is None and "no such column" in words):
        return NO_COLUMN
    return NO_TABLE if state == _NO_TABLE or (state is None and "no such table" in words) else None


def said(error: DBAPIError) -> str:
    """What the database said, without the statement that it said it of."""
    lines = str(error.orig).strip().splitlines()
    return lines[0] if lines else type(error.orig).__name__


def full(error: BaseException) -> bool:
    """Whether the server takes no further connection, or none of this role or to this database."""
    orig = getattr(error, "orig", None)
    return getattr(orig, "sqlstate", None) == _TOO_MANY or any(words in str(orig) for words in _FULL)


def coming_up(error: BaseException) -> bool:
    """Whether the server is there and says that it is about to take connections."""
    return any(words in str(getattr(error, "orig", None)) for words in _NOT_UP)


FULL = (
    "the server takes no more connections: a worker needs two, for its work and for its lock, two more where hints go by PostgreSQL, and"
    " one for a moment at its start; raise max_connections (or the limit of the role, or of the database), end idle ones, or put a pooler"
    " before it (Store(direct=))"
)


def told(error: BaseException) -> str:
    """An error of the database in one line, with the cure where one is known."""
    if isinstance(error, DBAPIError) and (lacked := _lacked(error)) is not None:
        return f"{said(error)}: {lacked}"
    name, words = type(error).__name__, " ".join(str(getattr(error, "orig", error)).split())
    cure = f" ({FULL})" if full(error) else ""
    return f"{name}: {words}{cure}"


def transient(error: BaseException) -> bool:
    """What says nothing about the record: the same transaction may succeed a moment later, or once our own rows are mended."""
    if isinstance(error, Illegible | OtherServer | LostUpdate):
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
