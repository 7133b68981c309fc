"""Defines the four tables we own, and the column type for points in time. It is metadata only: nothing here connects.

PostgreSQL's own options are added by its driver, so that an app on SQLite loads nothing of it. Alembic's target, which has them, is
`groundstate.store.migrations.metadata`. `groundstate init` creates the same tables.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Dialect, Index, Integer, Interval, MetaData, Table, Text, or_, text
from sqlalchemy.types import TypeDecorator, TypeEngine
from sqlalchemy.util import generic_repr

from groundstate.store.wrote_column import wrote
from groundstate.values.errors import DeclarationError, StateRefusedError

VERSION = 2  # the version of the tables' schema; kept in the identity row

Naive = Literal["refuse", "utc"]


class UtcDateTime(TypeDecorator[datetime]):
    """Stores a point in time: takes and returns aware datetimes, and stores them in UTC.

    On PostgreSQL the column is a `timestamp with time zone`; on SQLite it is text in UTC with microseconds, which sorts as time does. A
    plain `DateTime(timezone=True)` returns naive datetimes on SQLite, and comparing those with `ReactionContext.now` raises.

    Args:
        naive: what happens to a datetime without a time zone. With "refuse", writing it raises StateRefusedError, since `datetime.now()` is
            the host's wall clock, hours off where that is not in UTC. With "utc" it is taken as UTC, for tables that already have such
            values.

    Raises:
        DeclarationError: `naive` is neither "refuse" nor "utc".
    """

    impl = DateTime
    cache_ok = True

    def __init__(self, naive: Naive = "refuse") -> None:  # not keyword-only: such arguments are missing from SQLAlchemy's cache key
        if naive not in ("refuse", "utc"):
            raise DeclarationError(f"UtcDateTime(naive={naive!r}): choose 'refuse', or 'utc' where all that has no zone is in UTC")
        super().__init__()
        self.naive = naive

    def __repr__(self) -> str:
        """Return the Python source of this type, which Alembic writes; `TypeDecorator` would show its impl's arguments. A subclass is shown
        by its own name.
        """
        return generic_repr(self)

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(DateTime(timezone=dialect.name != "sqlite"))

    def coerce_compared_value(self, op: Any, value: Any) -> Any:
        """Return the type by which a value beside this column is bound: Interval for a timedelta, which is no point in time."""
        return Interval() if isinstance(value, timedelta) else super().coerce_compared_value(op, value)

    def refuses(self, value: object) -> str | None:
        """Return why a value is not written, with the cure; None if it may be written."""
        if not isinstance(value, datetime):
            return f"an UtcDateTime column is given {value!r}: give an aware datetime, such as datetime.now(UTC)"
        if value.tzinfo is None and self.naive == "refuse":
            return (
                f"an UtcDateTime column is given {value.isoformat(sep=' ')}, which has no zone, so that nobody knows when that was: write"
                " datetime.now(UTC), or value.astimezone(UTC) for the host's own time, or value.replace(tzinfo=UTC) for one in UTC;"
                " where all that has no zone is in UTC, map the column as UtcDateTime(naive='utc')"
            )
        return None

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        why = self.refuses(value)
        if why is not None:
            raise StateRefusedError(why)
        aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return aware.replace(tzinfo=None) if dialect.name == "sqlite" else aware

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData()

attempt = Table(
    "groundstate_attempt",
    metadata,
    Column("app", Text, primary_key=True),
    Column("reaction", Text, primary_key=True),
    Column("record", Text, primary_key=True),
    Column("occurrence", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("worker", BigInteger, nullable=False),
    Column("call", BigInteger, nullable=False),
    Column("call_no", Integer, nullable=False),
    Column("unsure", Boolean, nullable=False),
    Column("since", UtcDateTime, nullable=False),
    Column("first_at", UtcDateTime, nullable=False),
    Column("deadline", UtcDateTime, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("next_at", UtcDateTime),
    Column("error", Text),
    Column("why", Text),
    Column("outcome", Text),
    Column("blocks", Text),
    Column("together", Integer, nullable=False),
    Column("begun_with", Text),  # JSON: by which kind of code its latest call was begun, or its baseline left (rules/begun_kind.py)
    sqlite_with_rowid=False,
)

blocking = or_(attempt.c.state == text("'begun'"), attempt.c.unsure)
blocks_index = Index("groundstate_attempt_blocks", attempt.c.blocks, attempt.c.record, sqlite_where=blocking)
Index("groundstate_attempt_worker", attempt.c.worker, attempt.c.state)
Index("groundstate_attempt_next", attempt.c.app, attempt.c.reaction, attempt.c.state, attempt.c.next_at)

reaction = Table(
    "groundstate_reaction",
    metadata,
    Column("app", Text, primary_key=True),
    Column("name", Text, primary_key=True),  # '' for the store's own row, which has its identity
    Column("key_name", Text, nullable=False),  # the name that idempotency keys are made of: a rename does not change it (hazard 62)
    Column("condition", Text, nullable=False),  # the SQL that was accepted (hazard 50); in the store's own row, its identity
    Column("suspect", Boolean, nullable=False),  # its records are put in doubt until a person trusts it (hazard 46)
    Column("earlier", Text),  # JSON array: conditions accepted before, the latest last; older code may still run by them
    Column("record", Text),  # the accepted table and primary key of its records, by which attempts name them
    Column("seen_at", UtcDateTime, nullable=False),
    Column("mark", Text),
    Column("begins", BigInteger),  # the number of calls ever begun here; only in the store's own row, on SQLite
    wrote("groundstate_reaction"),
)

worker = Table(
    "groundstate_worker",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("app", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("began_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),  # written by the worker that adopted it; a clean end deletes the row
    Column("begins", BigInteger, nullable=False),
    # JSON of the server on which its lock was taken (its start, its last crash recovery, its timeline). On another server a lock may be
    # free although its worker is alive and has only not reconnected yet. NULL on SQLite, and where older code wrote the row.
    Column("server", Text),
    # JSON: what the living worker reports of itself, for display only (engine/rows/worker_report.py); nothing is decided by it.
    Column("says", Text),
    wrote("groundstate_worker"),
)

rate = Table(
    "groundstate_rate",
    metadata,
    Column("app", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    Column("tenant", Text, primary_key=True),  # '' for the service as a whole, else '=' and the value of `per`
    # JSON: how many calls were begun in each slice of time: a fact about the past, and no mark that anything is running.
    Column("counts", Text, nullable=False),
    Column("until", UtcDateTime, nullable=False),  # after this time the row has no effect any more, and is deleted
    sqlite_with_rowid=False,
)
rate_until_index = Index("groundstate_rate_until", rate.c.until)
