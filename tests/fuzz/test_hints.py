"""Hints that nobody would give: keys of any kind, unknown classes, huge counts. They change no final state, and end no worker."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundstate import InDoubt
from groundstate.engine.sql import commit_hooks
from groundstate.engine.sql.commit_hooks import TouchedRecords
from tests.engine.charging import charging
from tests.engine.kit import Order, World, until
from tests.fuzz.conftest import examples


class Stranger:
    """No mapped class."""


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(1, 12), st.floats(), st.text(max_size=5), st.binary(max_size=5),
    st.sampled_from([2**63, -(2**70), "\0", "\ud800", "1", datetime(1, 1, 1, tzinfo=UTC), uuid.UUID(int=5), (1, 2), Order, object()]),
)  # fmt: skip
KEYS = st.lists(VALUES, max_size=3).map(tuple)
NEW = st.one_of(st.none(), st.dictionaries(st.sampled_from(["status", "nothing", "id"]), VALUES, max_size=2))
CLASSES: list[Any] = [Order, Order, Stranger, object, int]
NO_CLASSES: list[Any] = [None, 5, "orders"]


@st.composite
def touched(draw: st.DrawFn) -> TouchedRecords:
    made = TouchedRecords()
    for record in draw(st.lists(st.sampled_from(CLASSES), max_size=3)):
        made.keys.setdefault(record, {}).update(draw(st.dictionaries(KEYS, NEW, max_size=6)))
    made.whole |= set(draw(st.lists(st.sampled_from([*CLASSES, *NO_CLASSES]), max_size=2)))
    return made


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    """Orders that are charged, then packed, by a worker that runs."""
    made = World(database_url)
    charging(made, InDoubt.hold())

    @made.app.on(Order, Order.status == "paid")
    def packed(order: Order) -> None:
        order.status = "packed"

    made.there().worker()
    yield made
    made.close()


@examples(6)
@given(st.lists(touched(), min_size=1, max_size=4))
def test_any_hints_change_no_final_state_and_end_no_worker(world: World, said: list[TouchedRecords]) -> None:
    world.orders_from(world.count() + 1, world.count() + 3)
    for one in said:
        commit_hooks.publish_hint(one)
    until(lambda: world.count(Order.status == "packed") == world.count())
    assert world.attempts() == []
    assert world.lives[0].worker.failure is None
    assert not world.lives[0].ended


def test_a_key_that_is_none_does_not_keep_fresh_rows_of_its_reaction_back(database_url: str) -> None:
    world = World(database_url)

    @world.app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"

    life = world.there().worker()
    try:
        for key in [(object(),), ("x", 1), (2**70,), (), (None,), (float("nan"),), ("\0",)]:
            life.worker.note_commit(TouchedRecords(keys={Order: {key: None}}))
            world.orders_from(world.count() + 1, world.count() + 1)
            until(lambda: world.count(Order.status == "packed") == world.count())
        until(lambda: not any(lane.rows.fresh for lane in life.worker.queues))
    finally:
        world.close()


def test_a_key_of_another_type_that_the_driver_takes_for_one_is_that_record(database_url: str) -> None:
    world = World(database_url)

    @world.app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"

    life = world.there().worker()
    try:
        life.quiet()
        world.run("insert into orders (id, status, round) values (5, 'placed', 1)")
        for key in [(uuid.UUID(int=5),), (5.0,), ("5",)]:
            life.worker.note_commit(TouchedRecords(keys={Order: {key: None}}))
        until(lambda: world.order(5).status == "packed")
        life.quiet()
        assert world.attempts() == []
    finally:
        world.close()


def test_a_million_keys_are_told_as_the_whole_class() -> None:
    made = TouchedRecords()
    made.add(Order, [(number,) for number in range(1_000_000)], None)
    assert made.whole == {Order}
    assert made.keys == {}
