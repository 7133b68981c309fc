"""Due times that type-check and would never come, or come at another time: refused where they are declared, with the cure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import aliased

from groundstate import App, DeclarationError, ExternalService, InDoubt, ReactionContext, after
from tests.app.models import Item, Order

DAY = timedelta(days=1)
ANY: Any = 24


def _done(order: Order) -> None:
    order.status = "done"


def _refused(app: App, due: Any, **options: Any) -> str:
    with pytest.raises(DeclarationError) as told:
        app.on(Order, Order.status == "placed", due=due, **options)(_done)
    return str(told.value)


@pytest.mark.parametrize(
    ("due", "words"),
    [
        (datetime(2026, 12, 24, tzinfo=UTC), "a due time is a column of Order"),
        (DAY, "a due time is a column of Order"),
        ("placed_at", "a due time is a column of Order"),
        (text("placed_at"), "a due time is a column of Order"),
        (Order.total, "holds numbers"),
        (Order.tenant, "holds text"),
        (Item.weight, "is not of Order"),
        (aliased(Order).placed_at, "is not of Order"),
        (func.max(Order.placed_at), "is of many rows"),
        (Order.next_at - Order.placed_at, "is a interval|no point in time"),
        (select(func.max(Item.id)).scalar_subquery(), "says nothing of the Order"),
        (Order.gift, "no point in time"),
    ],
)
def test_what_is_no_due_time_of_the_record_is_refused(app: App, due: Any, words: str) -> None:
    said = _refused(app, due)
    assert said.startswith("reaction _done: due=")
    assert any(one in said for one in words.split("|")), said


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: after(Order.placed_at, ANY), "placed_at, delta=24): give a timedelta, for example timedelta(hours=24)"),
        (lambda: after(Order.placed_at, valid_for=timedelta()), "give a timedelta of more than zero"),
        (lambda: after(Order.placed_at, valid_for=ANY), "valid_for=24): give a timedelta of more than zero"),
        (lambda: after(Order.placed_at, timedelta(days=40_000)), "at most 36,525 days"),
        (lambda: after(Order.placed_at, valid_for=timedelta(days=40_000)), "at most 36,525 days"),
    ],
)
def test_a_duration_that_cannot_be_meant_is_refused(make: Any, words: str) -> None:
    with pytest.raises(DeclarationError) as told:
        make()
    assert words in str(told.value)


def test_a_bound_without_an_ending_is_refused_at_the_start_and_an_ending_without_a_bound_at_once(app: App) -> None:
    @app.on(Order, Order.status == "placed", due=after(Order.placed_at, valid_for=DAY))
    def bounded(order: Order) -> None:
        order.status = "done"

    with pytest.raises(DeclarationError, match=r"bounded is valid for 1 day.*declare @bounded.expired"):
        app.check_declarations()

    @bounded.expired
    def _(order: Order, ctx: ReactionContext) -> None:
        order.status = f"{ctx.late_by} late"

    app.check_declarations()
    with pytest.raises(DeclarationError, match=r"has an? expired handler already"):
        bounded.expired(_done)

    @app.on(Order, Order.status == "paid")
    def timeless(order: Order) -> None:
        order.status = "done"

    with pytest.raises(DeclarationError, match="nothing says when it is too late"):
        timeless.expired(_done)


def test_the_occurrence_is_the_due_column_where_nothing_else_is_said(app: App) -> None:
    app.on(Order, Order.status == "placed", due=after(Order.placed_at, DAY), name="column")(_done)
    app.on(Order, Order.status == "placed", due=func.coalesce(Order.next_at, Order.placed_at), name="expression")(_done)
    app.on(Order, Order.status == "placed", due=Order.next_at, occurrence=[Order.day], name="said")(_done)
    told = {name: [one.key for one in spec.occurrence] for name, spec in app.reactions.items()}
    assert told == {"column": ["placed_at"], "expression": ["next_at", "placed_at"], "said": ["day"]}


def test_a_due_time_alone_is_a_condition_and_other_times_are_other_conditions(app: App) -> None:
    app.on(Order, due=Order.next_at, name="alone")(_done)
    for number, due in enumerate([None, Order.placed_at, after(Order.placed_at, DAY), Order.next_at]):
        app.on(Order, Order.status == "placed", due=due, name=f"same {number}")(_done)
    with pytest.raises(DeclarationError, match="same condition as reaction same 2"):
        app.on(Order, Order.status == "placed", due=after(Order.placed_at, timedelta(hours=24)), name="twice")(_done)


def test_a_due_time_made_of_what_is_in_no_key_wants_an_occurrence(app: App, bank: ExternalService) -> None:
    @bank.call(in_doubt=InDoubt.repeat())
    def charge(order: Order) -> str:
        return "x"

    def charged(order: Order, receipt: str) -> None:
        order.tenant = receipt

    made = func.coalesce(Order.notes["due"].as_string(), "")
    with pytest.raises(DeclarationError, match=r"cannot be part of a key: say by occurrence"):
        app.on(Order, Order.status == "placed", due=func.datetime(made), call=charge)(charged)
    app.on(Order, Order.status == "placed", due=func.datetime(made), occurrence=[Order.next_at], call=charge)(charged)
