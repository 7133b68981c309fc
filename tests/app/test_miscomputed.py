"""Interval arithmetic, and what else SQLite computes wrongly, is refused wherever an app takes SQL: when declared, or at the start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import selectinload, with_loader_criteria

from groundstate import App, DeclarationError, ExternalService, InDoubt, InOrder, Store, every_child
from groundstate.cli import pending
from tests.app.models import Base, Item, Order

HOUR = timedelta(hours=1)
LATE: Any = Order.placed_at < func.now() - HOUR


def _done(order: Order) -> None:
    order.status = "done"


def _called(order: Order, outcome: str) -> None:
    order.status = outcome


def _loading(*options: Any) -> Any:
    @ExternalService("bank").call(in_doubt=InDoubt.repeat(), load=options)
    def send(order: Order) -> str:
        return "done"

    return send


PLACES: dict[str, Callable[[App], Any]] = {
    "a clause": lambda app: app.on(Order, LATE)(_done),
    "one of several": lambda app: app.on(Order, Order.status == "placed", LATE)(_done),
    "an or": lambda app: app.on(Order, (Order.status == "late") | LATE)(_done),
    "not": lambda app: app.on(Order, ~LATE)(_done),
    "every_child": lambda app: app.on(Order, every_child(Order.items, Item.packed.is_(True), LATE))(_done),
    "any": lambda app: app.on(Order, Order.items.any(Order.placed_at + HOUR < func.now()))(_done),
    "a subquery": lambda app: app.on(Order, select(func.count(Item.id)).where(Item.order_id == Order.id, LATE).scalar_subquery() > 0)(
        _done
    ),
    "due": lambda app: app.on(Order, due=Order.placed_at + HOUR)(_done),
    "load": lambda app: app.on(Order, Order.status == "x", call=_loading(selectinload(Order.items.and_(LATE))))(_called),
    "load by criteria": lambda app: app.on(Order, Order.status == "x", call=_loading(with_loader_criteria(Order, LATE)))(_called),
    "at_rest": lambda app: app.at_rest(Order, LATE),
    "json in a clause": lambda app: app.on(Order, Order.notes["paid"] == 1)(_done),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("given", ["a URL", "an engine", "a shard"])
def test_what_sqlite_computes_wrongly_is_refused_in_each_place_when_it_is_declared(place: str, given: str) -> None:
    url = "sqlite:///never-opened.db"
    stores = {"a URL": Store(url, Base), "an engine": Store(create_engine(url), Base), "a shard": Store.shards([url], Base)}
    with pytest.raises(DeclarationError, match=r"on SQLite .*: (write|say)"):
        PLACES[place](App("declared", stores[given]))


@pytest.mark.parametrize("place", PLACES)
def test_on_postgresql_all_of_it_is_right(place: str) -> None:
    PLACES[place](App("declared", Store("postgresql://nobody@nowhere/nothing", Base)))


@pytest.mark.parametrize("place", PLACES)
def test_where_the_store_is_known_at_the_start_alone_it_is_refused_there(tmp_path: Path, place: str) -> None:
    app = App("declared", Store(lambda: f"sqlite:///{tmp_path}/late.db", Base))
    PLACES[place](app)
    if place == "at_rest":  # which `pending --states` alone asks
        app.init(tables=True)
    with pytest.raises(DeclarationError, match="on SQLite"):
        _ = pending.read_pending(app, app.stores[0], states=True) if place == "at_rest" else app.init(tables=True, accept=True)


def test_until_refuses_it_when_it_asks(tmp_path: Path) -> None:
    app = App("asked", Store(f"sqlite:///{tmp_path}/asked.db", Base))
    app.init(tables=True)
    with pytest.raises(DeclarationError, match=r"wait_for\(...\): on SQLite"):
        asyncio.run(app.wait_for(Order, 1, LATE, timeout=HOUR))


@pytest.mark.parametrize("option", ["occurrence", "in_order", "order", "per"])
def test_what_takes_columns_takes_no_expression(app: App, option: str) -> None:
    one = Order.placed_at - HOUR
    options: dict[str, dict[str, Any]] = {
        "occurrence": {"occurrence": [one]},
        "in_order": {"in_order": InOrder(one)},
        "order": {"in_order": InOrder(Order.tenant, one)},
        "per": {"per": one},
    }
    with pytest.raises(DeclarationError, match="is no column of Order"):
        app.on(Order, Order.status == "x", call=_loading(), **options[option])(_called)
