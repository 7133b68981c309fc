"""The driver's own connections: while a handler runs in a transaction of ours, none of them sends what would end it.

SQLAlchemy's connection is kept by the engine, which is not asked where somebody takes the driver's connection out of it.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

from sqlalchemy import Engine, event

from groundstate.rules.statements import what_ends_it, what_it_sets
from groundstate.store.left_behind import SET
from groundstate.values.errors import StateRefused

KEPT_OPEN = "groundstate_kept_open"  # in a connection's info: it runs a transaction that nobody but us may end
_IDLE = 0  # libpq's word for a session that is in no transaction


def refusal(what: str) -> StateRefused:
    """What is raised where this would end our transaction, or begin another one in it."""
    return StateRefused(
        f"a handler runs inside our transaction and cannot end it: remove {what}; let the handler return, or raise what went wrong"
        " (session.begin_nested() makes a savepoint, which it may roll back)"
    )


def refuse(statement: str, *, postgres: bool) -> None:
    """Raises StateRefused where a handler may not send this: it would end our transaction, or change SQLite's connection for all others."""
    word = what_ends_it(statement, postgres=postgres)
    if word is not None:
        raise refusal(word)
    word = None if postgres else what_it_sets(statement, postgres=False)
    if word is not None:
        raise StateRefused(
            f"a handler runs on a connection of ours, and cannot set what other handlers would find there: remove {word}, or let a"
            " listener of your engine set it for each connection (event.listen(engine, 'connect', ...))"
        )


def asks_if_over(driver: Any) -> Callable[[], bool]:
    """How it is asked whether this driver's connection is in no transaction, without asking the database.

    It is for what cannot be refused, such as `sqlite3.Connection.commit(driver)`.
    """
    if isinstance(driver, sqlite3.Connection):
        return lambda: not driver.in_transaction
    of_libpq = driver.pgconn
    return lambda: bool(of_libpq.transaction_status == _IDLE)  # of a connection that broke it is unknown


def lets_go_of_what_broke(engine: Engine) -> None:
    """From now on a connection of this engine that is thrown away in the midst of a handler can be closed."""
    event.listen(engine, "invalidate", lambda _connection, record, _error: record.info.pop(KEPT_OPEN, None))


def close(connection: Any) -> None:
    """Closes a driver's connection, also in the midst of a handler: as the system does where a process ends."""
    connection.info_of_pool = {}
    connection.close()


# ---- SQLite ------------------------------------------------------------------------------------------------------------------------
class SqliteCursor(sqlite3.Cursor):
    """Of a `SqliteConnection`: sends nothing which ends a kept transaction."""

    connection: SqliteConnection

    def execute(self, statement: str, *given: Any) -> Self:
        self.connection.refuse(statement)
        return super().execute(statement, *given)

    def executemany(self, statement: str, *given: Any) -> Self:
        self.connection.refuse(statement)
        return super().executemany(statement, *given)

    def executescript(self, script: str) -> sqlite3.Cursor:
        """Commits before it runs the script."""
        if KEPT_OPEN in self.connection.info_of_pool:
            raise refusal("executescript(), which commits first, and execute its statements one by one")
        return super().executescript(script)


class SqliteConnection(sqlite3.Connection):
    """What `sqlite3.connect` makes for us."""

    info_of_pool: MutableMapping[Any, Any] = {}  # noqa: RUF012  # of the pool's record of it; replaced, and never written to, here

    def __call__(self, sql: str) -> Any:
        """What makes a statement of a text, for any cursor, also one that is not ours. Not asked for a text that it made one of lately."""
        self.refuse(sql)
        return super().__call__(sql)

    def refuse(self, statement: str) -> None:
        """Raises StateRefused where a handler may not send it."""
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
_NO_TEXTS = frozenset({bool, dict, int, list, tuple, type(None)})  # parameters, and how they are sent: asked for first
_ENDING = {"_commit_gen": "commit()", "_rollback_gen": "rollback()"}


def keep_psycopg(connection: Any, info: MutableMapping[Any, Any]) -> None:
    """This connection ends no transaction while the info of its pool's record says that it is kept open."""
    connection.info_of_pool = info
    here = weakref.ref(connection)  # weakly: no cycle delays the end of a connection
    for name in ("commit", "rollback", "close"):
        vars(connection)[name] = partial(_end, here, name)
    # Whatever any cursor sends, also one that somebody makes by its class, waits for its answer there.
    vars(connection)["wait"] = partial(_wait, here)


def _end(connection: Any, name: str) -> None:
    here = connection()
    if KEPT_OPEN in here.info_of_pool and not here.broken:  # what is broken is thrown away by the pool
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
    """The statements that a generator of psycopg's, which is about to be run, was given."""
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
        elif hasattr(value, "strings"):  # a template string, of Python 3.14
            yield "".join(value.strings)
