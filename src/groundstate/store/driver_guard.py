"""Guards the driver's connections: while a handler runs in a transaction of groundstate, they refuse every statement that would end the
transaction.

SQLAlchemy's connections are guarded elsewhere, but user code can take the driver's connection out of an SQLAlchemy connection, and use it
directly.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

from sqlalchemy import Engine, event

from groundstate.rules.sql_statements import describe_setting, transaction_ending_keyword
from groundstate.store.connection_reset import SET
from groundstate.values.errors import StateRefusedError

KEPT_OPEN = "groundstate_kept_open"  # key in a connection's info; present while user code must not end the connection's transaction
_IDLE = 0  # libpq's transaction status PQTRANS_IDLE: the session is in no transaction
_IN_ERROR = 3  # libpq's transaction status PQTRANS_INERROR: a statement of the transaction failed


def transaction_end_refusal(what: str) -> StateRefusedError:
    """Return the error for user code that would end groundstate's transaction, or begin another. what: the code that must be removed."""
    return StateRefusedError(
        f"a handler runs inside our transaction and cannot end it: remove {what}; let the handler return, or raise what went wrong"
        " (session.begin_nested() makes a savepoint, which it may roll back)"
    )


def refuse_statement(statement: str, *, postgres: bool) -> None:
    """Raise StateRefusedError if the statement would end the transaction or, on SQLite, change a setting that other handlers would find."""
    keyword = transaction_ending_keyword(statement, postgres=postgres)
    if keyword is not None:
        raise transaction_end_refusal(keyword)
    setting = None if postgres else describe_setting(statement, postgres=False)
    if setting is not None:
        raise StateRefusedError(
            f"a handler runs on a connection of ours, and cannot set what other handlers would find there: remove {setting}, or let a"
            " listener of your engine set it for each connection (event.listen(engine, 'connect', ...))"
        )


def make_idle_check(driver: Any) -> Callable[[], bool]:
    """Return a function that returns, without a query, whether this driver's connection is outside of any transaction.

    The function shows whether user code ended the transaction in a way that the guard cannot refuse, such as
    `sqlite3.Connection.commit(driver)`.
    """
    if isinstance(driver, sqlite3.Connection):
        return lambda: not driver.in_transaction
    of_libpq = driver.pgconn
    return lambda: bool(of_libpq.transaction_status == _IDLE)  # False for a broken connection, whose status is "unknown"


def make_failed_check(driver: Any) -> Callable[[], bool]:
    """Return a function that returns, without a query, whether PostgreSQL refuses further statements because a statement failed. On SQLite
    the function always returns False.
    """
    if isinstance(driver, sqlite3.Connection):
        return lambda: False
    of_libpq = driver.pgconn
    return lambda: bool(of_libpq.transaction_status == _IN_ERROR)


def allow_closing_when_invalidated(engine: Engine) -> None:
    """Let SQLAlchemy close an invalidated connection of this engine even while a handler runs on it. Otherwise the guard would refuse to
    close it.
    """
    event.listen(engine, "invalidate", lambda _connection, record, _error: record.info.pop(KEPT_OPEN, None))


def close_despite_guard(connection: Any) -> None:
    """Close a driver's connection even while a handler runs on it. The simulated end of a process needs this."""
    connection.info_of_pool = {}
    connection.close()


# ---- SQLite ------------------------------------------------------------------------------------------------------------------------
class SqliteCursor(sqlite3.Cursor):
    """A SqliteCursor is a cursor of `SqliteConnection`, and refuses statements that would end a guarded transaction."""

    connection: SqliteConnection

    def execute(self, statement: str, *given: Any) -> Self:
        self.connection.refuse(statement)
        return super().execute(statement, *given)

    def executemany(self, statement: str, *given: Any) -> Self:
        self.connection.refuse(statement)
        return super().executemany(statement, *given)

    def executescript(self, script: str) -> sqlite3.Cursor:
        """Run a script, but raise StateRefusedError in a guarded transaction, since sqlite3 commits before it runs a script."""
        if KEPT_OPEN in self.connection.info_of_pool:
            raise transaction_end_refusal("executescript(), which commits first, and execute its statements one by one")
        return super().executescript(script)


