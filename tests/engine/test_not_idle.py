"""`run_until_idle` that is over before all is quiet says what was not, and why: the reactions, the calls, the databases."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import ExternalService, InDoubt
from groundstate.app import lifecycle
from tests.engine.kit import CALL_LIMIT, Base, Order, World
from tests.patience import HANG_S

SOON = timedelta(seconds=1.5)


class Shelves(DeclarativeBase): ...


class Box(Shelves):
    __tablename__ = "boxes"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")
    colour: Mapped[str | None] = mapped_column(default=None)


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url, Base, Shelves)
    yield made
    made.close()


def shut(box: Box) -> None:
    box.status = "shut"


def done(order: Order) -> None:
    order.status = "done"


def said_of(world: World) -> str:
    """What the error says was not idle."""
    with pytest.raises(TimeoutError) as told:
        world.app.run_until_idle(SOON)
    words = str(told.value)
    assert words.startswith("<app shop: ")
    assert f"was not quiet within {SOON}: " in words
    return words.partition(f"{SOON}: ")[2]


def test_a_reaction_that_waits_is_named_with_its_reason_and_those_that_are_done_are_not(world: World) -> None:
    world.app.on(Box, Box.status == "open")(shut)
    world.app.on(Order, Order.status == "placed")(done)
    world.add(Box(id=1), Order(id=1))
    world.run("ALTER TABLE boxes DROP COLUMN colour")
    words = said_of(world)
    assert words.startswith("shut is not carried out: ")
    assert "colour" in words
    assert "run your migrations" in words
    assert "done" not in words
    assert world.order().status == "done"


def test_of_many_a_few_are_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "NOT_IDLE_SHOWN", 2)
    for number in range(4):
        world.app.on(Box, Box.status == "open", Box.id == number, name=f"shut {number}")(shut)
    world.add(*[Box(id=number) for number in range(4)])
    world.run("ALTER TABLE boxes DROP COLUMN colour")
    assert [part.partition(":")[0] for part in said_of(world).split("; ")] == [
        "shut 0 is not carried out",
        "shut 1 is not carried out",
        "and 2 more",
    ]


def test_a_call_in_the_air_is_named_by_its_service(world: World) -> None:
    gate = threading.Event()

    @ExternalService("desk").call(in_doubt=InDoubt.repeat(), timeout=CALL_LIMIT)
    def ask(order: Order) -> str:
        gate.wait(HANG_S)
        return "receipt"

    def answered(order: Order, outcome: str) -> None:
        order.status, order.receipt = "done", outcome

    world.app.on(Order, Order.status == "placed", call=ask)(answered)
    world.add(Order(id=1))
    opens = threading.Timer(SOON.total_seconds() + 1, gate.set)
    opens.start()
    assert said_of(world) == "1 call to desk in the air"
    opens.join()


def test_a_handler_that_is_never_through_is_named(world: World) -> None:
    def ever(order: Order) -> None:
        order.round += 1

    world.app.on(Order, Order.status == "placed", occurrence=[Order.round])(ever)
    world.add(Order(id=1))
    words = said_of(world)
    assert words.startswith(("ever has more to do", "records go round", "ever was carried out a moment ago")), words


def test_one_that_is_quiet_in_time_says_nothing(world: World) -> None:
    world.app.on(Order, Order.status == "placed")(done)
    world.add(Order(id=1))
    rested: Any = world.app.run_until_idle(timedelta(seconds=HANG_S))
    assert (rested.in_doubt, rested.failed, rested.held) == (0, 0, 0)
