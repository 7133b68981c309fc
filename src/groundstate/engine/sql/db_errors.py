"""Tells errors of the database itself (connection, deadlock, disk) from errors of a record or its handler. Decides nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, InvalidRequestError, OperationalError, SQLAlchemyError, StatementError
from sqlalchemy.orm import Mapper

from groundstate.engine.sql.safe_text import describe, text_of
from groundstate.values.errors import GroundstateError, StateRefusedError, WentBackError

_STATES = ("40", "08", "53", "57")  # SQLSTATE classes: serialisation failure and deadlock, connection, resources, operator intervention
_DATA = ("22", "21000")  # data exceptions; more than one row from a subquery that must return one
_OF_A_VALUE = ("malformed JSON", "user-defined function raised exception", "string or blob too big", "integer overflow")  # SQLite
_ABORTED = "25P02"
_LOCK_NOT_AVAILABLE = "55P03"
_NO_TEXT = "22021"
_NO_COLUMN, _NO_TABLE = "42703", "42P01"
_OTHER_TYPE = ("42883", "42804")  # no operator or function for these types; a value of another type than the column's
_DENIED = "42501"
_NOT_SUPPORTED = "0A000"
_CANCELLED = "57014"
_TOO_MANY = "53300"
# A refused connection has no SQLSTATE, so these are texts of the server's English messages.
_FULL = ("too many clients", "too many connections", "remaining connection slots")
_NOT_UP = (
    "the database system is starting up",
    "the database system is shutting down",  # a restart: the server will soon accept connections again, or be down
    "the database system is not",
    "the database system is in recovery mode",
)
_SQLITE = ("database is locked", "disk is full", "disk I/O error", "database table is locked", "interrupted")


class Illegible(Exception):
    """A row of our tables holds something that groundstate never writes: it was edited. `corrupt_rows.mend` makes the row readable."""

    of_its_connection = True  # the cause may be a row factory that the user's code left on the connection


class TransactionEnded(StateRefusedError, InvalidRequestError):
    """The user's code ended our transaction in a way that could not be refused: what was written in it is committed, or is lost.

    who: the handler with the table of its record, where they are known. key: the key of that record, where it is known. error: the
    exception that the code raised.
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
    """A row that a handler changed in addition to its record's own."""

    mapper: Mapper[Any]
    identity: tuple[Any, ...]


class LostUpdate(Exception):
    """Another transaction wrote to rows that a handler has read and changed.

    Nothing was written; our transaction is repeated, and locks these rows first.
    """

    def __init__(self, rows: frozenset[Row]) -> None:
        super().__init__("rows beside the record were changed by somebody else since they were read: done again")
        self.rows = rows


class LockNotFree(Exception):
    """A worker incarnation lost its lock and cannot take it again: its old session is still open on the server, or another worker adopts
    it.
    """


class OtherServer(Exception):
    """A transaction runs on another server than the lock of this incarnation is on, or on the same server after a restart.

    After a failover or a restart the lock is gone, and commits may be lost. This incarnation must check for that before it does anything
    there.
    """


class LockSessionEnded(OtherServer):
    """A transaction runs on the server of before, and the session that had the lock of this incarnation has ended: a person or a pooler
    ended it, a backend crashed, or the network cut it.
    """


def unreadable(error: BaseException) -> bool:
    """Whether the values of fetched rows could not be converted. The server reported no error then, and the transaction is sound."""
    if isinstance(error, DataError):
        return getattr(error.orig, "sqlstate", None) is None
    if isinstance(error, OperationalError):
        return "decode" in text_of(error.orig)  # SQLite: a text that is not UTF-8
    return isinstance(error, ValueError | TypeError | LookupError | ArithmeticError)


def unloadable(error: BaseException) -> bool:
    """Whether a record of the user's could not be loaded. Its column types and load hooks may raise any exception."""
    return unreadable(error) or not isinstance(error, SQLAlchemyError | GroundstateError | LostUpdate | OtherServer | Illegible)


def refused_after_another(error: BaseException | None) -> bool:
    """Whether PostgreSQL refused a statement only because another one of its transaction had failed before it."""
    return getattr(getattr(error, "orig", error), "sqlstate", None) == _ABORTED


@contextmanager
def reading_ours() -> Iterator[None]:
    """Wrap statements that fetch rows of our tables: values that cannot be converted are raised as Illegible."""
    try:
        yield
    except Exception as error:
        if not unreadable(error):
            raise
        raise Illegible(f"a row of ours cannot be read: {text_of(error)}") from error


