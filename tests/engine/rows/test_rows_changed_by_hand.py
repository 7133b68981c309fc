"""Rows of our own that somebody deletes, changes or puts back by hand, while a worker lives: no call goes out twice because of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text

from groundstate import ExternalService, IdempotencyKey, InDoubt
from groundstate.engine.call.conclude import OR_CONCLUDED
from groundstate.engine.rows.in_flight import Unclear
from tests.engine.charging import ASK, SAME_KEY, charging
from tests.engine.kit import CALL_LIMIT, HANG_S, QUICK, Gateway, Life, Order, World, ms, until


def test_an_attempt_that_is_put_back_under_its_living_worker_is_in_doubt_and_not_called_again(world: World) -> None:
    gateway = charging(world, ASK)
    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.run("create table put_back as select * from groundstate_attempt")
    gateway.gate.set()
    until(lambda: world.order().status == "paid")
    life.quiet()
    with world.engine.begin() as connection:  # the users' table and ours go back together, as by a restore beneath the worker
        connection.exec_driver_sql("insert into groundstate_attempt select * from put_back")
        connection.exec_driver_sql("update orders set status = 'placed', receipt = null")
    life.sweep()
    until(lambda: world.count(Order.status == "paid") == 1)
    life.quiet()
    assert gateway.called(1) == gateway.done(1) == 1
    assert gateway.asked == [1]
    assert world.attempts() == []


def flown(world: World, gateway: Gateway, step: str) -> Life:
    """A worker whose one call waits for the gate."""
    gateway.plan(1, step)
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    return life


# ---- nobody deleted anything ------------------------------------------------------------------------------------------------------
@contextmanager
def kept_out(world: World) -> Iterator[None]:
    """While it lasts nothing can be written to the order: somebody else writes it just now."""
    with world.engine.connect() as connection:
        connection.execute(text("update orders set receipt = receipt"))
        yield
        connection.rollback()


@pytest.mark.parametrize("policy", [ASK, SAME_KEY], ids=["lookup", "same_key"])
def test_an_outcome_that_waits_for_its_record_beyond_its_calls_time_is_concluded_once(world: World, policy: Any) -> None:
    gateway = charging(world, policy, sync=True, timeout=ms(300))
    life = flown(world, gateway, "done_hang")
    (flight,) = life.worker.components.call_turns._flying.values()
    with kept_out(world):
        gateway.gate.set()
        until(lambda: flight.answered or flight.given_up)
        until(lambda: flight.ends_s is not None and time.monotonic() > flight.ends_s + 0.1)
        life.worker.components.signals.wake.set()
    until(lambda: world.order().status == "paid")
    life.sweep()
    life.quiet()
    assert (world.attempts(), gateway.called(1), gateway.asked) == ([], 1, [])


def test_an_outcome_that_waits_for_its_record_beyond_a_drain_s_end_is_concluded(world: World, caplog: pytest.LogCaptureFixture) -> None:
    gateway = charging(world, ASK)
    life = flown(world, gateway, "done_hang")
    (flight,) = life.worker.components.call_turns._flying.values()
    with ThreadPoolExecutor(1) as pool:
        with kept_out(world):
            gateway.gate.set()
            until(lambda: flight.answered)
            stopping = pool.submit(life.stop, 0.01)
            until(lambda: not life.worker.components.call_turns._flying)
        stopping.result(HANG_S)
    assert (world.order().status, world.attempts(), gateway.asked) == ("paid", [], [])
    assert "in the air" not in caplog.text
    assert "by hand" not in caplog.text


def test_a_second_word_of_a_call_whose_outcome_was_concluded_changes_nothing(world: World) -> None:
    gateway = charging(world, ASK)
    life = flown(world, gateway, "done_hang")
    (flight,) = life.worker.components.call_turns._flying.values()
    gateway.gate.set()
    until(lambda: world.order().status == "paid")
    life.worker.components.call_turns._receive_results([Unclear(flight, "it said something else as well")])
    life.quiet()
    assert (world.attempts(), gateway.asked) == ([], [])


@pytest.mark.parametrize(("policy", "left"), [(InDoubt.repeat(), []), (SAME_KEY, ["held"])], ids=["repeat", "same_key"])
def test_a_call_whose_attempt_an_earlier_calls_late_outcome_concluded_says_so_and_is_no_doubt_under_again(
    world: World, caplog: pytest.LogCaptureFixture, policy: Any, left: list[str]
) -> None:
    calls: list[IdempotencyKey] = []
    ends = [threading.Event(), threading.Event()]

    @ExternalService("bank").call(in_doubt=policy, timeout=CALL_LIMIT, retry=QUICK)
    def charge(_order: Order, key: IdempotencyKey) -> str:
        number = len(calls)
        calls.append(key)
        assert ends[number].wait(HANG_S)
        if number:
            raise RuntimeError("the line went dead")
        return "r1"

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    world.orders(1)
    life = world.worker()
    until(lambda: len(calls) == 1)
    life.lose_lock(notices=False)
    other = world.worker()
    until(lambda: len(calls) == 2)
    ends[0].set()
    until(lambda: world.order().status == "paid")
    ends[1].set()
    other.quiet()
    assert (world.states(), world.order().receipt, len(calls)) == (left, "r1", 2)
    told = [record.getMessage() for record in caplog.records if getattr(record, "event", "") == "attempt_put_back"]
    assert [OR_CONCLUDED in one for one in told] == [True] * len(left)


# ---- deleted while its call is in the air --------------------------------------------------------------------------------------
def charging_many(world: World) -> Gateway:
    """One call for several orders."""
    gateway = world.gateway()
    bank = ExternalService("bank")

    @bank.call_many(size=10, in_doubt=SAME_KEY, retry=QUICK)
    async def charge(orders: Sequence[Order], keys: Sequence[IdempotencyKey]) -> list[str]:
        return [await gateway.act(order.id, key) for order, key in zip(orders, keys, strict=True)]

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    return gateway


def declared(world: World, kind: str) -> Gateway:
    return charging_many(world) if kind == "call_many" else charging(world, SAME_KEY, sync=kind == "sync")


def in_the_air(world: World, kind: str, step: str) -> tuple[Gateway, Life]:
    """One call, which waits for the gate."""
    gateway = declared(world, kind)
    return gateway, flown(world, gateway, step)


@pytest.mark.parametrize("step", ["hang", "done_hang"])
@pytest.mark.parametrize("kind", ["async", "sync", "call_many"])
def test_a_worker_begins_nothing_on_a_record_for_which_its_own_call_flies_and_concludes_it(world: World, kind: str, step: str) -> None:
    gateway, life = in_the_air(world, kind, step)
    world.force("delete from groundstate_attempt")
    for _ in range(3):
        life.sweep()
    assert gateway.called(1) == 1
    assert world.attempts() == []
    gateway.gate.set()
    until(lambda: world.order().status == "paid")
    life.quiet()
    assert gateway.called(1) == gateway.done(1) == 1
    assert world.attempts() == []


def test_an_outcome_of_a_deleted_attempt_whose_handler_fails_is_held_with_it(world: World) -> None:
    def broken(order: Order, outcome: str) -> None:
        raise RuntimeError("a bug in the handler")

    gateway = charging(world, SAME_KEY, handler=broken)
    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.force("delete from groundstate_attempt")
    gateway.gate.set()
    until(lambda: world.states() == ["held"])
    life.quiet()
    assert world.attempt().outcome == '["r1"]'
    assert gateway.called(1) == 1


def test_an_outcome_of_a_deleted_attempt_whose_record_moved_on_is_held_as_the_table_says(world: World) -> None:
    gateway, life = in_the_air(world, "async", "done_hang")
    world.force("delete from groundstate_attempt")
    world.set(status="cancelled")
    gateway.gate.set()
    until(lambda: world.states() == ["held"])
    life.quiet()
    assert (world.attempt().outcome, world.attempt().unsure) == ('["r1"]', False)
    assert world.order().status == "cancelled"


def test_a_call_that_ends_without_an_outcome_after_its_attempt_was_deleted_is_in_doubt_and_not_called_again(world: World) -> None:
    gateway = charging(world, ASK, timeout=ms(300))
    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.force("delete from groundstate_attempt")
    until(lambda: world.order().status == "paid")
    life.quiet()
    assert gateway.called(1) == gateway.done(1) == 1
    assert gateway.asked == [1], "its lookup was asked"


def test_a_call_that_was_surely_not_done_leaves_nothing_and_is_made_again(world: World) -> None:
    gateway = world.gateway()
    bank = ExternalService("bank", not_done=["builtins.ConnectionRefusedError"])

    @bank.call(in_doubt=InDoubt.hold(), retry=QUICK)
    def charge(order: Order, key: IdempotencyKey) -> str:
        if gateway.called(order.id):
            return gateway.act_sync(order.id, key)
        gateway.calls.append((order.id, key))
        assert gateway.gate.wait(20)
        raise ConnectionRefusedError("no route")

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status = "paid"

    world.orders(1)
    life = world.worker()
    until(lambda: gateway.called(1) == 1)
    world.force("delete from groundstate_attempt")
    gateway.gate.set()
    until(lambda: world.order().status == "paid")
    life.quiet()
    assert gateway.done(1) == 1
    assert world.attempts() == []


def test_a_thread_that_was_given_up_keeps_its_record_though_its_doubt_was_deleted(world: World) -> None:
    gateway = charging(world, SAME_KEY, sync=True, timeout=ms(200))
    gateway.plan(1, "hang")
    world.orders(1)
    life = world.worker()
    until(lambda: world.states() == ["doubt"])
    world.force("delete from groundstate_attempt")
    for _ in range(3):
        life.sweep()
    assert gateway.called(1) == 1
    gateway.gate.set()
    until(lambda: world.order().status == "paid")
    life.quiet()
    assert gateway.called(1) == gateway.done(1) == 1


def test_no_other_reaction_and_no_batch_takes_the_record_and_a_fact_goes_on(world: World) -> None:
    gateway, life = _with_others(world)
    world.force("delete from groundstate_attempt")
    for _ in range(2):
        life.sweep()
    until(lambda: world.order().mailed is not None)
    assert world.order().note is None, "a batch of another reaction took it"
    gateway.gate.set()
    until(lambda: world.order().note == "noted")
    life.quiet()
    assert gateway.called(1) == 1


def _with_others(world: World) -> tuple[Gateway, Life]:
    gateway = charging(world, SAME_KEY)

    @world.app.on(Order, Order.note.is_(None))
    def noted(order: Order) -> None:
        order.note = "noted"

    @world.app.on(Order, done_column=Order.mailed)
    def mailed(order: Order) -> None:
        order.mailed = "yes"

    world.there()
    gateway.plan(1, "hang")
    world.add(Order(id=1, note="wait", mailed="wait"))
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.set(note=None, mailed=None)
    return gateway, life


def test_a_fact_is_not_begun_beside_its_own_call(world: World) -> None:
    gateway = world.gateway()
    post = ExternalService("post")

    @post.call(in_doubt=SAME_KEY, retry=QUICK)
    async def send(order: Order, key: IdempotencyKey) -> str:
        return await gateway.act(order.id, key)

    @world.app.on(Order, done_column=Order.mailed, call=send)
    def mailed(order: Order, outcome: str) -> None:
        order.mailed = outcome

    gateway.plan(1, "hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.force("delete from groundstate_attempt")
    for _ in range(3):
        life.sweep()
    assert gateway.called(1) == 1
    gateway.gate.set()
    until(lambda: world.order().mailed == "r1")
    life.quiet()
    assert gateway.called(1) == 1


def test_a_record_whose_call_was_concluded_goes_on_to_its_next_call_in_the_same_turn(world: World) -> None:
    gateway = charging(world, SAME_KEY)

    @gateway.service.call(in_doubt=SAME_KEY, retry=QUICK)
    async def ship(order: Order, key: IdempotencyKey) -> str:
        return await gateway.act(order.id + 100, key)

    @world.app.on(Order, Order.status == "paid", call=ship)
    def shipped(order: Order, outcome: str) -> None:
        order.status = "shipped"

    world.orders(20)
    world.settled()
    assert world.count(Order.status == "shipped") == 20
    assert {gateway.called(number) for number in (*range(1, 21), *range(101, 121))} == {1}


# ---- changed by hand -------------------------------------------------------------------------------------------------------------
CHANGES: dict[str, Any] = {
    "failed": "state = 'failed', next_at = since",
    "failed, unsure no": "state = 'failed', unsure = false, next_at = null",
    "another fence": "call = 12345",
    "another occurrence": "occurrence = 'elsewhere'",
    "another worker": "worker = 77",
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_attempt_that_is_changed_while_its_call_flies_makes_no_second_call(world: World, change: str) -> None:
    gateway, life = in_the_air(world, "async", "hang")
    world.force(f"update groundstate_attempt set {CHANGES[change]}")
    for _ in range(3):
        life.sweep()
    assert gateway.called(1) == 1
    gateway.gate.set()
    until(lambda: gateway.done(1) == 1 and (world.order().status == "paid" or "held" in world.states()))
    life.sweep()
    assert gateway.called(1) == 1


def test_while_its_reaction_is_suspect_a_call_in_the_air_that_the_database_lost_is_listed_as_a_doubt(world: World) -> None:
    gateway, life = in_the_air(world, "async", "done_hang")
    life.worker.incarnation.suspects.add("paid")
    world.force("delete from groundstate_attempt")
    life.sweep()
    until(lambda: world.states() == ["doubt"])
    gateway.gate.set()
    until(lambda: world.order().status == "paid")
    life.quiet()
    assert gateway.called(1) == gateway.done(1) == 1
    assert world.attempts() == []
