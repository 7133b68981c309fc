"""NULL and an empty text are two rounds of an event, and what older code wrote for either stands for both."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import JSON
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import App, DeclarationError, InDoubt, Store
from groundstate.engine.operate import actions
from groundstate.rules import begun_kind
from groundstate.rules.attempt import State
from tests.engine.charging import SAME_KEY, charging
from tests.engine.kit import Order, World
from tests.engine.operate.test_actions import acting, stored


@pytest.mark.parametrize("occurrence", [[Order.note], [Order.round, Order.note]], ids=["alone", "beside another"])
def test_a_text_that_goes_from_null_to_empty_is_another_round_with_a_key_of_its_own(world: World, occurrence: list[Any]) -> None:
    gateway = charging(world, SAME_KEY, occurrence=occurrence)
    world.orders(1)
    world.settled()
    for note in ("", ":empty:", ":null:", None):
        world.set(1, status="placed", note=note)
        world.settled()
    keys = [key for _, key in gateway.ledger]
    assert (len(keys), len(set(keys))) == (5, 4)
    assert keys[0] == keys[4]


def test_a_handler_that_moves_a_round_from_null_to_empty_made_progress(world: World) -> None:
    @world.app.on(Order, Order.status == "placed", occurrence=[Order.note])
    def named(order: Order) -> None:
        if order.note is None:
            order.note = ""
        else:
            order.status = "named"

    world.orders(3)
    world.settled()
    assert world.count(Order.status == "named") == 3
    assert world.attempts() == []


@pytest.mark.parametrize("note", [None, ""])
def test_an_outcome_of_a_round_that_older_code_wrote_as_empty_is_no_overtaken_one(world: World, note: str | None) -> None:
    gateway = charging(world, InDoubt.hold(), occurrence=[Order.note])
    world.orders(1, note=note)
    stored(world, occurrence="", state=State.HELD, unsure=True)
    world.settled()
    assert gateway.calls == []
    with acting(world) as person:
        assert actions.settle(person, "paid", "1", outcome='"by hand"').became == "concluded"
    world.settled()
    assert (world.order().status, world.order().receipt, gateway.calls) == ("paid", "by hand", [])
    assert world.attempts() == []


@pytest.mark.parametrize("note", [None, ""])
def test_a_row_that_older_code_left_as_a_baseline_under_an_empty_round_is_left_alone(world: World, note: str | None) -> None:
    gateway = charging(world, InDoubt.hold(), occurrence=[Order.note])
    world.orders(1, note=note)
    with acting(world) as person:
        left = begun_kind.baseline_as_json([person.queries["paid"].texts.clauses_text], ["note"])
    stored(world, occurrence="", unsure=False, why="baseline", begun_with=left, blocks=None)
    world.settled()
    assert gateway.calls == []
    assert [one.why for one in world.attempts()] == ["baseline"]


class Base(DeclarativeBase):
    pass


class Page(Base):
    __tablename__ = "page"
    id: Mapped[int] = mapped_column(primary_key=True)
    done: Mapped[bool]
    body: Mapped[Any] = mapped_column(JSON)


def test_a_column_of_json_is_refused_as_an_occurrence() -> None:
    app = App("pages", Store("sqlite:///never-opened.db", Base))

    with pytest.raises(DeclarationError, match=r"occurrence=Page\.body: a value of JSON has no one text"):

        @app.on(Page, Page.done.is_(False), occurrence=[Page.body])
        def read(page: Page) -> None:
            page.done = True
