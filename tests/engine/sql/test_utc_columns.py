"""A handler that writes a time without a zone: that record fails with the cure, and the others are carried out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import UtcDateTime
from tests.engine.kit import World


class CallBase(DeclarativeBase):
    pass


class Visit(CallBase):
    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)
    seen_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url, CallBase)
    yield made
    made.close()


def test_a_handler_that_writes_a_time_without_a_zone_fails_for_that_record_alone(world: World) -> None:
    noon = datetime(2026, 7, 1, 12, tzinfo=UTC)

    @world.app.on(Visit, Visit.seen_at.is_(None))
    def seen(visit: Visit) -> None:
        visit.seen_at = noon.replace(tzinfo=None) if visit.id == 2 else noon

    world.add(*[Visit(id=number) for number in (1, 2, 3)])
    world.settled()
    assert [world.get(Visit, number).seen_at for number in (1, 2, 3)] == [noon, None, noon]
    (attempt,) = world.attempts()
    assert (attempt.record, attempt.state) == ("2", "failed")
    assert "has no zone" in str(attempt.error)
    assert "datetime.now(UTC)" in str(attempt.error)