def of_a_value(error: BaseException | None) -> bool:
    """Whether a statement failed at a value in some row: text that is no number, text that is no JSON, or a division by zero."""
    if not isinstance(error, DBAPIError) or transient(error):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(state, str):
        return state.startswith(_DATA)
    return not hasattr(error.orig, "sqlstate") and any(words in text_of(error.orig) for words in _OF_A_VALUE)


def no_text(error: BaseException | None) -> bool:
    """Whether PostgreSQL could not send bytes in some row as UTF-8, as in a database of SQL_ASCII, which keeps any bytes."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == _NO_TEXT


def is_serialization_failure(error: BaseException) -> bool:
    """Whether this transaction was rolled back because of a deadlock, or because another one wrote to the same row at the same time."""
    return str(getattr(getattr(error, "orig", None), "sqlstate", None)).startswith("40")


def locked(error: BaseException) -> bool:
    """Whether another transaction kept a row's lock for longer than we wait (PostgreSQL)."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == _LOCK_NOT_AVAILABLE


NO_COLUMN = "this code knows a column that the table has not: run your migrations, or the code that fits the table"
NO_TABLE = "this code knows a table that is not there: run your migrations, or the code that fits the database"


OTHER_TYPE = "a column there has another type than this code says: run your migrations, or the code that fits the table"
NO_RIGHT = "grant it to the role that workers connect as"


class RowRewritten(WentBackError):
    """Another process wrote to the row of this worker incarnation, perhaps by a restore of data only.

    The next incarnation checks which attempts wait for a person.
    """


def undefined(error: BaseException) -> bool:
    """Whether a statement named a column or table that does not exist, or assumed another type for it.

    The code is then newer or older than the database.
    """
    return _lacked(error) is not None


def no_table(error: BaseException) -> bool:
    """Whether a statement named a table that does not exist."""
    return _lacked(error) == NO_TABLE


def denied(error: BaseException) -> bool:
    """Whether the role that we connect as lacks a right that the statement needs."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == _DENIED


def _lacked(error: BaseException) -> str | None:
    """Return the cure for a missing column or table, or a column of another type; None for any other error."""
    if not isinstance(error, DBAPIError):
        return None
    state, words = getattr(error.orig, "sqlstate", None), text_of(error.orig)
    if state == _NO_COLUMN or (state is None and "no such column" in words):
        return NO_COLUMN
    if state in _OTHER_TYPE:
        return OTHER_TYPE
    return NO_TABLE if state == _NO_TABLE or (state is None and "no such table" in words) else None


def unmade(error: BaseException) -> bool:
    """Return whether a statement could not be built, or its values could not be given to the driver, so that the database never received
    it.

    An answer that could not be read counts as well: the caller knows whose statement it was.
    """
    ours = DBAPIError | GroundstateError | LostUpdate | OtherServer | Illegible | LockNotFree
    return isinstance(error, Exception) and not isinstance(error, ours)


def is_its_own(error: BaseException) -> bool:
    """Return whether an error of a reaction's own statement concerns that reaction, and is no trouble of the database or of our tables."""
    return unmade(error) or (isinstance(error, DBAPIError) and not transient(error))


def _raised(error: BaseException) -> BaseException:
    """Return what a column type raised for a value, without SQLAlchemy's StatementError around it."""
    return error.orig or error if isinstance(error, StatementError) else error


def database_message(error: Exception) -> str:
    """Return the database's message without the statement that it is about; if the database never received it, what was raised."""
    if not isinstance(error, DBAPIError):
        return describe(_raised(error))
    lines = text_of(error.orig).strip().splitlines()
    if not lines:
        return type(error.orig).__name__
    at = _before_the_caret(lines) if getattr(error.orig, "sqlstate", None) in _OTHER_TYPE else None
    return lines[0] if at is None else f"{lines[0]} (at {at})"


def _before_the_caret(lines: Sequence[str]) -> str | None:
    """Return the expression that PostgreSQL's message points at: 'LINE 3: WHERE orders.status = ...', and a caret in the next line."""
    for line, next_ in itertools.pairwise(lines):
        words = line[: next_.find("^")].split() if next_.strip() == "^" else []
        if words:
            return words[-1].lstrip("(")
    return None


def server_is_full(error: BaseException) -> bool:
    """Whether the server accepts no further connection, or none for this role or database."""
    orig = getattr(error, "orig", None)
    return getattr(orig, "sqlstate", None) == _TOO_MANY or any(words in text_of(orig) for words in _FULL)


