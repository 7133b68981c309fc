"""The backlog by groups: every row is met in a pass, whatever its value and its key; and the index by which it is quick."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Uuid, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import InOrder, Instant, Outside, hold
from groundstate.engine import plans
from groundstate.engine.groups import Round, round_of
from groundstate.engine.question import Question
from groundstate.store import opening
from tests.engine.kit import World


class Base(DeclarativeBase):
    pass


class Leg(Base):
    __tablename__ = "legs"
    trip: Mapped[int] = mapped_column(primary_key=True)
    leg: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(Instant)
    status: Mapped[str] = mapped_column(default="new")


class Hook(Base):
    __tablename__ = "hooks"
    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    tenant: Mapped[int | None]
    number: Mapped[int]
    status: Mapped[str] = mapped_column(default="new")


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url, Base)
    yield made
    made.close()


def question(world: World, kind: Any, **options: Any) -> Question:
    outside = Outside("o")

    @outside.call(in_doubt=hold())
    def send(one: Any) -> str:
        return "ok"

    @world.app.on(kind, kind.status == "new", call=send, name="sent", **options)
    def sent(one: Any, answer: str) -> None:
        one.status = "sent"

    world.there()
    database = opening.open_store(world.app.stores[0].settings())[0]
    database.connect()
    world.lives.append(_Closed(database))  # type: ignore[arg-type]  # closed with the world
    return Question(world.app.reactions["sent"], database)


class _Closed:
    def __init__(self, database: Any) -> None:
        self.database = database

    def kill(self) -> None:
        self.database.close()


def passed(question: Question, room: int, but: tuple[str, ...] = ()) -> list[list[Any]]:
    """The pages of one whole pass."""
    groups = round_of(question)
    assert isinstance(groups, Round)
    pages: list[list[Any]] = []
    cursor: Any = None
    with question.database.reading() as connection:
        while True:
            page = groups.page(connection, cursor, room, lambda value: value not in but)
            pages.append(page.keys)
            cursor = page.cursor
            if cursor is None:
                return pages
            assert len(pages) < 1000


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_a_pass_meets_every_value_and_what_has_none_by_keys_of_several_columns(world: World) -> None:
    asked = question(world, Leg, per=Leg.tenant)
    rows = [(1, "a", "x"), (1, "b", "x"), (2, "a", "y"), (3, "a", None), (3, "b", None), (4, "a", "z")]
    world.add(*[Leg(trip=trip, leg=leg, tenant=tenant, at=NOON) for trip, leg, tenant in rows])
    world.add(Leg(trip=9, leg="a", tenant="w", at=NOON, status="sent"))
    for room in (1, 2, 100):
        met = [key for page in passed(asked, room) for key in page]
        assert set(met) == {(trip, leg) for trip, leg, _ in rows}
    first = passed(asked, 100)[0]
    assert first[:3] == [(1, "a"), (2, "a"), (4, "a")], "not one of each value first"
    assert all(key not in page for page in passed(asked, 100, but=("x",))[:1] for key in [(1, "a"), (1, "b")])


def test_of_a_line_the_first_alone_is_met(world: World) -> None:
    asked = question(world, Hook, in_order=InOrder(Hook.tenant, Hook.number))
    world.add(*[Hook(tenant=tenant, number=number) for tenant in (7, 3) for number in (5, 4, 6)], Hook(tenant=None, number=1))
    numbers = {one.id: (one.tenant, one.number) for one in _all(world)}
    met = [numbers[key[0]] for page in passed(asked, 100)[:1] for key in page]
    assert met == [(3, 4), (7, 4)]


def _all(world: World) -> list[Hook]:
    with world.session() as session:
        return list(session.query(Hook))


@pytest.mark.parametrize(
    "options",
    [{"per": Hook.tenant}, {"in_order": InOrder(Hook.tenant, Hook.number)}, {"in_order": InOrder(Hook.tenant)}],
    ids=["a part", "an order", "one at a time"],
)
def test_the_index_that_check_proposes_is_the_one_that_a_pass_goes_by(world: World, options: dict[str, Any]) -> None:
    asked = question(world, Hook, **options)
    with asked.database.reading() as connection:
        found = plans.ungrouped(asked.database, connection, asked)
    assert found is not None
    assert found.ddl is not None
    assert "(tenant, " in found.ddl
    assert found.ddl.endswith("WHERE status = 'new';")
    with world.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(found.ddl))
    asked.database.engine.dispose()  # EXPLAIN goes by the schema that its connection read last
    with asked.database.reading() as connection:
        assert plans.ungrouped(asked.database, connection, asked) is None
