"""The driver's own connections: while a handler runs in a transaction of ours, none of them sends what would end it.

SQLAlchemy's connection is kept by the engine, which is not asked where somebody takes the driver's connection out of it.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Mapping
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Literal

from sqlalchemy import Engine, event

from groundstate.rules.statements import what_ends_it
from groundstate.values.errors import StateRefused

KEPT_OPEN = "groundstate_kept_open"  # in a connection's info: it runs a transaction that nobody but us may end


def refusal(what: str) -> StateRefused:
    """What is raised where this would end our transaction, or begin another one in it."""
    return StateRefused(
        f"a handler runs inside our transaction and cannot end it: remove {what}; let the handler return, or raise what went wrong"
        " (session.begin_nested() makes a savepoint, which it may roll back)"
    )


def lets_go_of_what_broke(engine: Engine) -> None:
    """From now on a connection of this engine that is thrown away in the midst of a handler can be closed."""
    event.listen(engine, "invalidate", lambda _connection, record, _error: record.info.pop(KEPT_OPEN, None))


def close(connection: Any) -> None:
    """Closes a driver's connection, also in the midst of a handler: as the system does where a process ends."""
    connection.info_of_pool = {}
    connection.close()


class _Cursor:
    """A cursor of either driver that sends nothing which ends a kept transaction."""

    connection: Any

    def execute(self, statement: Any, *given: Any, **more: Any) -> Any:
        self._refuse(statement)
        return super().execute(statement, *given, **more)  # type: ignore[misc]  # the driver's, with which it is mixed

    def executemany(self, statement: Any, *given: Any, **more: Any) -> Any:
        self._refuse(statement)
        return super().executemany(statement, *given, **more)  # type: ignore[misc]  # as above

    def _refuse(self, statement: Any) -> None:
        if KEPT_OPEN not in self.connection.info_of_pool:
            return
        if isinstance(statement, bytes):
            statement = statement.decode(errors="replace")
        elif not isinstance(statement, str):
            statement = statement.as_string(self.connection)
        word = what_ends_it(statement, postgres=not isinstance(self, sqlite3.Cursor))
        if word is not None:
            raise refusal(word)


class SqliteCursor(_Cursor, sqlite3.Cursor):
    """Of a `SqliteConnection`."""

    def executescript(self, script: str) -> sqlite3.Cursor:
        """Commits before it runs the script."""
        if KEPT_OPEN in self.connection.info_of_pool:
            raise refusal("executescript(), which commits first, and execute its statements one by one")
        return super().executescript(script)


class SqliteConnection(sqlite3.Connection):
    """What `sqlite3.connect` makes for us."""

    info_of_pool: Mapping[Any, Any] = {}  # of the pool's record of it

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


def keep_psycopg(connection: Any, info: Mapping[Any, Any]) -> None:
    """This connection, and its cursors, end no transaction while the info of its pool's record says that it is kept open."""
    connection.info_of_pool = info
    connection.cursor_factory = _kept(connection.cursor_factory)
    for name in ("commit", "rollback", "close"):
        vars(connection)[name] = partial(_end, weakref.ref(connection), name)  # weakly: no cycle delays the end of a connection


def _end(connection: Any, name: str) -> None:
    here = connection()
    if KEPT_OPEN in here.info_of_pool and not here.broken:  # what is broken is thrown away by the pool
        raise refusal(f"the driver connection's {name}()")
    getattr(type(here), name)(here)


@lru_cache(maxsize=32)
def _kept(cursor: Any) -> Any:
    return type(cursor.__name__, (_Cursor, cursor), {})
