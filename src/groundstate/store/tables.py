"""The four tables we own, and the column type for points in time. Metadata alone: nothing here connects.

What is PostgreSQL's alone is added by its driver, so that an app on SQLite loads nothing of it: Alembic's target is
`groundstate.store.migrations.metadata`. `groundstate init` creates the same tables.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Dialect, Index, Integer, Interval, MetaData, Table, Text, or_, text
from sqlalchemy.types import TypeDecorator, TypeEngine
from sqlalchemy.util import generic_repr

from groundstate.store.written import wrote
from groundstate.values.errors import DeclarationError, StateRefused

VERSION = 2  # of the tables' shape; kept in the identity row

Naive = Literal["refuse", "utc"]


class Instant(TypeDecorator[datetime]):
    """A point in time: aware datetimes in and out, stored in UTC.

    PostgreSQL: `timestamp with time zone`. SQLite: text in UTC with microseconds, which sorts as time does. Plain
    `DateTime(timezone=True)` gives naive datetimes back on SQLite, and comparing those with `Moment.now` raises.

    Args:
        naive: what becomes of a datetime without a zone. "refuse": it is not written, since `datetime.now()` is the host's own wall clock,
            hours off where that is not in UTC; "utc": it is taken as UTC, which is what somebody means who has such values of old.

    Raises:
        DeclarationError: there is no such choice.
    """

    impl = DateTime
    cache_ok = True

    def __init__(self, naive: Naive = "refuse") -> None:  # what is by name alone is in no cache key of SQLAlchemy
        if naive not in ("refuse", "utc"):
            raise DeclarationError(f"Instant(naive={naive!r}): choose 'refuse', or 'utc' where all that has no zone is in UTC")
        super().__init__()
        self.naive = naive

    def __repr__(self) -> str:
        """As it is written in Python, so that Alembic can: `TypeDecorator` would tell its impl's arguments. Of a subclass, by its own."""
        return generic_repr(self)

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(DateTime(timezone=dialect.name != "sqlite"))

    def coerce_compared_value(self, op: Any, value: Any) -> Any:
        """What a value beside it is bound as: a duration is none of its own kind."""
        return Interval() if isinstance(value, timedelta) else super().coerce_compared_value(op, value)

    def refuses(self, value: object) -> str | None:
        """Why a value is not written, with the cure; None where it is."""
        if not isinstance(value, datetime):
            return f"an Instant column is given {value!r}: give an aware datetime, such as datetime.now(UTC)"
        if value.tzinfo is None and self.naive == "refuse":
            return (
                f"an Instant column is given {value.isoformat(sep=' ')}, which has no zone, so that nobody knows when that was: write"
                " datetime.now(UTC), or value.astimezone(UTC) for the host's own time, or value.replace(tzinfo=UTC) for one in UTC;"
                " where all that has no zone is in UTC, map the column as Instant(naive='utc')"
            )
        return None

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        why = self.refuses(value)
        if why is not None:
            raise StateRefused(why)
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
    Column("since", Instant, nullable=False),
    Column("first_at", Instant, nullable=False),
    Column("deadline", Instant, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("next_at", Instant),
    Column("error", Text),
    Column("why", Text),
    Column("outcome", Text),
    Column("blocks", Text),
    Column("together", Integer, nullable=False),
    Column("begun_with", Text),  # JSON: what its latest call was begun with, or under what a baseline was left (rules/kind.py)
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
    Column("name", Text, primary_key=True),  # '' is the store's own row, with its identity
    Column("key_name", Text, nullable=False),  # the name that keys are made of: a rename does not change it (hazard 62)
    Column("condition", Text, nullable=False),  # SQL as it was accepted (hazard 50); the identity for the store's own row
    Column("suspect", Boolean, nullable=False),  # hazard 46: taken as a doubt until a person trusts it
    Column("earlier", Text),  # JSON array: the conditions that were accepted before that one, the latest last; older code may run by them
    Column("record", Text),  # the table and the key of its records, as it was accepted: by them attempts know a record
    Column("seen_at", Instant, nullable=False),
    Column("mark", Text),
    Column("begins", BigInteger),  # of the store's own row on SQLite alone: how many calls were ever begun here
    wrote("groundstate_reaction"),
)

worker = Table(
    "groundstate_worker",
    metadata,
    Column("life", BigInteger, primary_key=True, autoincrement=False),
    Column("app", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("began_at", Instant, nullable=False),
    Column("ended_at", Instant),  # written by who adopted it; a clean end deletes the row
    Column("begins", BigInteger, nullable=False),
    # JSON of the server on which its lock was taken (its start, its last crash recovery, its timeline): on another one a free lock may be
    # that of a living worker which has not come back yet. NULL: SQLite, or written by older code.
    Column("server", Text),
    Column("says", Text),  # JSON: what the living worker says of itself to who looks (engine/says.py); nothing is decided by it
    wrote("groundstate_worker"),
)

rate = Table(
    "groundstate_rate",
    metadata,
    Column("app", Text, primary_key=True),
    Column("outside", Text, primary_key=True),
    Column("part", Text, primary_key=True),  # '' for the outside as a whole, else '=' and the value of `per`
    # How many calls were begun, by the slice of time in which they were: a fact about the past, and no mark that anything runs.
    Column("counts", Text, nullable=False),
    Column("until", Instant, nullable=False),  # from then on it says nothing any more, and is deleted
    sqlite_with_rowid=False,
)
rate_until_index = Index("groundstate_rate_until", rate.c.until)
