"""Holds the time of the open transaction, with which its conditions are evaluated: SQLite's clock gives another time in each statement.

So a handler never gets a time before the one at which its record was taken. Reads no clock.
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
from groundstate.store.tables import UtcDateTime


class _Held(threading.local):
    """The times of open transactions, for each thread, since a transaction and its statements belong to one thread."""

    def __init__(self) -> None:
        self.moments: dict[int, datetime] = {}  # id(database) -> the time of the open transaction


_held = _Held()


@contextmanager
def hold_transaction_time(database: Database, now: datetime) -> Iterator[None]:
    """While the block runs, evaluate statements of this thread on this database with the given time."""
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
    """Return the time of the open transaction in this thread; None where there is none."""
    return _held.moments.get(id(database))


class OneMoment(ColumnElement[datetime]):
    """An SQL expression for the transaction's time plus `ahead`.

    Outside of a transaction, and where a condition is written out as text, it is the database's clock.
    """

    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012  # SQLAlchemy declares this attribute without ClassVar
        ("given", InternalTraversal.dp_clauseelement),
        ("clock", InternalTraversal.dp_clauseelement),
    ]

    def __init__(self, database: Database, ahead: timedelta) -> None:
        def given() -> datetime | None:
            now = moment_of(database)
            return None if now is None else now + ahead

        self.given = bindparam("groundstate_now", callable_=given, type_=UtcDateTime(), unique=True)
        self.clock = database.now(ahead)
        self.type = UtcDateTime()


@compiles(OneMoment)
def _compiled(element: OneMoment, compiler: Any, **options: Any) -> str:
    clock: str = compiler.process(element.clock, **options)
    if options.get("literal_binds"):
        return clock
    return f"coalesce({compiler.process(element.given, **options)}, {clock})"
