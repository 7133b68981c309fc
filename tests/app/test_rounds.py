"""Where a due column would tell one round of a call from the next, and its handler does not write it, the author says what is meant."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, update
from sqlalchemy.orm import Session

from groundstate import App, DeclarationError, ExternalService, InDoubt, after
from groundstate.app import handler_writes
from tests.app import models
from tests.app.models import Order


@pytest.fixture
def charge(bank: ExternalService) -> Any:
    @bank.call(in_doubt=InDoubt.hold())
    def charge(order: Order) -> str:
        return "x"

    return charge


def moves_the_status(order: Order, receipt: str) -> None:
    order.status = receipt


def moves_the_due_column(order: Order, receipt: str) -> None:
    order.next_at = None


def test_a_due_column_that_the_handler_does_not_write_wants_an_occurrence_and_the_cure_is_said(app: App, charge: Any) -> None:
    with pytest.raises(DeclarationError) as told:
        app.on(Order, Order.status == "placed", due=Order.next_at, call=charge)(moves_the_status)
    words = str(told.value)
    assert words.startswith("reaction moves_the_status: due=Order.next_at tells one round from the next")
    for cure in ("occurrence=()", "occurrence=[Order.next_at]", "the columns by which you tell"):
        assert cure in words
    assert app.reactions == {}


def test_each_cure_is_what_it_says(app: App, charge: Any) -> None:
    app.on(Order, Order.status == "a", due=Order.next_at, call=charge, occurrence=(), name="once")(moves_the_status)
    app.on(Order, Order.status == "b", due=Order.next_at, call=charge, occurrence=[Order.next_at], name="each time")(moves_the_status)
    app.on(Order, Order.status == "c", due=Order.next_at, call=charge, occurrence=[Order.day], name="by day")(moves_the_status)
    app.on(Order, Order.status == "d", due=Order.next_at, call=charge, name="moved on")(moves_the_due_column)
    told = {name: [one.key for one in spec.occurrence] for name, spec in app.reactions.items()}
    assert told == {"once": [], "each time": ["next_at"], "by day": ["day"], "moved on": ["next_at"]}


def test_a_fact_writes_its_own_column_alone_so_that_it_must_be_said(app: App, charge: Any) -> None:
    def mailed(order: Order, receipt: str) -> None:
        order.mailed_at = None

    with pytest.raises(DeclarationError, match="occurrence="):
        app.on(Order, Order.status == "placed", due=Order.next_at, call=charge, done_column=Order.mailed_at)(mailed)
    app.on(Order, Order.status == "placed", due=Order.next_at, call=charge, done_column=Order.mailed_at, occurrence=())(mailed)


def test_without_a_call_and_for_an_expression_nothing_must_be_said(app: App, charge: Any) -> None:
    def done(order: Order) -> None:
        order.status = "done"

    app.on(Order, Order.status == "placed", due=Order.next_at)(done)
    app.on(Order, Order.status == "a", due=after(Order.placed_at), call=charge, name="after")(moves_the_status)
    app.on(Order, Order.status == "b", due=func.coalesce(Order.next_at, Order.placed_at), call=charge, name="expression")(moves_the_status)
    assert [one.key for one in app.reactions["done"].occurrence] == ["next_at"]


# ---- what a handler is seen to write ---------------------------------------------------------------------------------------------
class Timer:
    """A record with all the ways in which its column may be set; it need not be mapped to be looked at."""

    due_at: Any
    other: Timer

    @property
    def wakes(self) -> Any:
        return self.due_at

    @wakes.setter
    def wakes(self, at: Any) -> None:
        self.due_at = at

    @property
    def name(self) -> str:
        return ""

    @name.setter
    def name(self, name: str) -> None: ...

    def sleep(self) -> None:
        self.due_at = None

    def look(self) -> None:
        str(self.due_at)


def helper(number: int, timer: Timer) -> None:
    timer.due_at = number


def helper_that_reads(timer: Timer) -> None:
    str(timer.due_at)


def decorated(function: Callable[..., None]) -> Callable[..., None]:
    def wrapper(*given: Any, **supplied: Any) -> None:
        function(*given, **supplied)

    return wrapper


def assigns(one: Timer) -> None:
    one.due_at = 1


def adds(one: Timer) -> None:
    one.due_at += 1


def in_a_tuple(one: Timer) -> None:
    one.name, one.due_at = "x", 1


def in_a_branch(one: Timer) -> None:
    if one.name:
        one.due_at = None


def under_another_name(one: Timer) -> None:
    timer = one
    timer.due_at = 1


def by_setattr(one: Timer) -> None:
    setattr(one, "due_at", 1)  # noqa: B010  # what is tested


def by_its_method(one: Timer) -> None:
    one.sleep()


def by_a_property(one: Timer) -> None:
    one.wakes = 1


def by_a_function(one: Timer) -> None:
    helper(3, one)


def by_an_update(one: Order, session: Session) -> None:
    session.execute(update(Order).values(due_at=1))


@decorated
def by_what_is_decorated(one: Timer) -> None:
    one.due_at = 1


class CalledObject:
    def __call__(self, one: Timer) -> None:
        one.due_at = 1


def partly(_number: int, one: Timer) -> None:
    one.due_at = 1


def reads(one: Timer) -> None:
    str(one.due_at)


def writes_that_of_another_record(one: Timer) -> None:
    one.other.due_at = 1


def writes_another_column(one: Timer) -> None:
    one.name = "x"


def asks_a_method(one: Timer) -> None:
    one.look()


def asks_a_function(one: Timer) -> None:
    helper_that_reads(one)


def goes_round(one: Timer) -> None:
    goes_round(one)


def makes_another_record(_one: Timer, session: Session) -> None:
    session.add(models.Item(due_at=1))


WRITES: list[Any] = [
    assigns, adds, in_a_tuple, in_a_branch, under_another_name, by_setattr, by_its_method, by_a_property, by_a_function, by_an_update,
    by_what_is_decorated, CalledObject(), functools.partial(partly, 1),
]  # fmt: skip
DOES_NOT: list[Any] = [
    reads, writes_that_of_another_record, writes_another_column, asks_a_method, asks_a_function, goes_round, makes_another_record, print,
]  # fmt: skip


def name_of(one: Any) -> str:
    return str(getattr(one, "__name__", type(one).__name__))


@pytest.mark.parametrize("handler", WRITES, ids=name_of)
def test_a_handler_that_writes_the_column_is_seen_to(handler: Any) -> None:
    assert handler_writes.handler_writes_attribute(handler, "due_at", Timer)


@pytest.mark.parametrize("handler", DOES_NOT, ids=name_of)
def test_a_handler_that_does_not_write_the_column_is_seen_to(handler: Any) -> None:
    assert not handler_writes.handler_writes_attribute(handler, "due_at", Timer)


@pytest.mark.parametrize("handler", WRITES, ids=name_of)
def test_what_is_accepted_where_the_source_can_be_read_is_accepted_where_it_cannot(handler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler_writes, "_parse_definition", lambda _function: None)
    assert handler_writes.handler_writes_attribute(handler, "due_at", Timer)


@pytest.mark.parametrize("handler", [reads, writes_another_column, asks_a_method, asks_a_function], ids=name_of)
def test_without_source_a_handler_that_sets_no_such_attribute_is_seen_to(handler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler_writes, "_parse_definition", lambda _function: None)
    assert not handler_writes.handler_writes_attribute(handler, "due_at", Timer)


def test_a_lambda_within_a_call_is_read_by_its_code() -> None:
    assert handler_writes.handler_writes_attribute((lambda one: setattr(one, "due_at", 1)), "due_at", Timer)
    assert not handler_writes.handler_writes_attribute((lambda one: setattr(one, "name", 1)), "due_at", Timer)
