"""Telling the database's own trouble from what a record or its handler did. Decides nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, InvalidRequestError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Mapper

from groundstate.engine.guarded import text_of
from groundstate.values.errors import GroundstateError, StateRefused, WentBack

_STATES = ("40", "08", "53", "57")  # serialisation and deadlock, connection, resources, operator intervention
_DATA = ("22", "21000")  # the class of data exceptions; more than one row of a subquery that is to give one
_OF_A_VALUE = ("malformed JSON", "user-defined function raised exception", "string or blob too big", "integer overflow")  # SQLite
_LOCK_NOT_AVAILABLE = "55P03"
_NO_COLUMN, _NO_TABLE = "42703", "42P01"
_OTHER_TYPE = ("42883", "42804")  # no such operator or function for these types; a value of another type than the column's
_DENIED = "42501"
_CANCELLED = "57014"
_TOO_MANY = "53300"
# A refused connection comes without a state: the server's words, as they are in English.
_FULL = ("too many clients", "too many connections", "remaining connection slots")
_NOT_UP = (
    "the database system is starting up",
    "the database system is shutting down",  # a restart: it is about to take connections again, or to be down
    "the database system is not",
    "the database system is in recovery mode",
)
_SQLITE = ("database is locked", "disk is full", "disk I/O error", "database table is locked", "interrupted")


class Illegible(Exception):
    """A row of our tables has something in it that nothing of ours writes: somebody edited it. `illegible.mend` makes it readable."""

    of_its_connection = True  # or somebody left on the connection how rows are read


class TransactionEnded(StateRefused, InvalidRequestError):
    """Somebody's code ended our transaction in a way that could not be refused: what was written in it is kept, or is gone.

    who: the handler with the table of its record, where they are known. key: of that record, likewise. error: what came out of it.
    """

    of_its_connection = True

    def __init__(self, who: str = "a handler", key: tuple[Any, ...] | None = None, error: BaseException | None = None) -> None:
        record = "" if key is None else f" {', '.join(map(str, key))}"
        raised = "" if error is None else f"; and this was raised: {text_of(error)}"
        super().__init__(
            f"{who}{record} ended our transaction past its session, which cannot be undone: what was written before is kept, or is gone."
            f" Let it return, or raise what went wrong, and send neither COMMIT nor ROLLBACK{raised}"
        )
        self.key = key


class Row(NamedTuple):
    """A row beside the record that a handler changed."""

    mapper: Mapper[Any]
    identity: tuple[Any, ...]


class LostUpdate(Exception):
    """Somebody else wrote to rows that a handler read and changed: nothing was written, and it is done again with these locked first."""

    def __init__(self, rows: frozenset[Row]) -> None:
        super().__init__("rows beside the record were changed by somebody else since they were read: done again")
        self.rows = rows


class LockNotFree(Exception):
    """The lock of a life that lost it is not free: its own session has not ended yet there, or somebody adopts that life."""


class OtherServer(Exception):
    """A transaction runs on another server than the lock of this life is on, or on the same one after it was started anew.

    A failover, or a restart: that lock is gone, and commits may be. Nothing of this life may go on there before it is looked back.
    """


def unreadable(error: BaseException) -> bool:
    """Whether what was fetched could not be turned into values: no word of the server's, and nothing wrong with the transaction."""
    if isinstance(error, DataError):
        return getattr(error.orig, "sqlstate", None) is None
    if isinstance(error, OperationalError):
        return "decode" in text_of(error.orig)  # SQLite: text that is no UTF-8
    return isinstance(error, ValueError | TypeError | LookupError | ArithmeticError)


def unloadable(error: BaseException) -> bool:
    """The same of a record of the user's, whose types and hooks may raise anything."""
    return unreadable(error) or not isinstance(error, SQLAlchemyError | GroundstateError | LostUpdate | OtherServer | Illegible)


@contextmanager
def reading_ours() -> Iterator[None]:
    """Around statements that fetch rows of our tables: what cannot be read in them is raised as Illegible."""
    try:
        yield
    except Exception as error:
        if not unreadable(error):
            raise
        raise Illegible(f"a row of ours cannot be read: {text_of(error)}") from error


def of_a_value(error: BaseException | None) -> bool:
    """Whether a statement met a value in some row that cannot be computed with: text that is no number, or no JSON, a division by zero."""
    if not isinstance(error, DBAPIError) or transient(error):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(state, str):
        return state.startswith(_DATA)
    return not hasattr(error.orig, "sqlstate") and any(words in text_of(error.orig) for words in _OF_A_VALUE)


def crossed(error: BaseException) -> bool:
    """Whether this transaction and another one wait for each other, or came to one row at once: it is rolled back."""
    return str(getattr(getattr(error, "orig", None), "sqlstate", None)).startswith("40")


def locked(error: BaseException) -> bool:
    """Somebody else kept a row's lock for longer than we wait (PostgreSQL)."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == _LOCK_NOT_AVAILABLE


NO_COLUMN = "this code knows a column that the table has not: run your migrations, or the code that fits the table"
NO_TABLE = "this code knows a table that is not there: run your migrations, or the code that fits the database"


OTHER_TYPE = "a column there has another type than this code says: run your migrations, or the code that fits the table"
NO_RIGHT = "grant it to the role that workers connect as"


class RowRewritten(WentBack):
    """The row of this life was written by somebody else: perhaps by a restore of data alone. The next life looks who waits for a person."""


def undefined(error: BaseException) -> bool:
    """Whether a statement named a column or a table that is not there, or took it for another type: the code is newer, or older, than the
    database.
    """
    return _lacked(error) is not None


def no_table(error: BaseException) -> bool:
    """Whether a statement named a table that is not there."""
    return _lacked(error) == NO_TABLE


def denied(error: BaseException) -> bool:
    """Whether this role has no right to what a statement did."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == _DENIED


