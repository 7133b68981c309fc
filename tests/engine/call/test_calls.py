"""Calls to the service: keys, doubt, finds and what an exception says (hazards 1 to 9)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from groundstate import Absent, ExternalService, InDoubt, Retry, Unknown
from groundstate.clock import Clock
from groundstate.engine.rows import in_flight
from groundstate.engine.sql import commit_hooks
from tests.engine.charging import ASK, SAME_KEY, charging
from tests.engine.kit import Gateway, Order, World, ms, until


def test_a_call_is_made_once_and_nothing_of_ours_is_left(world: World) -> None:
    gateway = charging(world, ASK)
    world.orders(150)
    world.settled()
    assert sorted(record for record, _ in gateway.ledger) == list(range(1, 151))
    assert world.count(Order.status == "paid", Order.receipt.is_not(None)) == 150
    assert world.attempts() == []


def test_one_turn_never_begins_two_calls_for_one_record(world: World) -> None:
    gateway = charging(world, InDoubt.hold())

    @world.app.on(Order, Order.status.in_(["placed", "paid"]), Order.note.is_(None), call=_told(gateway), name="noted")
    def noted(order: Order, outcome: str) -> None:
        order.note = outcome

    world.orders(20)
    life = world.worker(wait_for_go=True)
    life.worker.note_commit(_touched(range(1, 21)))  # fresh, and in the backlog of the first sweep as well
    life.worker.begin_work()
    life.quiet()
    assert sorted(record for record, _ in gateway.ledger) == sorted([*range(1, 21), *range(1, 21)])
    assert gateway.overlaps == []
    assert world.attempts() == []


def _told(gateway: Gateway) -> Any:
    @ExternalService("other").call(in_doubt=InDoubt.hold())
    async def tell(order: Order) -> str:
        return await gateway.act(order.id)

    return tell


def _touched(numbers: range) -> commit_hooks.TouchedRecords:
    touched = commit_hooks.TouchedRecords()
    touched.add(Order, [(number,) for number in numbers], None)
    return touched


def test_hazard_1_a_record_that_enters_its_state_again_has_another_key_and_is_charged_again(world: World) -> None:
    gateway = charging(world, ASK, occurrence=[Order.round])
    world.orders(1)
    life = world.worker()
    life.quiet()
    world.set(1, status="placed", round=2)
    life.quiet()
    assert gateway.done(1) == 2
    assert len({key for _, key in gateway.ledger}) == 2
    assert world.order().receipt == "r2"


def test_hazard_2_each_call_of_an_attempt_has_the_same_key_in_each_life(world: World) -> None:
    gateway = charging(world, SAME_KEY)
    gateway.plan(1, "raise", "hang")
    world.orders(1)
    first = world.worker()
    until(lambda: gateway.waiting == 1)
    first.kill()
    world.settled()
    assert gateway.called(1) >= 3
    assert len({key for _, key in gateway.calls}) == 1


def test_hazard_3_a_refused_second_call_does_not_clear_the_doubt_about_the_first(world: World) -> None:
    gateway = charging(world, SAME_KEY, retry=Retry(times=3, first=ms(5), longest=ms(5)))
    told: list[str] = []

    @gateway.reaction.gave_up
    def _(order: Order, failure: object) -> None:
        told.append("gave up")
        order.status = "cancelled"

    gateway.plan(1, "done_raise", "refuse", "refuse", "refuse", "refuse")
    world.orders(1)
    world.worker()
    until(lambda: world.states() == ["held"])
    attempt = world.attempt()
    assert attempt.unsure
    assert told == []
    assert world.order().status == "placed", "the order was cancelled though its first call charged"


def test_hazard_4_an_outcome_of_an_earlier_life_is_not_overwritten_by_a_later_call(world: World) -> None:
    gateway = charging(world, InDoubt.repeat())
    gateway.plan(1, "done_hang", "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    life.lose_lock(notices=False)
    other = world.worker()
    until(lambda: gateway.waiting == 2)
    assert world.attempt().unsure
    gateway.gate.set()
    until(lambda: world.order().status == "paid")
    receipt = world.order().receipt
    life.quiet()
    other.quiet()
    assert world.order().receipt == receipt
    assert world.attempts() == []


def test_hazard_5_absent_is_not_believed_before_the_call_can_no_longer_land(world: World) -> None:
    gateway = charging(world, InDoubt.lookup(settle_after=timedelta(seconds=30)))
    gateway.plan(1, "hang")
    world.orders(1)
    first = world.worker()
    until(lambda: gateway.waiting == 1)
    first.kill()
    second = world.worker()
    until(lambda: len(gateway.asked) >= 1)
    key = gateway.calls[0][1]
    gateway.ledger.append((1, key))  # the first request lands late, after the lookup said Absent
    world.forward(40)
    until(lambda: world.order().status == "paid")
    second.quiet()
    assert gateway.done(1) == 1
    assert gateway.called(1) == 1
    assert world.order().receipt == "r1"


def test_hazard_5_absent_is_believed_after_that_and_the_call_is_made_again(world: World) -> None:
    gateway = charging(world, InDoubt.lookup(settle_after=timedelta(seconds=30)), retry=Retry())
    gateway.plan(1, "hang")
    world.orders(1)
    first = world.worker()
    until(lambda: gateway.waiting == 1)
    first.kill()
    life = world.worker()
    life.quiet()
    assert gateway.called(1) == 1
    world.forward(100)
    life.quiet()
    assert gateway.called(1) == 2
    assert gateway.done(1) == 1
    assert world.order().status == "paid"


def test_hazard_5_a_call_whose_deadline_leaves_no_room_does_not_go_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = charging(world, ASK)
    world.there()
    suspended = True
    looked: list[float] = []

    def since(before: tuple[float, float], _clock: Clock) -> float:
        looked.append(before[0])
        return 60.0 if suspended else 0.0

    monkeypatch.setattr(in_flight, "seconds_since_clocks", since)
    world.orders(1)
    life = world.worker()
    until(lambda: len(looked) >= 2)
    assert gateway.calls == []
    suspended = False
    life.quiet()
    assert gateway.done(1) == 1
    assert world.attempts() == []


def test_hazard_6_the_one_gap_that_no_framework_closes_is_said_where_ask_is_chosen() -> None:
    said = InDoubt.lookup.__doc__ or ""
    assert "suspended" in said
    assert "at most twice" in said


def test_hazard_7_a_thread_past_its_timeout_is_in_doubt_at_once_and_settled_only_when_it_has_ended(world: World) -> None:
    gateway = charging(world, ASK, sync=True, timeout=ms(50))
    gateway.plan(1, "hang")
    world.orders(1)
    life = world.worker()
    until(lambda: world.states() == ["doubt"])
    world.forward(3600)
    life.sweep()
    life.sweep()
    assert gateway.asked == [], "it was asked while the thread could still act"
    gateway.gate.set()
    life.quiet()
    assert gateway.done(1) == 1
    assert world.order().receipt == "r1", "the outcome of the late thread is evidence"
    assert world.attempts() == []


def test_hazard_7_hung_threads_stop_their_own_reaction_and_not_the_worker(world: World) -> None:
    gateway = charging(world, InDoubt.hold(), sync=True, timeout=ms(30), limit=2)

    @world.app.on(Order, Order.status == "other")
    def done(order: Order) -> None:
        order.status = "done"

    for number in range(1, 6):
        gateway.plan(number, "hang")
    world.orders(5)
    life = world.worker()
    until(lambda: world.states().count("doubt") + world.states().count("held") == 2)
    world.add(Order(id=99, status="other"))
    until(lambda: world.order(99).status == "done")
    until(lambda: gateway.waiting == 2)
    life.sweep()
    life.sweep()
    assert gateway.waiting == 2, "more threads hang than the service's limit"


def test_hazard_8_an_outcome_that_comes_though_the_call_was_cancelled_counts(world: World) -> None:
    gateway = world.gateway()
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.hold(), timeout=ms(30))
    async def charge(order: Order) -> str:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            gateway.ledger.append((order.id, ""))
        return "swallowed"

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    world.orders(1)
    world.settled()
    assert world.order().receipt == "swallowed"
    assert world.attempts() == []


def test_hazard_9_only_what_is_listed_says_that_nothing_happened(world: World) -> None:
    gateway = charging(world, InDoubt.hold(), retry=Retry(times=10, first=timedelta(hours=1)))
    gateway.plan(1, "unreachable")  # a ConnectionRefusedError: listed in the service's not_done by its path
    gateway.plan(2, "raise")
    gateway.plan(3, "refuse")
    world.orders(3)
    world.settled()
    by_record = {one.record: one for one in world.attempts()}
    assert (by_record["1"].state, by_record["1"].unsure) == ("failed", False)
    assert (by_record["2"].state, by_record["2"].unsure) == ("held", True)
    assert (by_record["3"].state, by_record["3"].unsure) == ("failed", False)


def test_hazard_9_a_timeout_says_nothing_and_that_a_person_must_decide_is_an_error_in_the_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = charging(world, InDoubt.hold(), timeout=ms(30))
    gateway.plan(1, "done_hang")
    world.orders(1)
    world.settled()
    attempt = world.attempt()
    assert (attempt.state, attempt.unsure, attempt.failures) == ("held", True, 1)
    assert "timed out" in (attempt.error or "")
    held = [one for one in caplog.records if "paid on orders 1 is held now, and waits for a person" in one.getMessage()]
    assert [(one.levelname, vars(one)["event"]) for one in held] == [("ERROR", "attempt_kept")]


def test_absent_to_a_question_that_was_long_on_its_way_is_asked_for_once_more_at_once(world: World) -> None:
    asked, called = [], []
    bank = ExternalService("bank")
    slow = Retry(times=10, first=timedelta(hours=3), longest=timedelta(hours=9))

    @bank.call(in_doubt=InDoubt.lookup(settle_after=timedelta(seconds=30)), timeout=timedelta(seconds=5), retry=slow)
    def charge(order: Order) -> str:
        called.append(order.id)
        if len(called) == 1:
            raise RuntimeError("the line went dead")
        return "r1"

    @charge.lookup
    def _(order: Order) -> str | Absent | Unknown:
        asked.append(order.id)
        if len(asked) == 1:
            world.forward(120)  # asked before it can be believed, and answered after
        return Absent()

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, receipt: str) -> None:
        order.status = "paid"

    world.orders(1)
    world.worker()
    until(lambda: world.states() == ["failed"])
    assert (len(asked), len(called)) == (2, 1), "it is called again by its backoff, though asked for at once"
    world.forward(4 * 3600)
    until(lambda: world.order().status == "paid")
    assert (len(asked), len(called)) == (2, 2)
