"""Tells errors of the database itself (connection, deadlock, full disk) from errors caused by a record or by its handler."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, InvalidRequestError, OperationalError, SQLAlchemyError, StatementError
from sqlalchemy.orm import Mapper

from groundstate.engine.sql.safe_text import describe_exception, safe_str
from groundstate.values.errors import GroundstateError, StateRefusedError, WentBackError

_STATES = ("40", "08", "53", "57")  # SQLSTATE classes: serialisation failures and deadlocks, connection, resources, operator intervention
_DATA = ("22", "21000")  # SQLSTATEs: data exceptions, and a subquery that returned several rows where one is allowed
_OF_A_VALUE = ("malformed JSON", "user-defined function raised exception", "string or blob too big", "integer overflow")  # SQLite
_ABORTED = "25P02"
_LOCK_NOT_AVAILABLE = "55P03"
_NO_TEXT = "22021"
_NO_COLUMN, _NO_TABLE = "42703", "42P01"
_OTHER_TYPE = ("42883", "42804")  # SQLSTATEs: no operator or function for these types; a value of another type than its column
_DENIED = "42501"
_NOT_SUPPORTED = "0A000"
_CANCELLED = "57014"
_TOO_MANY = "53300"
# The error of a refused connection has no SQLSTATE, so these are parts of the server's English messages.
_FULL = ("too many clients", "too many connections", "remaining connection slots")
_NOT_UP = (
    "the database system is starting up",
    "the database system is shutting down",  # after a restart the server accepts connections again; otherwise it is down soon
    "the database system is not",
    "the database system is in recovery mode",
)
_SQLITE = ("database is locked", "disk is full", "disk I/O error", "database table is locked", "interrupted")


class Illegible(Exception):
    """A row of groundstate's own tables holds something that groundstate never writes, so a person edited it.
    `corrupt_rows.mend_unreadable_rows` repairs the row.
    """

    of_its_connection = True  # the cause may be a row factory that the user's code set on the connection


class TransactionEnded(StateRefusedError, InvalidRequestError):
    """The user's code ended groundstate's transaction in a way that could not be refused: what was written in it is committed, or is lost.

    who: The handler with the table of its record, if they are known. key: The key of that record; None if it is not known. error: The
        exception that the user's code raised; None if it raised none.
    """

    of_its_connection = True

    def __init__(self, who: str = "a handler", key: tuple[Any, ...] | None = None, error: BaseException | None = None) -> None:
        record = "" if key is None else f" {', '.join(map(str, key))}"
        raised = "" if error is None else f"; and this was raised: {safe_str(error)}"
        super().__init__(
            f"{who}{record} ended our transaction past its session, which cannot be undone: what was written before is either"
            f" committed or lost. Let the handler return, or raise an exception, and send neither COMMIT nor ROLLBACK{raised}"
        )
        self.key = key


class RelatedRow(NamedTuple):
    """A row that a handler changed in addition to its record's own row."""

    mapper: Mapper[Any]
    identity: tuple[Any, ...]


class LostUpdate(Exception):
    """Another transaction wrote to rows after a handler of this transaction had read them, and the handler has changed them too.

    No change of this transaction is kept: it is rolled back and run again. When it runs again, it locks these rows first.
    """

    def __init__(self, rows: frozenset[RelatedRow]) -> None:
        super().__init__("another transaction changed other rows that a handler had read: the transaction is repeated")
        self.rows = rows


class LockNotFree(Exception):
    """A worker lost the lock that shows that it is alive, and cannot take it again: its old session is still open on the server, or another
    worker takes over its attempts.
    """


class OtherServer(Exception):
    """A transaction runs on another server than the one with this worker's lock, or on the same server after a restart.

    After a failover or a restart the lock is gone, and the last commits may be lost. The worker must check for lost commits before it does
    anything else.
    """


class LockSessionEnded(OtherServer):
    """The session with this worker's lock has ended, while the server is the same as before: a person or a pooler ended the session, a
    backend crashed, or the network cut the connection.
    """


def is_conversion_error(error: BaseException) -> bool:
    """Return whether the error says that values of fetched rows could not be converted to Python. The server reported no error then, so the
    transaction is still usable.
    """
    if isinstance(error, DataError):
        return getattr(error.orig, "sqlstate", None) is None
    if isinstance(error, OperationalError):
        return "decode" in safe_str(error.orig)  # SQLite reports a text that is not UTF-8
    return isinstance(error, ValueError | TypeError | LookupError | ArithmeticError)


def is_record_load_error(error: BaseException) -> bool:
    """Return whether the error says that a user's record could not be loaded. The user's column types and load hooks may raise any
    exception.
    """
    return is_conversion_error(error) or not isinstance(error, SQLAlchemyError | GroundstateError | LostUpdate | OtherServer | Illegible)


def is_refusal_after_failure(error: BaseException | None) -> bool:
    """Return whether PostgreSQL refused a statement only because an earlier statement of the same transaction had failed."""
    return getattr(getattr(error, "orig", error), "sqlstate", None) == _ABORTED


