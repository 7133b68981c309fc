"""A deploy before its migration: a reaction whose record has a column that the table has not waits for it, by itself and in few words."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from groundstate import ExternalService, InDoubt
from groundstate.engine.call.dispatch import Dispatch
from groundstate.engine.sql import mapping_check
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch import missing_columns
from tests.engine.charging import ASK, charging
from tests.engine.kit import Base, Life, Order, World, until


class Shelves(DeclarativeBase):
    pass


class Box(Shelves):
    __tablename__ = "boxes"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(default="open")
    kind: Mapped[str] = mapped_column(default="box")
    labels: Mapped[list[Label]] = relationship()
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "box"}  # noqa: RUF012  # as SQLAlchemy wants it


class Crate(Box):
    __tablename__ = "crates"
    id: Mapped[int] = mapped_column(ForeignKey("boxes.id"), primary_key=True)
    wood: Mapped[str | None] = mapped_column(default=None)
    __mapper_args__ = {"polymorphic_identity": "crate"}  # noqa: RUF012  # as above


class Label(Shelves):
    __tablename__ = "labels"
    id: Mapped[int] = mapped_column(primary_key=True)
    box_id: Mapped[int] = mapped_column(ForeignKey("boxes.id"))
    words: Mapped[str | None] = mapped_column(default=None)


@pytest.fixture
def shelves(database_url: str) -> Iterator[World]:
    """A fresh world with orders and boxes, on each store."""
    made = World(database_url, Base, Shelves)
    yield made
    made.close()


def before_migration(world: World, table: str = "orders", column: str = "note") -> None:
    """The table as it was before the column came."""
    world.there()
    world.run(f"ALTER TABLE {table} DROP COLUMN {column}")


def migrate(world: World, table: str = "orders", column: str = "note") -> None:
    world.run(f"ALTER TABLE {table} ADD COLUMN {column} VARCHAR")


def place(world: World, *numbers: int, status: str = "placed") -> None:
    for number in numbers:
        world.run("INSERT INTO orders (id, status, round) VALUES (:id, :status, 1)", id=number, status=status)


def packing(world: World) -> None:
    @world.app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"
        order.round += 1


def closing(world: World) -> None:
    @world.app.on(Box, Box.state == "open")
    def closed(box: Box) -> None:
        box.state = "closed"


def lacking(life: Life) -> set[str]:
    return set(life.worker.worker_health().lacking)


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a person reads of it."""
    return [one.event for one in caplog.records if one.levelno >= logging.WARNING and one.event != "condition_scans"]  # type: ignore[attr-defined]  # ours


