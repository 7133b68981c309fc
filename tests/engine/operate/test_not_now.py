"""What is not carried out now though its condition holds, and what `why` says then."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from groundstate import ExternalService, InDoubt, Rate
from groundstate.engine.call import limiter
from groundstate.engine.operate import obstacles
from groundstate.engine.rows import worker_report
from groundstate.engine.sql import lock_waits
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.rules import circuit_breaker
from tests.engine.call.test_limiter import Provider, Tenants, deliveries, delivering
from tests.engine.charging import charging
from tests.engine.kit import HANG_S, Order, World, until
from tests.engine.looking import (
    SLOW,
    another_that_lives,
    answer,
    printed,
    rows,
    said,
    standing_still,
    tenants_rows,
)

pytestmark = pytest.mark.usefixtures("looks_often")


@pytest.fixture
def tenants(database_url: str) -> Iterator[World]:
    made = World(database_url, Tenants)
    yield made
    made.close()


# ---- workers that begin nothing --------------------------------------------------------------------------------------------------
def test_a_worker_that_was_started_with_held_says_so_and_why_does_not_promise_what_it_does_not_do(world: World) -> None:
    gateway = charging(world, InDoubt.repeat())
    world.orders(1)
    life = world.worker(wait_for_go=True)
    until(lambda: said(world).waits_for_go)
    assert answer(world, 1).next == "waits for a go: those that live were started with --wait-for-go, and were not told to go yet"
    assert "lives, and waits for a go (--wait-for-go)" in printed(world)
    life.worker.begin_work()
    until(lambda: gateway.done(1) == 1)
    until(lambda: not said(world).waits_for_go)


def test_a_worker_that_drains_for_long_says_so(world: World) -> None:
    gateway = charging(world, InDoubt.repeat())
    gateway.plan(1, "hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting)
    life.drain()
    until(lambda: said(world).drains)
    world.orders_from(2, 2)
    assert answer(world, 2).next == "waits for a worker: those that live were told to stop, and begin nothing new"
    assert "lives, and drains" in printed(world)


def test_a_worker_whose_handler_does_not_end_carries_out_nothing_else_which_postgresql_tells(
    postgres_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_waits, "LONG", timedelta())
    gate, entered = threading.Event(), threading.Event()

    @postgres_world.app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        entered.set()
        assert gate.wait(HANG_S)
        order.status = "packed"

    postgres_world.orders(1)
    postgres_world.worker()
    assert entered.wait(HANG_S)
    postgres_world.orders_from(2, 2)
    found = answer(postgres_world, 2).next
    with another_that_lives(postgres_world):
        beside = answer(postgres_world, 2).next
    gate.set()
    assert found.startswith("waits for pid ")
    assert "whose handler has run since then, and waits for something that is not the database), in one transaction since " in found
    assert beside == "carried out now"


# ---- no room -------------------------------------------------------------------------------------------------------------------
def test_a_record_for_which_no_slot_of_the_limit_is_free_is_not_said_to_be_carried_out_now(world: World) -> None:
    gateway = charging(world, InDoubt.repeat(), limit=1)
    gateway.plan(1, "hang")
    world.orders(1)
    world.worker()
    until(lambda: gateway.waiting)
    world.orders_from(2, 2)
    assert answer(world, 2).next == "waits for a free slot: as many calls to bank as may be, 1, are under way"


def test_without_a_limit_each_worker_makes_so_many_calls_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter, "AT_ONCE", 1)
    monkeypatch.setattr(obstacles, "AT_ONCE", 1)
    gateway = charging(world, InDoubt.repeat())
    gateway.plan(1, "hang")
    world.orders(1)
    world.worker()
    until(lambda: gateway.waiting)
    world.orders_from(2, 2)
    assert answer(world, 2).next.startswith("waits until a call to bank ends: each worker has 1 of them under way")
    with another_that_lives(world):
        assert answer(world, 2).next == "carried out now"


def test_a_record_for_which_the_rate_has_no_token_waits_until_one_is_free(tenants: World) -> None:
    delivering(tenants, ExternalService("hooks", rate=Rate(1, timedelta(hours=1))), Provider())
    deliveries(tenants, 1)
    tenants.worker()
    until(
        lambda: (
            rows(tenants, "select status from deliveries") == [("delivered",)]
            or rows(tenants, "select count(*) from groundstate_rate") == [(1,)]
        )
    )
    deliveries(tenants, 1, first=100)
    found = answer(tenants, tenants_rows(tenants)[0].id, table="deliveries")
    assert found.next == "waits for the rate of hooks, 1 in 3600 s: the next is free"
    assert found.next_at is not None
    assert timedelta(minutes=45) < found.next_at - datetime.now(UTC) < timedelta(minutes=75)


# ---- reactions that wait as a whole ----------------------------------------------------------------------------------------------
def _packed(world: World, fails_to: int = 0) -> None:
    @world.app.on(Order, Order.status == "placed", retry=SLOW)
    def packed(order: Order) -> None:
        if order.id <= fails_to:
            raise RuntimeError("no")
        order.status = "packed"


def test_a_handler_that_fails_for_many_records_in_a_row_is_told_as_paused(world: World) -> None:
    _packed(world, 1_000)
    world.orders(30)
    life = world.worker()
    until(lambda: said(world).failing)
    with standing_still(life):
        world.orders_from(900, 900)
        found = answer(world, 900)
    assert found.next == "waits, since its handler failed for 20 or more records in a row: one at a time probes it"
    assert found.next_at is not None
    assert "its handler failed for 20 or more records in a row" in printed(world)


def test_once_such_a_pause_is_over_a_record_is_carried_out_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit_breaker, "FIRST_S", 0.001)
    _packed(world, 1_000)
    world.orders(30)
    life = world.worker()
    until(lambda: said(world).failing)
    with standing_still(life):
        world.orders_from(900, 900)
        found = answer(world, 900)
    assert found.next == "carried out now, one record at a time, since its handler failed for 20 or more records in a row"


def _lacks_for_ever(lane: WorkQueue) -> None:
    lane.postponement.note_lack("a key of it leads nowhere")
    lane.postponement.postpone_until(math.inf)


def _met_five_errors(lane: WorkQueue) -> None:
    for _ in range(5):
        lane.postpone_after_error()


def _is_slow(lane: WorkQueue) -> None:
    lane.rows.move_query_aside()


@pytest.mark.parametrize(
    ("of_the_lane", "words", "told"),
    [
        (_met_five_errors, "waits, since it could not be carried out at all the last times", ": it could not be carried out at all"),
        (
            _lacks_for_ever,
            "not carried out: a key of it leads nowhere",
            " is not carried out: a key of it leads nowhere",
        ),
        (_is_slow, "carried out when it is found: its condition takes long to ask", ": its condition takes long"),
    ],
)
def test_a_reaction_that_a_worker_cannot_carry_out_as_others_says_why(
    world: World, of_the_lane: Callable[[WorkQueue], None], words: str, told: str
) -> None:
    _packed(world)
    life = world.worker()
    life.quiet()
    (lane,) = life.worker.queues
    lane.postponement.wait_for_acceptance()  # so that nothing comes of it, and what is said stays
    of_the_lane(lane)
    until(lambda: said(world) != worker_report.NOTHING)
    world.orders(1)
    assert answer(world, 1).next.startswith(words)
    assert f"packed{told}" in printed(world)