@contextmanager
def reading_own_rows() -> Iterator[None]:
    """Wrap statements that fetch rows of groundstate's own tables: if a value cannot be converted, Illegible is raised."""
    try:
        yield
    except Exception as error:
        if not is_conversion_error(error):
            raise
        raise Illegible(f"a row of ours cannot be read: {safe_str(error)}") from error


def is_caused_by_value(error: BaseException | None) -> bool:
    """Return whether a statement failed because of a value in some row: text that is no number or no JSON, or a division by zero."""
    if not isinstance(error, DBAPIError) or is_no_fault_of_record(error):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(state, str):
        return state.startswith(_DATA)
    return not hasattr(error.orig, "sqlstate") and any(words in safe_str(error.orig) for words in _OF_A_VALUE)


def is_text_encoding_error(error: BaseException | None) -> bool:
    """Return whether PostgreSQL could not send stored bytes as UTF-8. A database with the encoding SQL_ASCII may store any bytes."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == _NO_TEXT


def is_serialization_failure(error: BaseException) -> bool:
    """Return whether the transaction was rolled back because of a deadlock, or because another transaction wrote to the same row at the
    same time.
    """
    return str(getattr(getattr(error, "orig", None), "sqlstate", None)).startswith("40")


def is_lock_timeout(error: BaseException) -> bool:
    """Return whether another transaction kept a row locked for longer than groundstate's lock timeout (PostgreSQL)."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == _LOCK_NOT_AVAILABLE


NO_COLUMN = "the table lacks a column that this code needs: run your migrations, or run the code that fits the table"
NO_TABLE = "the database lacks a table that this code needs: run your migrations, or run the code that fits the database"


OTHER_TYPE = "a column has another type in the table than in this code: run your migrations, or run the code that fits the table"
NO_RIGHT = "grant it to the role that workers connect as"


class RowRewritten(WentBackError):
    """Another process overwrote the row of this worker, perhaps by restoring only the data of a backup.

    When the worker starts again, it checks which attempts must wait for a person.
    """


def is_schema_mismatch(error: BaseException) -> bool:
    """Return whether a statement named a column or a table that does not exist, or assumed a wrong type for a column.

    This version of the application is then newer or older than the database.
    """
    return _cure_for_schema_mismatch(error) is not None


def is_missing_table(error: BaseException) -> bool:
    """Return whether a statement named a table that does not exist."""
    return _cure_for_schema_mismatch(error) == NO_TABLE


