"""A call or a reaction in the place of a plain function: it would run with nothing written down before it, and is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from groundstate import App, DeclarationError, ExternalService, InDoubt, Store, after
from tests.app.models import Base, Order

DAY = timedelta(days=1)


@pytest.fixture
def app() -> App:
    return App("declared already", Store("sqlite:///never-opened.db", Base))


def a_call(bank: ExternalService) -> Any:
    @bank.call(in_doubt=InDoubt.hold())
    def pay(order: Order) -> str:
        return ""

    return pay


def an_async_call(bank: ExternalService) -> Any:
    @bank.call(in_doubt=InDoubt.hold())
    async def pay(order: Order) -> str:
        return ""

    return pay


def a_call_of_many(bank: ExternalService) -> Any:
    @bank.call_many(in_doubt=InDoubt.hold(), size=2)
    def pay(orders: Sequence[Order]) -> Sequence[str]:
        return []

    return pay


def within_another_decorator(bank: ExternalService) -> Any:
    call = a_call(bank)

    @functools.wraps(call)
    def pay(order: Order) -> Any:
        return call(order)

    return pay


def a_part_of_it(bank: ExternalService) -> Any:
    return functools.partial(a_call(bank))


def put(app: App, function: Any) -> dict[str, Callable[[], Any]]:
    """By where a plain function is expected: what gives it there."""
    bank = ExternalService("bank")

    @app.on(Order, due=after(Order.placed_at, DAY, valid_for=DAY))
    def plain(order: Order) -> None: ...

    @app.on(Order, Order.status == "placed", call=a_call(bank))
    def paid(order: Order, outcome: str) -> None: ...

    def sent(order: Order, outcome: str) -> None: ...

    return {
        "on": lambda: app.on(Order, Order.status == "packed", name="stacked")(function),
        "on with a call": lambda: app.on(Order, Order.status == "packed", call=a_call(bank), name="stacked")(function),
        "prepare": lambda: app.on(Order, Order.status == "packed", call=a_call(bank), prepare=function)(sent),
        "gave_up": lambda: plain.gave_up(function),
        "expired": lambda: plain.expired(function),
        "overtaken": lambda: paid.overtaken(function),
        "every": lambda: app.every(DAY, name="daily")(function),
        "call": lambda: bank.call(in_doubt=InDoubt.hold())(function),
        "call_many": lambda: bank.call_many(in_doubt=InDoubt.hold(), size=2)(function),
        "lookup": lambda: a_call(bank).lookup(function),
    }


PLACES = ["on", "on with a call", "prepare", "gave_up", "expired", "overtaken", "every", "call", "call_many", "lookup"]
CALLS = [a_call, an_async_call, a_call_of_many, within_another_decorator, a_part_of_it]


@pytest.mark.parametrize("kind", CALLS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("place", PLACES)
def test_a_call_in_the_place_of_a_function_is_refused(app: App, place: str, kind: Any) -> None:
    with pytest.raises(DeclarationError, match=r"is a call to the service.*Give it by call="):
        put(app, kind(ExternalService("bank")))[place]()


@pytest.mark.parametrize("place", PLACES)
def test_a_reaction_in_the_place_of_a_function_is_refused(app: App, place: str) -> None:
    @app.on(Order, Order.status == "sent")
    def sent_off(order: Order) -> None: ...

    with pytest.raises(DeclarationError, match=r"is a reaction already: give it a function of its own"):
        put(app, sent_off)[place]()
