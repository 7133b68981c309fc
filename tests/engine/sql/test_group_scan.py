"""The backlog by groups: every row is met in a pass, whatever its value and its key; and the index by which it is quick."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Uuid, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import ExternalService, InDoubt, InOrder, UtcDateTime
from groundstate.engine.sql import explain
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.group_scan import GroupPasses, GroupStatements, group_passes_for
from groundstate.store import connect
from tests.engine.kit import World


class Base(DeclarativeBase):
    pass


class Leg(Base):
    __tablename__ = "legs"
    trip: Mapped[int] = mapped_column(primary_key=True)
    leg: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(UtcDateTime)
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


def question(world: World, kind: Any, **options: Any) -> ConditionQuery:
    service = ExternalService("o")

    @service.call(in_doubt=InDoubt.hold())
    def send(one: Any) -> str:
        return "ok"

    @world.app.on(kind, kind.status == "new", call=send, name="sent", **options)
    def sent(one: Any, answer: str) -> None:
        one.status = "sent"

    world.there()
    database = connect.open_store(world.app.stores[0].settings())[0]
    database.connect()
    world.lives.append(_Closed(database))  # type: ignore[arg-type]  # closed with the world
    return ConditionQuery(world.app.reactions["sent"], database)


class _Closed:
    def __init__(self, database: Any) -> None:
        self.database = database

    def kill(self) -> None:
        self.database.close()


def passed(question: ConditionQuery, room: int, but: tuple[str, ...] = ()) -> list[list[Any]]:
    """The pages of passes that take nothing, until no other is to follow."""
    groups = group_passes_for(question)
    assert isinstance(groups, GroupPasses)
    pages: list[list[Any]] = []
    while True:
        pages += one_pass(question, groups, room, lambda value: value not in but)
        if not groups.end_pass():
            return pages
        assert len(pages) < 1000


def one_pass(question: ConditionQuery, groups: GroupPasses, room: int, *allowed: Any, **more: Any) -> list[list[Any]]:
    """The pages of one pass."""
    pages: list[list[Any]] = []
    cursor: Any = None
    with question.database.reading() as connection:
        while True:
            page = groups.next_page(connection, cursor, room, *allowed, **more)
            pages.append(page.keys)
            cursor = page.cursor
            if cursor is None:
                return pages


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
        found = explain.find_sort_by_group(asked.database, connection, asked)
    assert found is not None
    assert found.ddl is not None
    assert "(tenant, " in found.ddl
    assert found.ddl.endswith("WHERE status = 'new';")
    with world.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(found.ddl))
    asked.database.engine.dispose()  # EXPLAIN goes by the schema that its connection read last
    with asked.database.reading() as connection:
        assert explain.find_sort_by_group(asked.database, connection, asked) is None


def test_parts_that_may_not_go_are_passed_by_hundreds_at_a_time_and_those_that_may_a_few_rows_each(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = question(world, Leg, per=Leg.tenant)
    world.add(*[Leg(trip=trip, leg=leg, tenant=f"{trip:04}", at=NOON) for trip in range(500) for leg in "ab"])
    looks: list[int] = []
    real = GroupStatements.read_groups

    def counted(self: GroupStatements, connection: Any, after: Any, most: int, each: int) -> Any:
        looks.append(most)
        return real(self, connection, after, most, each)

    monkeypatch.setattr(GroupStatements, "read_groups", counted)
    found = group_passes_for(asked)
    assert found is not None
    for most in (10, 6):  # the second pass knows how many to read
        pages = one_pass(asked, found, 1, lambda value: value == "0490")
        found.end_pass()
        assert [key for page in pages for key in page][:1] == [(490, "a")]
        assert len(looks) <= most
        looks.clear()


def test_rows_without_a_part_take_turns_with_those_that_have_one(world: World) -> None:
    asked = question(world, Leg, per=Leg.tenant)
    world.add(*[Leg(trip=trip, leg="a", tenant=None, at=NOON) for trip in range(5)])
    world.add(*[Leg(trip=10 + trip, leg="a", tenant=f"{trip}", at=NOON) for trip in range(2)])
    met = [key[0] for page in passed(asked, 1) for key in page]
    assert met[:6] == [10, 11, 0, 10, 11, 1]


def test_as_many_rows_of_a_part_are_met_as_may_go_of_it(world: World) -> None:
    asked = question(world, Leg, per=Leg.tenant)
    world.add(*[Leg(trip=trip, leg=leg, tenant=f"{trip}", at=NOON) for trip in range(2) for leg in "abcdefgh"])
    found = group_passes_for(asked)
    assert found is not None
    one_pass(asked, found, 100)
    found.end_pass()
    left = {"0": 3, "1": 0}
    pages = one_pass(asked, found, 100, left_of=lambda values: {value: left[value] for value in values})
    assert pages[0] == [(0, "a"), (0, "b"), (0, "c")]