def is_permission_denied(error: BaseException) -> bool:
    """Return whether the role that groundstate connects as lacks a right that the statement needs."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == _DENIED


def _cure_for_schema_mismatch(error: BaseException) -> str | None:
    """Return in words the cure for a missing column or table, or for a column of another type; None for any other error."""
    if not isinstance(error, DBAPIError):
        return None
    state, words = getattr(error.orig, "sqlstate", None), safe_str(error.orig)
    if state == _NO_COLUMN or (state is None and "no such column" in words):
        return NO_COLUMN
    if state in _OTHER_TYPE:
        return OTHER_TYPE
    return NO_TABLE if state == _NO_TABLE or (state is None and "no such table" in words) else None


def is_raised_before_sending(error: BaseException) -> bool:
    """Return whether the database probably never received a statement, since it could not be built or the driver refused its values.

    An error in the conversion of a statement's results looks the same, so the answer for it is True too. Only the caller knows the
    statement, and can tell the two cases apart.
    """
    ours = DBAPIError | GroundstateError | LostUpdate | OtherServer | Illegible | LockNotFree
    return isinstance(error, Exception) and not isinstance(error, ours)


def is_fault_of_statement(error: BaseException) -> bool:
    """Return whether the reaction's own statement is at fault, and neither the database nor groundstate's own tables."""
    return is_raised_before_sending(error) or (isinstance(error, DBAPIError) and not is_no_fault_of_record(error))


def _without_statement_error(error: BaseException) -> BaseException:
    """Return the exception that a column type raised for a value, without the StatementError in which SQLAlchemy wraps this exception."""
    return error.orig or error if isinstance(error, StatementError) else error


def database_message(error: Exception) -> str:
    """Return the first line of the database's message, without the statement. If the database never received the statement, return a
    description of the exception.
    """
    if not isinstance(error, DBAPIError):
        return describe_exception(_without_statement_error(error))
    lines = safe_str(error.orig).strip().splitlines()
    if not lines:
        return type(error.orig).__name__
    at = _expression_at_caret(lines) if getattr(error.orig, "sqlstate", None) in _OTHER_TYPE else None
    return lines[0] if at is None else f"{lines[0]} (at {at})"


def _expression_at_caret(lines: Sequence[str]) -> str | None:
    """Return the expression that PostgreSQL's message points at, as in 'LINE 3: WHERE orders.status = ...' with a caret in the next line;
    None if there is no caret.
    """
    for line, next_ in itertools.pairwise(lines):
        words = line[: next_.find("^")].split() if next_.strip() == "^" else []
        if words:
            return words[-1].lstrip("(")
    return None


def is_server_full(error: BaseException) -> bool:
    """Return whether the server accepts no further connection, at all or for this role or database."""
    orig = getattr(error, "orig", None)
    return getattr(orig, "sqlstate", None) == _TOO_MANY or any(words in safe_str(orig) for words in _FULL)


def is_server_starting(error: BaseException) -> bool:
    """Return whether the server runs, but reports that it does not accept connections now, since it is starting or shutting down."""
    return any(words in safe_str(getattr(error, "orig", None)) for words in _NOT_UP)


FULL = (
    "the server takes no more connections: a worker needs two, for its work and for its lock, two more where hints go by PostgreSQL, and"
    " one for a moment at its start; raise max_connections (or the limit of the role, or of the database), end idle ones, or put a pooler"
    " before it (Store(direct=))"
)


SPACE = "free some space where the database lies, and try again: nothing is lost by it"
FILE_LOCKED = "another process, or another connection, keeps the file's write lock"
REPLANNED = "a table was altered beneath a prepared statement, as by a migration; the next try prepares it anew"
SILENT = "it is stopped, stuck on its disk, or behind a proxy that passes nothing on"
NO_SPACE = ("disk is full", "disk I/O error", "No space left")


def is_disk_full(error: BaseException) -> bool:
    """Return whether the database cannot write to its disk."""
    words = safe_str(getattr(error, "orig", None))
    return any(one in words for one in NO_SPACE)


def is_file_locked(error: BaseException) -> bool:
    """Return whether another connection kept the write lock of SQLite's file for longer than groundstate's timeout."""
    return isinstance(error, DBAPIError) and "database is locked" in safe_str(error.orig)


def is_server_silent(error: BaseException) -> bool:
    """Return whether the server did not answer in time to a request for a connection, and did not refuse it either."""
    return isinstance(error, DBAPIError) and "connection timeout expired" in safe_str(error.orig)


def error_in_one_line(error: BaseException) -> str:
    """Return the text of a database error in one line, with the cure if one is known."""
    lacked = NO_RIGHT if is_permission_denied(error) else _cure_for_schema_mismatch(error)
    if isinstance(error, DBAPIError) and lacked is not None:
        return f"{database_message(error)}: {lacked}"
    named = error if isinstance(error, DBAPIError) else _without_statement_error(error)
    name, words = type(named).__name__, " ".join(safe_str(getattr(error, "orig", error)).split())
    if is_outdated_plan(error):
        return f"{name}: {words}: {REPLANNED}"
    if is_file_locked(error):
        return f"{name}: {words}: {FILE_LOCKED}"
    if is_disk_full(error):
        return f"{name}: {words}; {SPACE}"
    if is_server_silent(error):
        return f"{name}: the server does not answer: {SILENT} ({words})"
    cure = f" ({FULL})" if is_server_full(error) else ""
    return f"{name}: {words}{cure}"


def is_statement_pooling(error: BaseException) -> bool:
    """Return whether the connection goes through a pooler in statement mode, which allows no transactions."""
    return isinstance(error, DBAPIError) and "statement pooling mode" in safe_str(error.orig)


BY_STATEMENT = (
    "a pooler in statement mode is in between (pool_mode = statement), where there are no transactions: set pool_mode = session for this"
    " database, or pool_mode = transaction and give the store direct=, a URL past the pooler; or give it that URL alone"
)


def is_cancelled_statement(error: BaseException) -> bool:
    """Return whether a statement was cancelled: by groundstate's timeout, by the server's limit, or by a person."""
    if not isinstance(error, DBAPIError):
        return False
    return getattr(error.orig, "sqlstate", None) == _CANCELLED or str(error.orig) == "interrupted"


def is_database_trouble(error: BaseException) -> bool:
    """Return whether the database itself is in trouble, such as a full disk. A lock held by another transaction does not count."""
    others = (
        is_serialization_failure(error)
        or is_lock_timeout(error)
        or is_file_locked(error)
        or is_cancelled_statement(error)
        or is_outdated_plan(error)
    )
    return isinstance(error, DBAPIError) and is_no_fault_of_record(error) and not others


def is_outdated_plan(error: BaseException) -> bool:
    """Return whether PostgreSQL refused a prepared statement because one of its tables was altered. After a rollback the statement is
    prepared again, and succeeds.
    """
    orig = getattr(error, "orig", None)
    # Compare the name of the server's function first, since the message may be in any language.
    told_by = getattr(getattr(orig, "diag", None), "source_function", None)
    return getattr(orig, "sqlstate", None) == _NOT_SUPPORTED and (told_by == "RevalidateCachedQuery" or "cached plan" in safe_str(orig))


def is_no_fault_of_record(error: BaseException) -> bool:
    """Return whether the error has another cause than the record: the same transaction may succeed later, or once groundstate's own rows
    are repaired.
    """
    if isinstance(error, Illegible | LockNotFree | OtherServer | LostUpdate):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(state, str):
        return state[:2] in _STATES or state == _LOCK_NOT_AVAILABLE or is_outdated_plan(error)
    if any(words in safe_str(error.orig) for words in _SQLITE):
        return True
    # An error with no SQLSTATE was raised by psycopg itself, and not by the server.
    return isinstance(error, OperationalError | InterfaceError) and hasattr(error.orig, "sqlstate")
