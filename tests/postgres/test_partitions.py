"""Partitioned tables: reactions with and without calls, rows that move to another partition, and the index that `check` asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import Absent, ExternalService, IdempotencyKey, InDoubt
from tests.engine.charging import ASK
from tests.engine.kit import QUICK, Gateway, World, until
from tests.postgres.pairs import asked
from tests.postgres.test_roles import findings


class Base(DeclarativeBase):
    pass


class Parcel(Base):
    """By its number and its region; `region` is part of the key, as PostgreSQL wants of the column that it is divided by."""

    __tablename__ = "parcels"
    id: Mapped[int] = mapped_column(primary_key=True)
    region: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    receipt: Mapped[str | None] = mapped_column(default=None)


HOW = {
    "list": ("list (region)", ["for values in (1)", "for values in (2)", "default"]),
    "range": ("range (region)", ["for values from (0) to (2)", "for values from (2) to (3)", "default"]),
    "hash": ("hash (id)", [f"for values with (modulus 3, remainder {number})" for number in range(3)]),
}


@pytest.fixture
def world(postgres_url: str) -> Iterator[World]:
    made = World(postgres_url, Base)
    yield made
    made.close()


def divided(world: World, how: str) -> None:
    by, parts = HOW[how]
    columns = "id int, region int, status varchar not null, receipt varchar, primary key (id, region)"
    world.run(f"create table parcels ({columns}) partition by {by}")
    for number, values in enumerate(parts):
        world.run(f"create table parcels_{number} partition of parcels {values}")


def posting(world: World) -> Gateway:
    """Placed ones are posted, by a call; what is posted is closed, without one."""
    gateway = world.gateway()
    post = ExternalService("post")

    @post.call(in_doubt=ASK, retry=QUICK)
    async def send(parcel: Parcel, key: IdempotencyKey) -> str:
        return await gateway.act(parcel.id, key)

    @send.lookup
    def _(parcel: Parcel, key: IdempotencyKey) -> str | Absent:
        answer: str | Absent = gateway.find(parcel.id, key)
        return answer

    @world.app.on(Parcel, Parcel.status == "placed", call=send)
    def posted(parcel: Parcel, outcome: str) -> None:
        parcel.status, parcel.receipt = "posted", outcome

    @world.app.on(Parcel, Parcel.status == "posted")
    def closed(parcel: Parcel) -> None:
        parcel.status = "closed"

    return gateway


def closed_ones(world: World) -> int:
    return int(asked(world.url, "select count(*) from parcels where status = 'closed'"))


@pytest.mark.parametrize("how", HOW)
def test_rows_of_all_partitions_are_carried_out(how: str, world: World) -> None:
    divided(world, how)
    gateway = posting(world)
    world.add(*[Parcel(id=number, region=number % 4) for number in range(1, 61)])
    world.settled()
    assert closed_ones(world) == 60
    assert [gateway.done(number) for number in range(1, 61)] == [1] * 60
    assert world.attempts() == []


def test_rows_that_others_keep_moving_between_partitions_are_all_answered_once(world: World) -> None:
    divided(world, "list")

    @world.app.on(Parcel, Parcel.status == "placed")
    def closed(parcel: Parcel) -> None:
        parcel.status, parcel.receipt = "closed", (parcel.receipt or "") + "x"

    world.add(*[Parcel(id=number, region=1) for number in range(1, 1001)])
    world.worker()
    world.worker()
    for turn in range(20):
        world.run("update parcels set region = 3 - region where id % 20 = :turn", turn=turn)  # while it may be claimed
    until(lambda: closed_ones(world) == 1000)
    assert asked(world.url, "select count(*) from parcels where receipt = 'x'") == 1000
    assert world.attempts() == []


def test_a_row_that_moves_while_its_call_is_in_the_air_is_another_record_and_its_outcome_is_held(world: World) -> None:
    """Its primary key changed: the answer is kept under the old one, and the row under its new key waits for nobody."""
    divided(world, "list")
    gateway = posting(world)
    gateway.plan(1, "done_hang")
    world.add(Parcel(id=1, region=1))
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.run("update parcels set region = 2, status = 'posted' where id = 1")
    gateway.gate.set()
    until(lambda: world.states() == ["held"])
    life.quiet()
    assert [(one.record, one.outcome) for one in world.attempts()] == [("[1,1]", '["r1"]')]
    assert gateway.called(1) == 1
    assert closed_ones(world) == 1


class Moving(Base):
    """The same, mapped by its number alone: so a row stays the same record wherever it lies."""

    __tablename__ = "moving"
    id: Mapped[int] = mapped_column(primary_key=True)
    region: Mapped[int]
    status: Mapped[str] = mapped_column(default="placed")
    receipt: Mapped[str | None] = mapped_column(default=None)


def moving(world: World) -> Gateway:
    """Each handler moves its record to the next partition."""
    gateway = world.gateway()
    post = ExternalService("post")

    @post.call(in_doubt=ASK, retry=QUICK)
    async def send(one: Moving, key: IdempotencyKey) -> str:
        return await gateway.act(one.id, key)

    @send.lookup
    def _(one: Moving, key: IdempotencyKey) -> str | Absent:
        answer: str | Absent = gateway.find(one.id, key)
        return answer

    @world.app.on(Moving, Moving.region == 1, call=send)
    def posted(one: Moving, outcome: str) -> None:
        one.region, one.receipt = 2, outcome

    @world.app.on(Moving, Moving.region == 2)
    def archived(one: Moving) -> None:
        one.region = 3

    return gateway


def test_a_row_that_is_mapped_without_the_column_it_is_divided_by_may_move(world: World) -> None:
    world.run(
        "create table moving (id int, region int, status varchar, receipt varchar, primary key (id, region)) partition by list (region)"
    )
    for region in (1, 2, 3):
        world.run(f"create table moving_{region} partition of moving for values in ({region})")
    gateway = moving(world)
    for number in (1, 2):
        gateway.plan(number, "done_hang")
    world.add(*[Moving(id=number, region=1) for number in range(1, 21)])
    life = world.worker()
    until(lambda: gateway.waiting == 2 and asked(world.url, "select count(*) from moving_3") == 18)
    world.run("update moving set status = 'changed' where id = 1")
    world.run("update moving set region = 3 where id = 2")  # by somebody else, while its call is in the air
    gateway.gate.set()
    until(lambda: asked(world.url, "select count(*) from moving_3 where receipt is not null") == 19 and world.states() == ["held"])
    life.quiet()
    assert [one.record for one in world.attempts()] == ["2"], "only the one whose condition somebody else made false"
    assert [gateway.done(number) for number in range(1, 21)] == [1] * 20


def test_a_handler_without_a_call_may_change_the_partition_that_is_in_the_key(world: World) -> None:
    divided(world, "list")

    @world.app.on(Parcel, Parcel.region == 1)
    def moved(parcel: Parcel) -> None:
        parcel.region = 2

    world.add(*[Parcel(id=number, region=1) for number in range(1, 11)])
    world.settled()
    assert asked(world.url, "select count(*) from parcels_1") == 10
    assert world.attempts() == []


def test_a_handler_that_takes_an_outcome_cannot_change_the_partition_that_is_in_the_key(world: World) -> None:
    divided(world, "list")
    gateway = world.gateway()
    post = ExternalService("post")

    @post.call(in_doubt=InDoubt.repeat(), retry=QUICK)
    async def send(parcel: Parcel, key: IdempotencyKey) -> str:
        return await gateway.act(parcel.id, key)

    @world.app.on(Parcel, Parcel.region == 1, call=send)
    def posted(parcel: Parcel, outcome: str) -> None:
        parcel.region = 2

    world.add(Parcel(id=1, region=1))
    life = world.worker()
    until(lambda: world.states() == ["held"])
    life.quiet()
    assert world.attempt().outcome == '["r1"]'
    assert gateway.called(1) == 1


@pytest.mark.parametrize("deep", [False, True])
def test_the_index_that_check_asks_for_can_be_made_part_by_part(world: World, deep: bool) -> None:
    divided(world, "list")
    if deep:
        world.run("create table parcels_3 partition of parcels for values in (3) partition by hash (id)")
        world.run("create table parcels_3_0 partition of parcels_3 for values with (modulus 1, remainder 0)")
    posting(world)
    world.there()
    missing = [one for one in findings(world) if one.kind == "index"]
    assert [one.words.partition("(")[0].rpartition(" table ")[2].strip() for one in missing] == ["parcels", "parcels"]
    with world.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for one in missing:
            assert one.cure is not None
            for statement in one.cure.splitlines():
                connection.execute(text(statement))
    assert [one.cure for one in findings(world) if one.kind == "index"] == []
    whole: Any = asked(world.url, "select bool_and(indisvalid) from pg_index where indrelid = 'parcels'::regclass")
    assert whole is True, "an index whose parts were not all attached"
