"""The demo may end only when each order is at its end or held, as two independent judges see it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from groundstate.demo import database
from groundstate.demo.director import count_unsettled
from groundstate.store import tables


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = database.create_shop_engine(database_url)
    with made.begin() as connection:
        connection.execute(text("create table orders (id integer, status text, receipt text, mailed_at text)"))
        tables.metadata.create_all(connection)
    yield made
    made.dispose()


def order(engine: Engine, status: str, receipt: str | None = None, mailed_at: str | None = None) -> None:
    values = {"status": status, "receipt": receipt, "mailed_at": mailed_at}
    with engine.begin() as connection:
        connection.execute(text("insert into orders values (1, :status, :receipt, :mailed_at)"), values)


def attempt(engine: Engine, reaction: str, state: str, blocks: str | None) -> None:
    statement = (
        "insert into groundstate_attempt (app, reaction, record, occurrence, state, worker, call, call_no, unsure, since, first_at,"
        " deadline, failures, blocks, together) values ('shop', :reaction, '1', '', :state, 1, 1, 1, true, :at, :at, :at, 1, :blocks, 0)"
    )
    values = {"reaction": reaction, "state": state, "blocks": blocks, "at": "2026-01-01 00:00:00.000000"}
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def test_no_orders_are_settled(engine: Engine) -> None:
    assert count_unsettled(engine) == 0


@pytest.mark.parametrize(("status", "receipt", "mailed_at"), [("packed", "ch_1", "now"), ("cancelled", None, None)])
def test_an_order_at_its_end_is_settled(engine: Engine, status: str, receipt: str | None, mailed_at: str | None) -> None:
    order(engine, status, receipt, mailed_at)
    assert count_unsettled(engine) == 0


@pytest.mark.parametrize(
    ("status", "receipt", "mailed_at"),
    [("placed", None, None), ("paid", "ch_1", "now"), ("declined", None, None), ("packed", "ch_1", None)],
)
def test_an_order_half_way_is_not(engine: Engine, status: str, receipt: str | None, mailed_at: str | None) -> None:
    order(engine, status, receipt, mailed_at)
    assert count_unsettled(engine) == 1


def test_a_held_charge_is_settled_as_far_as_it_can_be(engine: Engine) -> None:
    order(engine, "placed")
    attempt(engine, "paid", "held", "orders")
    assert count_unsettled(engine) == 0


def test_a_held_mail_excuses_the_mail_alone(engine: Engine) -> None:
    order(engine, "paid", "ch_1")
    attempt(engine, "mailed", "held", None)
    assert count_unsettled(engine) == 1
    with engine.begin() as connection:
        connection.execute(text("update orders set status = 'packed'"))
    assert count_unsettled(engine) == 0


@pytest.mark.parametrize("state", ["begun", "doubt", "failed"])
def test_an_open_attempt_is_not_settled_even_where_the_order_is(engine: Engine, state: str) -> None:
    order(engine, "packed", "ch_1", "now")
    attempt(engine, "mailed", state, None)
    assert count_unsettled(engine) == 1
