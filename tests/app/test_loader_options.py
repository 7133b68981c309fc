"""`load=` of a call: what is no loader option, or is one of another record, is refused where it is declared."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.orm import aliased, defaultload, joinedload, raiseload, selectinload, undefer, with_loader_criteria

from groundstate import App, DeclarationError, ExternalService, InDoubt
from tests.app.models import Item, Order, Parcel, Rush


def _charge(order: Order) -> str:
    return ""


def _charged(order: Order, outcome: str) -> None:
    order.status = "charged"


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ([Order.items], r"load=\[Order.items\]: that is a relationship: write load=\[selectinload\(Order.items\)\]"),
        (Order.items, r"load=Order.items: that is a relationship: write load=\[selectinload\(Order.items\)\]"),
        ([Order.status], r"load=\[Order.status\]: that is no loader option: give a list of SQLAlchemy's loader options"),
        (["items"], r"load=\['items'\]: that is no loader option"),
        ("items", r"load='items': that is no loader option"),
        ([Order], r"load=\[Order\]: that is no loader option"),
        (Order, r"load=Order: that is no loader option"),
        (None, r"load=None: that is no loader option"),
        ([selectinload(Order.items), "items"], r"load=\['items'\]: that is no loader option"),
        (selectinload(Order.items), r"that is one option: give a list of them, as in load=\[selectinload\(...\)\]"),
        ([[selectinload(Order.items)]], "that is no loader option"),
    ],
)
def test_what_is_no_loader_option_is_refused_where_the_call_is_declared(bank: ExternalService, load: Any, words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        bank.call(in_doubt=InDoubt.repeat(), load=load)(_charge)


@pytest.mark.parametrize(
    ("option", "root"),
    [(selectinload(Item.order), "Item"), (undefer(Parcel.state), "Parcel"), (joinedload(Item.order).selectinload(Order.items), "Item")],
)
def test_options_of_another_record_are_refused_where_the_reaction_is_declared(
    app: App, bank: ExternalService, option: Any, root: str
) -> None:
    call = bank.call(in_doubt=InDoubt.repeat(), load=[option])(_charge)
    words = rf"its call _charge: load= is for {root}, and the record is Order: give loader options of Order"
    with pytest.raises(DeclarationError, match=words):
        app.on(Order, Order.status == "placed", call=call)(_charged)


def test_options_that_no_statement_takes_are_refused_before_a_start(app: App, bank: ExternalService) -> None:
    call = bank.call(in_doubt=InDoubt.repeat(), load=[selectinload(aliased(Order).items)])(_charge)
    app.on(Order, Order.status == "placed", call=call)(_charged)
    with pytest.raises(DeclarationError, match="reaction _charged: load= of its call _charge cannot be loaded with Order: Mapped class"):
        app.check_declarations()


@pytest.mark.parametrize("record", [Order, Rush])
def test_options_of_the_record_and_of_all_are_taken(app: App, bank: ExternalService, record: Any) -> None:
    options = [
        selectinload(Order.items).joinedload(Item.order),
        defaultload(Order.items).undefer(Item.weight),
        with_loader_criteria(Item, Item.packed.is_(None)),
        raiseload("*"),
    ]
    for number, load in enumerate([options, tuple(options), ()]):
        call = bank.call(in_doubt=InDoubt.repeat(), load=load, name=f"charge {number}")(_charge)
        app.on(record, Order.total == number, name=f"charged {number}", call=call)(_charged)
    app.check_declarations()