def test_it_is_said_once_without_a_stack_and_with_the_cure_and_the_others_go_on(shelves: World, caplog: pytest.LogCaptureFixture) -> None:
    packing(shelves)
    closing(shelves)
    before_migration(shelves)
    place(shelves, 1, 2, 3)
    life = shelves.worker()
    until(lambda: lacking(life) == {"packed"})
    shelves.add(Box(id=1), Crate(id=2))
    until(lambda: [shelves.get(Box, number).state for number in (1, 2)] == ["closed", "closed"])
    until(lambda: life.worker.queues[0].postponement.trouble >= 3)  # it was looked again, and again
    (line,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert line.exc_info is None
    assert "note" in line.message
    assert "run your migrations" in line.message
    assert "\n" not in line.message
    assert "note" in life.worker.worker_health().lacking["packed"]
    migrate(shelves)
    until(lambda: shelves.count(Order.status == "packed", Order.round == 2) == 3)
    until(lambda: not lacking(life))
    assert events(caplog) == ["reaction_unfit", "reaction_fits"]
    assert shelves.attempts() == []


def test_it_is_seen_at_the_start_before_the_first_row_is_there(world: World) -> None:
    packing(world)
    before_migration(world)
    life = world.worker()
    until(lambda: lacking(life) == {"packed"})
    migrate(world)
    until(lambda: not lacking(life))
    world.orders(1)
    until(lambda: world.order().status == "packed")


def test_calls_are_not_begun_before_the_migration_and_each_is_made_once_after_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    gateway = charging(world, InDoubt.hold())
    before_migration(world)
    place(world, 1, 2, 3)
    life = world.worker()
    until(lambda: lacking(life) == {"paid"})
    until(lambda: life.worker.queues[0].postponement.trouble >= 2)
    assert gateway.calls == []
    assert world.attempts() == []
    migrate(world)
    until(lambda: world.count(Order.status == "paid") == 3)
    assert [gateway.done(number) for number in (1, 2, 3)] == [1, 1, 1]
    assert events(caplog) == ["reaction_unfit", "reaction_fits"]


def test_an_outcome_in_hand_waits_for_the_column_and_is_concluded_then(world: World, caplog: pytest.LogCaptureFixture) -> None:
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    before_migration(world)
    gateway.gate.set()
    until(lambda: lacking(life) == {"paid"})
    migrate(world)
    until(lambda: world.order().status == "paid")
    assert gateway.called(1) == 1
    until(lambda: events(caplog) == ["reaction_unfit", "reaction_fits"])  # said after the commit


def test_a_doubt_of_the_worker_before_the_deploy_is_settled_after_the_migration(world: World) -> None:
    gateway = charging(world, ASK)
    gateway.plan(1, "done_hang")
    world.orders(1)
    before = world.worker()
    until(lambda: gateway.waiting == 1)
    before.kill()
    before_migration(world)
    life = world.worker()
    until(lambda: lacking(life) == {"paid"})
    migrate(world)
    until(lambda: world.order().status == "paid")
    assert gateway.done(1) == 1


def test_a_failed_try_of_the_worker_before_the_deploy_is_made_after_the_migration(world: World) -> None:
    fails = [True]

    @world.app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        if fails:
            raise ValueError("not yet")
        order.status = "packed"

    world.orders(1)
    before = world.worker()
    until(lambda: world.states() == ["failed"])
    before.stop()
    fails.clear()
    before_migration(world)
    life = world.worker()
    until(lambda: lacking(life) == {"packed"})
    migrate(world)
    world.forward(60)
    until(lambda: world.order().status == "packed")
    until(lambda: world.attempts() == [])


def test_a_new_reaction_whose_condition_names_the_column_is_started_after_the_migration(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    packing(world)
    before_migration(world)

    @world.app.on(Order, Order.note == "please")
    def noted(order: Order) -> None:
        order.note = "noted"

    life = world.worker()
    until(lambda: lacking(life) == {"packed", "noted"})
    migrate(world)
    until(lambda: all(lane.is_enabled for lane in life.worker.queues))
    world.add(Order(id=1, status="done", note="please"))
    until(lambda: world.order().note == "noted")
    assert not any(one.exc_info for one in caplog.records)


def test_a_column_of_a_condition_that_goes_beneath_a_worker_is_told_likewise(world: World, caplog: pytest.LogCaptureFixture) -> None:
    @world.app.on(Order, Order.note == "please")
    def noted(order: Order) -> None:
        order.note = "noted"

    world.there()
    life = world.worker()
    life.quiet()
    world.run("ALTER TABLE orders DROP COLUMN note")
    life.sweep()
    until(lambda: lacking(life) == {"noted"})
    migrate(world)
    until(lambda: not lacking(life))
    world.orders(1, note="please")
    until(lambda: world.order().note == "noted")
    assert events(caplog) == ["reaction_unfit", "reaction_fits"]


def missing(world: World) -> dict[str, str]:
    life = world.worker(start=False)
    life.database.connect()
    with life.database.reading() as connection:
        return mapping_check.describe_missing_names(
            connection, [ConditionQuery(spec, life.database) for spec in world.app.reactions.values()]
        )


def test_every_missing_column_is_told_and_those_of_a_table_that_is_joined(shelves: World) -> None:
    packing(shelves)

    @shelves.app.on(Crate, Crate.state == "open")
    def nailed(crate: Crate) -> None:
        crate.state = "nailed"

    before_migration(shelves)
    assert missing(shelves) == {"packed": "column orders.note is missing"}
    shelves.run("ALTER TABLE orders DROP COLUMN mailed")
    shelves.run("ALTER TABLE crates DROP COLUMN wood")
    assert missing(shelves) == {"packed": "columns orders.mailed, orders.note are missing", "nailed": "column crates.wood is missing"}
    shelves.run("DROP TABLE crates")
    assert missing(shelves)["nailed"] == "table crates is missing"


def test_what_a_call_loads_beside_its_record_is_looked_at_too(shelves: World) -> None:
    post = ExternalService("post")

    @post.call(in_doubt=InDoubt.hold(), load=[selectinload(Box.labels)])
    def send(box: Box) -> str:
        return str(len(box.labels))

    @shelves.app.on(Box, Box.state == "open", call=send)
    def sent(box: Box, _outcome: str) -> None:
        box.state = "sent"

    @shelves.app.on(Box, Box.state == "sent")
    def closed(box: Box) -> None:
        box.state = "closed"

    before_migration(shelves, "labels", "words")
    assert missing(shelves) == {"sent": "column labels.words is missing"}


def test_it_is_not_said_to_be_there_while_no_row_was_loaded_that_needs_it(
    shelves: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = ExternalService("post")

    @post.call(in_doubt=InDoubt.hold(), load=[selectinload(Box.labels)])
    def send(box: Box) -> str:
        return str(len(box.labels))

    @shelves.app.on(Box, Box.state == "open", call=send)
    def sent(box: Box, _outcome: str) -> None:
        box.state = "sent"

    begins, begin_all = [0], Dispatch.begin_calls

    def counted(self: Dispatch, tx: Any, queues: Any, clock: Any) -> Any:
        begins[0] += len(queues)
        return begin_all(self, tx, queues, clock)

    monkeypatch.setattr(Dispatch, "begin_calls", counted)
    look_again = missing_columns.recheck_lacking_queues
    monkeypatch.setattr(missing_columns, "recheck_lacking_queues", lambda _state: False)  # the lane's turn to begin comes before that
    life = shelves.there().worker()
    life.quiet()
    before_migration(shelves, "labels", "words")
    shelves.add(Box(id=1))
    until(lambda: lacking(life) == {"sent"})
    shelves.run("DELETE FROM boxes")
    before = begins[0]
    life.worker.queues[0].rows.note_keys([(1,)])  # as a hint on a row that is gone
    until(lambda: begins[0] > before)
    life.turn()
    assert events(caplog) == ["reaction_unfit"]
    assert lacking(life) == {"sent"}
    monkeypatch.setattr(missing_columns, "recheck_lacking_queues", look_again)
    migrate(shelves, "labels", "words")
    shelves.add(Box(id=1))
    until(lambda: shelves.get(Box, 1).state == "sent")
    assert events(caplog) == ["reaction_unfit", "reaction_fits"]