def _lacked(error: BaseException) -> str | None:
    """The cure of it; None where that is not what was met."""
    if not isinstance(error, DBAPIError):
        return None
    state, words = getattr(error.orig, "sqlstate", None), text_of(error.orig)
    if state == _NO_COLUMN or (state is None and "no such column" in words):
        return NO_COLUMN
    if state in _OTHER_TYPE:
        return OTHER_TYPE
    return NO_TABLE if state == _NO_TABLE or (state is None and "no such table" in words) else None


def said(error: DBAPIError) -> str:
    """What the database said, without the statement that it said it of."""
    lines = text_of(error.orig).strip().splitlines()
    if not lines:
        return type(error.orig).__name__
    at = _before_the_caret(lines) if getattr(error.orig, "sqlstate", None) in _OTHER_TYPE else None
    return lines[0] if at is None else f"{lines[0]} (at {at})"


def _before_the_caret(lines: Sequence[str]) -> str | None:
    """What the server points at: 'LINE 3: WHERE orders.status = ...', and in the next line a caret under the operator."""
    for line, next_ in itertools.pairwise(lines):
        words = line[: next_.find("^")].split() if next_.strip() == "^" else []
        if words:
            return words[-1].lstrip("(")
    return None


def full(error: BaseException) -> bool:
    """Whether the server takes no further connection, or none of this role or to this database."""
    orig = getattr(error, "orig", None)
    return getattr(orig, "sqlstate", None) == _TOO_MANY or any(words in text_of(orig) for words in _FULL)


def coming_up(error: BaseException) -> bool:
    """Whether the server is there and says that it takes no connections just now, as it does while it is restarted."""
    return any(words in text_of(getattr(error, "orig", None)) for words in _NOT_UP)


FULL = (
    "the server takes no more connections: a worker needs two, for its work and for its lock, two more where hints go by PostgreSQL, and"
    " one for a moment at its start; raise max_connections (or the limit of the role, or of the database), end idle ones, or put a pooler"
    " before it (Store(direct=))"
)


SPACE = "free some space where the database lies, and try again: nothing is lost by it"
FILE_LOCKED = "another process, or another connection, keeps the file's write lock"
SILENT = "it is stopped, stuck on its disk, or behind what passes nothing on"
NO_SPACE = ("disk is full", "disk I/O error", "No space left")


def no_space(error: BaseException) -> bool:
    """Whether nothing can be written where the database lies."""
    words = text_of(getattr(error, "orig", None))
    return any(one in words for one in NO_SPACE)


def file_locked(error: BaseException) -> bool:
    """Whether somebody else kept the write lock of SQLite's file for longer than we wait."""
    return isinstance(error, DBAPIError) and "database is locked" in text_of(error.orig)


def silent(error: BaseException) -> bool:
    """Whether a server took a connection, or lies where one is sent, and did not answer in time: of which it said nothing."""
    return isinstance(error, DBAPIError) and "connection timeout expired" in text_of(error.orig)


def told(error: BaseException) -> str:
    """An error of the database in one line, with the cure where one is known."""
    lacked = NO_RIGHT if denied(error) else _lacked(error)
    if isinstance(error, DBAPIError) and lacked is not None:
        return f"{said(error)}: {lacked}"
    name, words = type(error).__name__, " ".join(text_of(getattr(error, "orig", error)).split())
    if file_locked(error):
        return f"{name}: {words}: {FILE_LOCKED}"
    if no_space(error):
        return f"{name}: {words}; {SPACE}"
    if silent(error):
        return f"{name}: the server does not answer: {SILENT} ({words})"
    cure = f" ({FULL})" if full(error) else ""
    return f"{name}: {words}{cure}"


def by_statement(error: BaseException) -> bool:
    """Whether a pooler in statement mode is in between, where there are no transactions."""
    return isinstance(error, DBAPIError) and "statement pooling mode" in text_of(error.orig)


BY_STATEMENT = (
    "a pooler in statement mode is in between (pool_mode = statement), where there are no transactions: set pool_mode = session for this"
    " database, or pool_mode = transaction and give the store direct=, a URL past the pooler; or give it that URL alone"
)


def cut(error: BaseException) -> bool:
    """Whether a statement was cancelled because it took too long, by us, by the server's limit, or by a person."""
    if not isinstance(error, DBAPIError):
        return False
    return getattr(error.orig, "sqlstate", None) == _CANCELLED or str(error.orig) == "interrupted"


def transient(error: BaseException) -> bool:
    """What says nothing about the record: the same transaction may succeed a moment later, or once our own rows are mended."""
    if isinstance(error, Illegible | LockNotFree | OtherServer | LostUpdate):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(state, str):
        return state[:2] in _STATES or state == _LOCK_NOT_AVAILABLE
    if any(words in text_of(error.orig) for words in _SQLITE):
        return True
    return isinstance(error, OperationalError | InterfaceError) and hasattr(error.orig, "sqlstate")  # psycopg, without a server's word
