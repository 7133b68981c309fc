"""A clause that computes with intervals: right on PostgreSQL, refused on SQLite, whose own way of saying it is right there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import JSON, DateTime, Interval, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import DeclarationError, UtcDateTime
from tests.engine.kit import World


class TicketBase(DeclarativeBase):
    pass


class Ticket(TicketBase):
    __tablename__ = "tickets"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    patience: Mapped[timedelta] = mapped_column(Interval)
    status: Mapped[str] = mapped_column(default="open")
    zoned: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    words: Mapped[dict[str, int] | None] = mapped_column(JSON)
    binary: Mapped[dict[str, int] | None] = mapped_column(JSON().with_variant(JSONB(), "postgresql"))


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url, TicketBase)
    yield made
    made.close()


def test_older_than_an_hour_is_refused_or_right_and_its_cure_is_right(world: World) -> None:
    def closed(ticket: Ticket) -> None:
        ticket.status = "closed"

    old = Ticket.at < func.now() - timedelta(hours=1)
    if not world.postgres:
        with pytest.raises(DeclarationError, match=r"func.datetime\('now', '-1 hour'\)"):
            world.app.on(Ticket, Ticket.status == "open", old)(closed)
        old = Ticket.at < func.datetime("now", "-1 hour")
    world.app.on(Ticket, Ticket.status == "open", old)(closed)
    for number, hours in ((1, 48), (2, 0), (3, 2)):
        world.add(Ticket(id=number, at=datetime.now(UTC) - timedelta(hours=hours), patience=timedelta(hours=1)))
    world.settled()
    assert [world.get(Ticket, number).status for number in (1, 2, 3)] == ["closed", "open", "closed"]


def test_an_interval_column_is_compared_on_both(world: World) -> None:
    @world.app.on(Ticket, Ticket.status == "open", Ticket.patience < timedelta(hours=1))
    def hurried(ticket: Ticket) -> None:
        ticket.status = "hurried"

    for number, minutes in ((1, 30), (2, 90)):
        world.add(Ticket(id=number, at=datetime.now(UTC), patience=timedelta(minutes=minutes)))
    world.settled()
    assert [world.get(Ticket, number).status for number in (1, 2)] == ["hurried", "open"]


def test_a_time_of_another_zone_is_refused_or_right_and_one_in_utc_is_right(world: World) -> None:
    def closed(ticket: Ticket) -> None:
        ticket.status = "closed"

    noon = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    if not world.postgres:
        with pytest.raises(DeclarationError, match=r"as its own clock shows it.*UtcDateTime.*astimezone"):
            world.app.on(Ticket, Ticket.status == "open", Ticket.zoned < noon)(closed)
        noon = noon.astimezone(UTC)
    world.app.on(Ticket, Ticket.status == "open", Ticket.zoned < noon)(closed)
    for number, hour in ((1, 6), (2, 8)):
        at = datetime(2026, 1, 1, hour, tzinfo=UTC)
        world.add(Ticket(id=number, at=at, patience=timedelta(), zoned=at))
    world.settled()
    assert [world.get(Ticket, number).status for number in (1, 2)] == ["closed", "open"]


def test_json_as_a_whole_is_refused_and_jsonb_is_right(world: World) -> None:
    def closed(ticket: Ticket) -> None:
        ticket.status = "closed"

    def declare(*clauses: Any) -> None:
        world.app.reactions.clear()
        world.app.on(Ticket, Ticket.status == "open", *clauses)(closed)
        world.app.init(tables=True)  # at the latest: an engine that is not SQLite's is not looked at before

    words = "PostgreSQL has no operator: map .* as JSONB" if world.postgres else "goes by the letters of JSON text"
    with pytest.raises(DeclarationError, match=words):
        declare(Ticket.words == {"a": 1, "b": 2})
    whole = Ticket.binary == {"a": 1, "b": 2}
    parts = (Ticket.binary["a"].as_integer() == 1, Ticket.binary["b"].as_integer() == 2)
    declare(*((whole,) if world.postgres else parts))
    for number, binary in enumerate([{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 3}], 1):
        world.add(Ticket(id=number, at=datetime.now(UTC), patience=timedelta(), binary=binary))
    world.settled()
    assert [world.get(Ticket, number).status for number in (1, 2, 3)] == ["closed", "closed", "open"]
