"""Guards the driver's own connections: while a handler runs in a transaction of ours, none of them sends what would end it.

SQLAlchemy's connection is guarded by the engine, which is bypassed by code that takes the driver's connection out of it.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

from sqlalchemy import Engine, event

from groundstate.rules.sql_statements import what_ends_it, what_it_sets
from groundstate.store.connection_reset import SET
from groundstate.values.errors import StateRefusedError

KEPT_OPEN = "groundstate_kept_open"  # key in a connection's info: set while it runs a transaction that only we may end
_IDLE = 0  # libpq's PQTRANS_IDLE: the session is in no transaction
_IN_ERROR = 3  # libpq's PQTRANS_INERROR: a statement of the transaction failed


def refusal(what: str) -> StateRefusedError:
    """Return the error for code that would end our transaction, or begin another one in it. what: the code that a handler must remove."""
    return StateRefusedError(
        f"a handler runs inside our transaction and cannot end it: remove {what}; let the handler return, or raise what went wrong"
        " (session.begin_nested() makes a savepoint, which it may roll back)"
    )


def refuse(statement: str, *, postgres: bool) -> None:
    """Raise StateRefusedError where a handler may not send this statement: it would end our transaction, or change SQLite's connection for
    all other handlers.
    """
    word = what_ends_it(statement, postgres=postgres)
    if word is not None:
        raise refusal(word)
    word = None if postgres else what_it_sets(statement, postgres=False)
    if word is not None:
        raise StateRefusedError(
            f"a handler runs on a connection of ours, and cannot set what other handlers would find there: remove {word}, or let a"
            " listener of your engine set it for each connection (event.listen(engine, 'connect', ...))"
        )


def asks_if_over(driver: Any) -> Callable[[], bool]:
    """Return a function that tells, without a query, whether this driver's connection is in no transaction.

    It is for what cannot be refused, such as `sqlite3.Connection.commit(driver)`.
    """
    if isinstance(driver, sqlite3.Connection):
        return lambda: not driver.in_transaction
    of_libpq = driver.pgconn
    return lambda: bool(of_libpq.transaction_status == _IDLE)  # a broken connection has the status unknown


def asks_if_refusing(driver: Any) -> Callable[[], bool]:
    """How it is asked whether a statement failed, so that the server refuses every other one of the transaction, without asking it."""
    if isinstance(driver, sqlite3.Connection):
        return lambda: False
    of_libpq = driver.pgconn
    return lambda: bool(of_libpq.transaction_status == _IN_ERROR)


def lets_go_of_what_broke(engine: Engine) -> None:
    """Let connections of this engine be closed from now on if they are invalidated while a handler runs."""
    event.listen(engine, "invalidate", lambda _connection, record, _error: record.info.pop(KEPT_OPEN, None))


def close(connection: Any) -> None:
    """Close a driver's connection even while a handler runs on it, as the operating system does where a process ends."""
    connection.info_of_pool = {}
    connection.close()


# ---- SQLite ------------------------------------------------------------------------------------------------------------------------
class SqliteCursor(sqlite3.Cursor):
    """Refuses statements that would end a guarded transaction. It is the cursor class of `SqliteConnection`."""

    connection: SqliteConnection

    def execute(self, statement: str, *given: Any) -> Self:
        self.connection.refuse(statement)
        return super().execute(statement, *given)

    def executemany(self, statement: str, *given: Any) -> Self:
        self.connection.refuse(statement)
        return super().executemany(statement, *given)

    def executescript(self, script: str) -> sqlite3.Cursor:
        """Refuse every script in a guarded transaction, since sqlite3 commits before it runs one."""
        if KEPT_OPEN in self.connection.info_of_pool:
            raise refusal("executescript(), which commits first, and execute its statements one by one")
        return super().executescript(script)


class SqliteConnection(sqlite3.Connection):
    """Refuses what would end a guarded transaction. It is the class of the connections that `sqlite3.connect` makes for us."""

    info_of_pool: MutableMapping[Any, Any] = {}  # noqa: RUF012  # the info of its pool record; replaced for each connection, never changed

    def __call__(self, sql: str) -> Any:
        """Check the SQL of a statement that any cursor, even one that is not ours, is about to prepare. sqlite3 skips this for a statement
        in its cache.
        """
        self.refuse(sql)
        return super().__call__(sql)

    def refuse(self, statement: str) -> None:
        """Raise StateRefusedError where a handler may not send this statement."""
        if KEPT_OPEN in self.info_of_pool:
            refuse(statement, postgres=False)

    def commit(self) -> None:
        self._refuse("commit()")
        super().commit()

    def rollback(self) -> None:
        self._refuse("rollback()")
        super().rollback()

    def close(self) -> None:
        self._refuse("close()")
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
        self._refuse("with block, which ends it")
        return super().__exit__(kind, error, trace)

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("isolation_level", "autocommit"):
            self._refuse(f"{name} = {value!r}, which commits")
        super().__setattr__(name, value)

    def _refuse(self, what: str) -> None:
        if KEPT_OPEN in self.info_of_pool:
            raise refusal(f"the driver connection's {what}")


# ---- psycopg -----------------------------------------------------------------------------------------------------------------------
_NO_TEXTS = frozenset({bool, dict, int, list, tuple, type(None)})  # types of parameters and options, which are no SQL text: checked first
_ENDING = {"_commit_gen": "commit()", "_rollback_gen": "rollback()"}


def keep_psycopg(connection: Any, info: MutableMapping[Any, Any]) -> None:
    """Make this connection refuse to end its transaction while KEPT_OPEN is in `info`, the info of its pool record."""
    connection.info_of_pool = info
    here = weakref.ref(connection)  # a weak reference, since a cycle would delay the end of the connection
    for name in ("commit", "rollback", "close"):
        vars(connection)[name] = partial(_end, here, name)
    # Every cursor, even one that is made from its class, waits there for the answer to what it sends.
    vars(connection)["wait"] = partial(_wait, here)


def _end(connection: Any, name: str) -> None:
    here = connection()
    if KEPT_OPEN in here.info_of_pool and not here.broken:  # the pool must be able to discard a broken connection
        raise refusal(f"the driver connection's {name}()")
    getattr(type(here), name)(here)


def _wait(connection: Any, work: Any, *given: Any, **more: Any) -> Any:
    here = connection()
    if KEPT_OPEN in here.info_of_pool:
        ending = _ENDING.get(getattr(work, "__name__", ""))
        if ending is not None and not here.broken:
            raise refusal(f"the driver connection's {ending}")
        for statement in _texts(here, work):
            refuse(statement, postgres=True)
            word = what_it_sets(statement, postgres=True)
            if word is not None:
                here.info_of_pool.setdefault(SET, set()).add(word)
    return type(here).wait(here, work, *given, **more)


def _texts(connection: Any, work: Any) -> Iterator[str]:
    """Yield the SQL statements that a generator of psycopg, which is about to be run, was given."""
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
        elif hasattr(value, "strings"):  # a template string (Python 3.14)
            yield "".join(value.strings)
