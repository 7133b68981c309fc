"""One moment a transaction: what its conditions are asked with is what its handlers are told, whatever the clock does meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import ReactionContext, UtcDateTime, after
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.transaction_time import hold_transaction_time
from tests.engine.kit import World, until

HOUR = timedelta(hours=1)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "moment_notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")
    due_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


@pytest.fixture
def timed(database_url: str) -> Any:
    made = World(database_url, Base)
    yield made
    made.close()


def test_no_handler_is_told_a_moment_before_its_due_time(timed: World) -> None:
    early: list[timedelta] = []
    seen: list[int] = []

    @timed.app.on(Note, Note.status == "open", due=Note.due_at)
    def rung(one: Note, ctx: ReactionContext) -> None:
        seen.append(one.id)
        if ctx.now < ctx.due:
            early.append(ctx.due - ctx.now)
        one.status = "rung"

    timed.there()
    timed.worker()
    begins = datetime.now(UTC)
    timed.add(*[Note(id=number, due_at=begins + timedelta(milliseconds=number)) for number in range(1, 801)])
    until(lambda: len(seen) >= 800)
    assert early == []


def test_what_is_asked_in_a_transaction_is_asked_with_its_moment_and_not_with_the_statements(timed: World) -> None:
    @timed.app.on(Note, Note.status == "open", due=after(Note.due_at, HOUR, valid_for=HOUR))
    def rung(one: Note) -> None:
        one.status = "rung"

    @rung.expired
    def _(one: Note) -> None:
        one.status = "late"

    base = datetime(2026, 1, 1, 12, tzinfo=UTC)
    timed.add(*[Note(id=hours, due_at=base - hours * HOUR) for hours in range(4)])
    life = timed.worker()
    question: ConditionQuery = life.worker.queues[0].query
    assert question.query_for_expired is not None

    def found(asked: ConditionQuery, now: datetime) -> list[int]:
        with life.database.reading() as connection, hold_transaction_time(life.database, now):
            return sorted(connection.execute(select(Note.id).where(asked.condition.is_ready)).scalars())

    if not timed.postgres:  # there now() is the transaction's by itself
        assert found(question, base) == [1]
        assert found(question, base + HOUR) == [0]
        assert found(question.query_for_expired, base) == [2, 3]
        assert found(question.query_for_expired, base - HOUR) == [3]
