"""A clause that computes with intervals: right on PostgreSQL, refused on SQLite, whose own way of saying it is right there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Interval, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import DeclarationError, Instant
from tests.engine.kit import World


class TicketBase(DeclarativeBase):
    pass


class Ticket(TicketBase):
    __tablename__ = "tickets"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(Instant)
    patience: Mapped[timedelta] = mapped_column(Interval)
    status: Mapped[str] = mapped_column(default="open")


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