class SqliteConnection(sqlite3.Connection):
    """A SqliteConnection refuses, in a guarded transaction, what would end the transaction. `sqlite3.connect` makes groundstate's
    connections of this class.
    """

    info_of_pool: MutableMapping[Any, Any] = {}  # noqa: RUF012  # `info` of the pool's record; every connection is given its own mapping

    def __call__(self, sql: str) -> Any:
        """Check a statement, and prepare it. sqlite3 calls this for every statement that is not in its cache, from cursors of any class."""
        self.refuse(sql)
        return super().__call__(sql)

    def refuse(self, statement: str) -> None:
        """Raise StateRefusedError if this connection's transaction is guarded, and a handler may not send this statement."""
        if KEPT_OPEN in self.info_of_pool:
            refuse_statement(statement, postgres=False)

    def commit(self) -> None:
        self._refuse_call("commit()")
        super().commit()

    def rollback(self) -> None:
        self._refuse_call("rollback()")
        super().rollback()

    def close(self) -> None:
        self._refuse_call("close()")
        super().close()

    def cursor(self, factory: Any = SqliteCursor) -> Any:
        return super().cursor(factory)

    def execute(self, statement: str, *given: Any) -> Any:
        return self.cursor().execute(statement, *given)

    def executemany(self, statement: str, *given: Any) -> Any:
        return self.cursor().executemany(statement, *given)

    def executescript(self, script: str) -> Any:
        return self.cursor().executescript(script)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> Literal[False]:
        self._refuse_call("with block, which ends it")
        return super().__exit__(kind, error, trace)

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("isolation_level", "autocommit"):
            self._refuse_call(f"{name} = {value!r}, which commits")
        super().__setattr__(name, value)

    def _refuse_call(self, what: str) -> None:
        if KEPT_OPEN in self.info_of_pool:
            raise transaction_end_refusal(f"the driver connection's {what}")


# ---- psycopg -----------------------------------------------------------------------------------------------------------------------
_NO_TEXTS = frozenset({bool, dict, int, list, tuple, type(None)})  # types whose values are never SQL text
_ENDING = {"_commit_gen": "commit()", "_rollback_gen": "rollback()"}


def guard_psycopg(connection: Any, info: MutableMapping[Any, Any]) -> None:
    """Make this psycopg connection refuse to end its transaction while the key KEPT_OPEN is in `info`, the info of its pool record."""
    connection.info_of_pool = info
    here = weakref.ref(connection)  # a weak reference, since a cycle of references would delay the closing of the connection
    for name in ("commit", "rollback", "close"):
        vars(connection)[name] = partial(_end_if_allowed, here, name)
    # `wait` is replaced, since every cursor of psycopg calls it on its connection for each statement that it sends.
    vars(connection)["wait"] = partial(_check_and_wait, here)


def _end_if_allowed(connection: Any, name: str) -> None:
    here = connection()
    if KEPT_OPEN in here.info_of_pool and not here.broken:  # a broken connection may be closed, so that the pool can discard it
        raise transaction_end_refusal(f"the driver connection's {name}()")
    getattr(type(here), name)(here)


def _check_and_wait(connection: Any, work: Any, *given: Any, **more: Any) -> Any:
    here = connection()
    if KEPT_OPEN in here.info_of_pool:
        ending = _ENDING.get(getattr(work, "__name__", ""))
        if ending is not None and not here.broken:
            raise transaction_end_refusal(f"the driver connection's {ending}")
        for statement in _statements_given_to(here, work):
            refuse_statement(statement, postgres=True)
            word = describe_setting(statement, postgres=True)
            if word is not None:
                here.info_of_pool.setdefault(SET, set()).add(word)
    return type(here).wait(here, work, *given, **more)


def _statements_given_to(connection: Any, work: Any) -> Iterator[str]:
    """Yield as text each SQL statement among the arguments of `work`, a generator of psycopg that is about to send statements."""
    frame = getattr(work, "gi_frame", None)
    for name, value in () if frame is None else frame.f_locals.items():
        if name == "self" or value.__class__ in _NO_TEXTS:
            continue
        if isinstance(value, str):
            yield value
        elif isinstance(value, bytes):
            yield value.decode(errors="replace")
        elif hasattr(value, "as_string"):
            yield value.as_string(connection)
        elif hasattr(value, "strings"):  # the value is a template string of Python 3.14
            yield "".join(value.strings)
