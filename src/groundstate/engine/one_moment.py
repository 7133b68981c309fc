"""The one moment of a transaction of ours, as what its conditions are asked with: SQLite's clock says another one in each statement.

So a handler is never told a moment before the one at which its record was taken. Reads no clock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, bindparam
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.visitors import InternalTraversal

from groundstate.store.port import Database
from groundstate.store.tables import Instant


class _Held(threading.local):
    """Of each thread, since a transaction and its statements are of one."""

    def __init__(self) -> None:
        self.moments: dict[int, datetime] = {}  # by the ids of databases


_held = _Held()


@contextmanager
def held(database: Database, now: datetime) -> Iterator[None]:
    """While the block runs, statements of this thread on this database are asked with this moment."""
    before = _held.moments.get(id(database))
    _held.moments[id(database)] = now
    try:
        yield
    finally:
        if before is None:
            del _held.moments[id(database)]
        else:
            _held.moments[id(database)] = before


def moment_of(database: Database) -> datetime | None:
    """The moment of the transaction under way in this thread; None where there is none."""
    return _held.moments.get(id(database))


class OneMoment(ColumnElement[datetime]):
    """The transaction's moment, moved ahead; outside of one, and where a condition is written out as text, the database's clock."""

    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012  # as SQLAlchemy has it
        ("given", InternalTraversal.dp_clauseelement),
        ("clock", InternalTraversal.dp_clauseelement),
    ]

    def __init__(self, database: Database, ahead: timedelta) -> None:
        def given() -> datetime | None:
            now = moment_of(database)
            return None if now is None else now + ahead

        self.given = bindparam("groundstate_now", callable_=given, type_=Instant(), unique=True)
        self.clock = database.now(ahead)
        self.type = Instant()


@compiles(OneMoment)
def _compiled(element: OneMoment, compiler: Any, **options: Any) -> str:
    clock: str = compiler.process(element.clock, **options)
    if options.get("literal_binds"):
        return clock
    return f"coalesce({compiler.process(element.given, **options)}, {clock})"
