"""Defines groundstate's four tables, and the column type for points in time. Nothing here connects.

The module `postgres` adds the tables' options for PostgreSQL, so that an app on SQLite does not import that dialect. Use
`groundstate.store.migrations.metadata`, which has the options, as a target of Alembic. `groundstate init` creates the tables too.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Dialect, Index, Integer, Interval, MetaData, Table, Text, or_, text
from sqlalchemy.types import TypeDecorator, TypeEngine
from sqlalchemy.util import generic_repr

from groundstate.store.wrote_column import wrote_column
from groundstate.values.errors import DeclarationError, StateRefusedError

VERSION = 2  # version of the tables' columns; stored with the store's identity in groundstate_reaction

Naive = Literal["refuse", "utc"]


class UtcDateTime(TypeDecorator[datetime]):
    """A column type for points in time: it takes and returns aware datetimes, and stores them in UTC.

    On PostgreSQL the column is a `timestamp with time zone`; on SQLite it is text in UTC with microseconds, which sorts as time does. A
    plain `DateTime(timezone=True)` returns naive datetimes on SQLite, and comparing a naive datetime with `ReactionContext.now` raises.

    Args:
        naive: what happens to a datetime without a time zone. With "refuse", writing it raises StateRefusedError, since `datetime.now()`
            gives the host's local time, which may be hours from UTC. With "utc" it is taken as UTC, for apps whose naive times are in UTC.

    Raises:
        DeclarationError: `naive` is neither "refuse" nor "utc".
    """

    impl = DateTime
    cache_ok = True

    def __init__(self, naive: Naive = "refuse") -> None:  # not keyword-only, since SQLAlchemy's cache key leaves out such arguments
        if naive not in ("refuse", "utc"):
            raise DeclarationError(f"UtcDateTime(naive={naive!r}): choose 'refuse', or 'utc' where all that has no zone is in UTC")
        super().__init__()
        self.naive = naive

    def __repr__(self) -> str:
        """Return the Python source of this type, for Alembic. The inherited method shows the arguments of DateTime instead."""
        return generic_repr(self)

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(DateTime(timezone=dialect.name != "sqlite"))

    def coerce_compared_value(self, op: Any, value: Any) -> Any:
        """Return the column type for a value that an expression combines with this column: Interval for a timedelta, else this type."""
        return Interval() if isinstance(value, timedelta) else super().coerce_compared_value(op, value)

    def reason_to_refuse(self, value: object) -> str | None:
        """Return why this value must not be written, as a text that names the cure; None if it may be written."""
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
        why = self.reason_to_refuse(value)
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
    Column("begun_with", Text),  # JSON: how the latest call was begun, or why the record is left alone (rules/begun_kind.py)
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
    Column("name", Text, primary_key=True),  # name of the reaction; '' in the one row that holds the store's identity
    Column("key_name", Text, nullable=False),  # reaction's name in idempotency keys, which a rename does not change (hazard 62)
    # SQL text of the accepted condition (hazard 50); the row with the name '' has the store's identity here instead
    Column("condition", Text, nullable=False),
    Column("suspect", Boolean, nullable=False),  # whether the reaction's calls are in doubt after a restore (hazard 46)
    Column("earlier", Text),  # JSON array of former conditions, the latest last; older versions of the app may still run with them
    Column("record", Text),  # table and primary key columns of the reaction's records, as they were when a person accepted it
    Column("seen_at", UtcDateTime, nullable=False),
    Column("mark", Text),
    Column("begins", BigInteger),  # number of calls ever begun; only in the row with the store's identity, and only on SQLite
    wrote_column("groundstate_reaction"),
)

worker = Table(
    "groundstate_worker",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("app", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("began_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),  # when another worker took over this worker's attempts; a worker that ends cleanly deletes its row
    Column("begins", BigInteger, nullable=False),
    # JSON that identifies the server on which the worker took its lock (start, last crash recovery, timeline). On another server, such as
    # one after a failover, a living worker that has not reconnected yet does not hold its lock. NULL on SQLite and in rows of older
    # versions.
    Column("server", Text),
    # JSON of what the living worker reports of itself (engine/rows/worker_report.py). It is only shown to people, and decides nothing.
    Column("says", Text),
    wrote_column("groundstate_worker"),
)

rate = Table(
    "groundstate_rate",
    metadata,
    Column("app", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    Column("tenant", Text, primary_key=True),  # '' for the service as a whole, else '=' and the value of the `per` column
    # JSON: for each time slice, the number of calls that were begun in it, including the calls that have ended since.
    Column("counts", Text, nullable=False),
    Column("until", UtcDateTime, nullable=False),  # time after which the row has no effect any more, and is deleted
    sqlite_with_rowid=False,
)
rate_until_index = Index("groundstate_rate_until", rate.c.until)