def coming_up(error: BaseException) -> bool:
    """Whether the server runs and says that it accepts no connections now, as during a restart."""
    return any(words in text_of(getattr(error, "orig", None)) for words in _NOT_UP)


FULL = (
    "the server takes no more connections: a worker needs two, for its work and for its lock, two more where hints go by PostgreSQL, and"
    " one for a moment at its start; raise max_connections (or the limit of the role, or of the database), end idle ones, or put a pooler"
    " before it (Store(direct=))"
)


SPACE = "free some space where the database lies, and try again: nothing is lost by it"
FILE_LOCKED = "another process, or another connection, keeps the file's write lock"
REPLANNED = "a table was altered beneath a prepared statement, as by a migration; the next try prepares it anew"
SILENT = "it is stopped, stuck on its disk, or behind what passes nothing on"
NO_SPACE = ("disk is full", "disk I/O error", "No space left")


def no_space(error: BaseException) -> bool:
    """Whether the disk of the database cannot be written to."""
    words = text_of(getattr(error, "orig", None))
    return any(one in words for one in NO_SPACE)


def file_locked(error: BaseException) -> bool:
    """Whether another connection kept the write lock of SQLite's file for longer than we wait."""
    return isinstance(error, DBAPIError) and "database is locked" in text_of(error.orig)


def server_did_not_answer(error: BaseException) -> bool:
    """Whether a server accepted the connection, or did not refuse it, and did not answer in time."""
    return isinstance(error, DBAPIError) and "connection timeout expired" in text_of(error.orig)


def error_in_one_line(error: BaseException) -> str:
    """Return a database error in one line, with the cure where one is known."""
    lacked = NO_RIGHT if denied(error) else _lacked(error)
    if isinstance(error, DBAPIError) and lacked is not None:
        return f"{database_message(error)}: {lacked}"
    named = error if isinstance(error, DBAPIError) else _raised(error)
    name, words = type(named).__name__, " ".join(text_of(getattr(error, "orig", error)).split())
    if replanned(error):
        return f"{name}: {words}: {REPLANNED}"
    if file_locked(error):
        return f"{name}: {words}: {FILE_LOCKED}"
    if no_space(error):
        return f"{name}: {words}; {SPACE}"
    if server_did_not_answer(error):
        return f"{name}: the server does not answer: {SILENT} ({words})"
    cure = f" ({FULL})" if server_is_full(error) else ""
    return f"{name}: {words}{cure}"


def by_statement(error: BaseException) -> bool:
    """Whether the connection goes through a pooler in statement mode, which has no transactions."""
    return isinstance(error, DBAPIError) and "statement pooling mode" in text_of(error.orig)


BY_STATEMENT = (
    "a pooler in statement mode is in between (pool_mode = statement), where there are no transactions: set pool_mode = session for this"
    " database, or pool_mode = transaction and give the store direct=, a URL past the pooler; or give it that URL alone"
)


def statement_was_cancelled(error: BaseException) -> bool:
    """Whether a statement was cancelled: by our timeout, by the server's limit, or by a person."""
    if not isinstance(error, DBAPIError):
        return False
    return getattr(error.orig, "sqlstate", None) == _CANCELLED or str(error.orig) == "interrupted"


def of_the_database(error: BaseException) -> bool:
    """Whether the database itself is in trouble, as with a full disk, and it is not only another transaction that keeps a lock."""
    others = is_serialization_failure(error) or locked(error) or file_locked(error) or statement_was_cancelled(error) or replanned(error)
    return isinstance(error, DBAPIError) and transient(error) and not others


def replanned(error: BaseException) -> bool:
    """Whether PostgreSQL refused a prepared statement once, since a table of it was altered. A rollback ends it, and prepares it anew."""
    orig = getattr(error, "orig", None)
    told_by = getattr(getattr(orig, "diag", None), "source_function", None)  # and not the message, which has the server's language
    return getattr(orig, "sqlstate", None) == _NOT_SUPPORTED and (told_by == "RevalidateCachedQuery" or "cached plan" in text_of(orig))


def transient(error: BaseException) -> bool:
    """Whether the error says nothing about the record: the same transaction may succeed later, or once our own rows are repaired."""
    if isinstance(error, Illegible | LockNotFree | OtherServer | LostUpdate):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(state, str):
        return state[:2] in _STATES or state == _LOCK_NOT_AVAILABLE or replanned(error)
    if any(words in text_of(error.orig) for words in _SQLITE):
        return True
    # Without a SQLSTATE psycopg raised the error, and not the server.
    return isinstance(error, OperationalError | InterfaceError) and hasattr(error.orig, "sqlstate")
