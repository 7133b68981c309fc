"""Due times: a column and the database's clock, and nothing else. What is carried out when, and what becomes of what is late."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import DateTime
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import Instant, Moment
from tests.engine.kit import World, ms, until

DAY = timedelta(days=1)


class TimedBase(DeclarativeBase):
    pass


class Bill(TimedBase):
    __tablename__ = "bills"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")
    due_at: Mapped[datetime | None] = mapped_column(Instant)
    naive_at: Mapped[datetime | None] = mapped_column(DateTime, default=None)
    round: Mapped[int] = mapped_column(default=1)
    charged: Mapped[int] = mapped_column(default=0)
    note: Mapped[str | None] = mapped_column(default=None)
    late_s: Mapped[float | None] = mapped_column(default=None)


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def timed(database_url: str) -> Any:
    made = World(database_url, TimedBase)
    yield made
    made.close()


def bill(world: World, number: int = 1) -> Any:
    return world.get(Bill, number)


def noted(world: World, **options: Any) -> None:
    @world.app.on(Bill, Bill.status == "open", due=options.pop("due", Bill.due_at), name="noted", **options)
    def handler(one: Bill, at: Moment) -> None:
        one.status, one.late_s = "noted", at.late_by.total_seconds()
        one.note = at.due.isoformat()


def test_a_record_is_carried_out_when_its_time_has_come_and_not_before(timed: World) -> None:
    noted(timed)
    timed.add(Bill(id=1, due_at=now() + timedelta(hours=1)), Bill(id=2, due_at=now() - DAY), Bill(id=3, due_at=None))
    life = timed.worker()
    life.quiet()
    assert [bill(timed, n).status for n in (1, 2, 3)] == ["open", "noted", "open"]
    assert 86_000 < bill(timed, 2).late_s < 87_000
    assert life.worker.rest().timers == 1
    timed.forward(3601)
    life.quiet()
    assert bill(timed).status == "noted"
    assert timed.attempts() == []


def test_a_worker_sleeps_until_the_next_is_due(timed: World) -> None:
    noted(timed)
    timed.add(Bill(id=1, due_at=now() + ms(600)))
    life = timed.worker()
    life.quiet()
    life.worker._next_sweep = float("inf")  # no sweep helps
    until(lambda: bill(timed).status == "noted")
    assert 0 <= bill(timed).late_s < 0.5
