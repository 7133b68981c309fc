"""Provides the time of the open transaction, by which its conditions are evaluated. Reads no clock.

SQLite's clock gives another time to each statement. All statements of a transaction get one time instead, so that no handler gets a time
before the time at which its record was taken.
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


class _HeldTimes(threading.local):
    """The times of this thread's open transactions. Each thread has its own, since a transaction and its statements belong to one
    thread.
    """

    def __init__(self) -> None:
        self.moments: dict[int, datetime] = {}  # the time of the open transaction, by the id() of its database


_held = _HeldTimes()


@contextmanager
def hold_transaction_time(database: Database, now: datetime) -> Iterator[None]:
    """While the block runs, let this thread's statements on this database use the given time."""
    before = _held.moments.get(id(database))
    _held.moments[id(database)] = now
    try:
        yield
    finally:
        if before is None:
            del _held.moments[id(database)]
        else:
            _held.moments[id(database)] = before


def transaction_time_of(database: Database) -> datetime | None:
    """Return the time of this thread's open transaction on this database; None if it has none."""
    return _held.moments.get(id(database))


class TransactionTime(ColumnElement[datetime]):
    """An SQL expression for the transaction's time plus the duration `ahead`.

    Outside of a transaction, and if a condition is written out as text, it means the time of the database's clock.
    """

    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012  # SQLAlchemy itself declares this attribute without ClassVar
        ("given", InternalTraversal.dp_clauseelement),
        ("clock", InternalTraversal.dp_clauseelement),
    ]

    def __init__(self, database: Database, ahead: timedelta) -> None:
        def bound_time() -> datetime | None:
            now = transaction_time_of(database)
            return None if now is None else now + ahead

        self.given = bindparam("groundstate_now", callable_=bound_time, type_=UtcDateTime(), unique=True)
        self.clock = database.now(ahead)
        self.type = UtcDateTime()


@compiles(TransactionTime)
def _compile_transaction_time(element: TransactionTime, compiler: Any, **options: Any) -> str:
    clock: str = compiler.process(element.clock, **options)
    if options.get("literal_binds"):
        return clock
    return f"coalesce({compiler.process(element.given, **options)}, {clock})"
