"""What an outcome means whose condition or occurrence no longer holds when it comes: "hold", "same" or "drop", or the default."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from groundstate import ExternalService, InDoubt
from groundstate.engine.operate import actions
from groundstate.rules.attempt import State
from tests.engine.charging import ASK, SAME_KEY, charging
from tests.engine.kit import Gateway, Life, Order, World, until
from tests.engine.operate.test_actions import acting, stored

MOVES: list[dict[str, Any]] = [{"round": 2}, {"status": "cancelled"}]
OVERTAKEN = pytest.mark.parametrize("moved", MOVES, ids=["another round", "condition gone"])


def flying(world: World, in_doubt: InDoubt = ASK, **options: Any) -> tuple[Gateway, Life]:
    """A call of round 1 that has acted, and whose answer waits for the gate."""
    gateway = charging(world, in_doubt, occurrence=[Order.round], **options)
    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    return gateway, life


def lands(gateway: Gateway, life: Life) -> None:
    """The answer comes, and everything that follows from it is done."""
    gateway.gate.set()
    life.quiet()
    life.sweep()
    life.quiet()


# ---- "same" ----------------------------------------------------------------------------------------------------------------------
@OVERTAKEN
def test_same_is_written_by_the_ordinary_handler_and_no_second_call_is_made(world: World, moved: dict[str, Any]) -> None:
    gateway, life = flying(world, overtaken="same")
    world.set(1, **moved)
    lands(gateway, life)
    assert (world.order().status, world.order().receipt) == ("paid", "r1")
    assert world.attempts() == []
    assert gateway.called(1) == 1


def test_same_needs_no_progress_and_a_round_that_is_due_after_it_goes_on(world: World) -> None:
    def paid(order: Order, outcome: str) -> None:
        order.receipt = f"{order.receipt or ''}{outcome}"
        if order.receipt != "r1":
            order.status = "paid"

    gateway, life = flying(world, overtaken="same", handler=paid)
    world.set(1, round=2)
    gateway.gate.set()
    until(lambda: world.order().status == "paid")
    life.quiet()
    assert (world.order().receipt, gateway.called(1)) == ("r1r2", 2)
    assert world.attempts() == []


def test_same_whose_handler_raises_is_held_with_its_outcome_and_a_retry_writes_it(world: World) -> None:
    broken = [True]

    def paid(order: Order, outcome: str) -> None:
        if broken:
            raise ValueError("a bug")
        order.status, order.receipt = "paid", outcome

    gateway, life = flying(world, overtaken="same", handler=paid)
    world.set(1, round=2)
    lands(gateway, life)
    one = world.attempt()
    assert (one.state, one.outcome, one.occurrence) == (State.HELD, '["r1"]', "1")
    assert gateway.called(1) == 1
    broken.clear()
    with acting(world) as person:
        assert actions.retry(person, "paid", "1").became == "concluded"
    life.sweep()
    life.quiet()
    assert (world.order().receipt, gateway.called(1)) == ("r1", 1)


def test_same_of_a_deleted_record_is_held(world: World) -> None:
    gateway, life = flying(world, overtaken="same")
    world.run("delete from orders")
    lands(gateway, life)
    assert (world.attempt().state, world.attempt().outcome) == (State.HELD, '["r1"]')


def test_same_of_a_fact_still_writes_that_column_alone(world: World) -> None:
    gateway = world.gateway()

    @ExternalService("mail").call(in_doubt=InDoubt.hold())
    async def send(order: Order) -> str:
        return await gateway.act(order.id)

    @world.app.on(
        Order, Order.status == "placed", call=send, done_column=Order.mailed, occurrence=[Order.round], overtaken="same", name="mailed"
    )
    def mailed(order: Order, outcome: str) -> None:
        order.mailed = outcome
        order.note = "and another column"

    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.set(1, round=2)
    lands(gateway, life)
    one = world.attempt()
    assert one.why is not None
    assert "may write that column only" in one.why
    assert (world.order().note, gateway.called(1)) == (None, 1)


@OVERTAKEN
def test_same_takes_what_a_find_tells_of_a_doubt(world: World, moved: dict[str, Any]) -> None:
    gateway, life = flying(world, overtaken="same")
    life.kill()
    world.set(1, **moved)
    other = world.worker()
    until(lambda: world.order().status == "paid")
    other.quiet()
    assert (world.order().receipt, gateway.called(1)) == ("r1", 1)
    assert world.attempts() == []


def test_same_takes_the_outcome_that_a_person_gives(world: World) -> None:
    gateway = charging(world, InDoubt.hold(), occurrence=[Order.round], overtaken="same")
    world.orders(1, round=2)
    stored(world, occurrence="1", state=State.HELD, unsure=True)
    with acting(world) as person:
        assert actions.settle(person, "paid", "1", outcome='"by hand"').became == "concluded"
    world.settled()
    assert (world.order().receipt, gateway.calls) == ("by hand", [])


def test_same_takes_an_outcome_whose_attempt_is_gone_while_its_worker_kept_its_lock(world: World) -> None:
    gateway, life = flying(world, overtaken="same")
    world.force("delete from groundstate_attempt")
    world.set(1, status="cancelled")
    lands(gateway, life)
    assert (world.order().status, world.order().receipt, gateway.called(1)) == ("paid", "r1", 1)
    assert world.attempts() == []


def test_same_does_not_write_twice_what_another_worker_may_have_concluded(world: World) -> None:
    """The lock was lost, and the adopter's find concluded the call: the late outcome is that same call, and a person compares."""
    written: list[str] = []

    def paid(order: Order, outcome: str) -> None:
        written.append(outcome)
        order.status, order.receipt = "paid", outcome

    gateway, life = flying(world, overtaken="same", handler=paid)
    life.lose_lock(notices=False)
    world.worker()
    until(lambda: world.order().status == "paid")
    gateway.gate.set()
    until(lambda: world.states() == ["held"])
    assert written == ["r1"]
    assert gateway.called(1) == 1


# ---- "drop" ----------------------------------------------------------------------------------------------------------------------
@OVERTAKEN
def test_drop_is_a_line_in_the_log_with_the_outcome_and_nothing_stands(
    world: World, moved: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "groundstate")
    gateway, life = flying(world, overtaken="drop")
    world.set(1, **moved)
    gateway.gate.set()
    until(lambda: any(getattr(one, "event", "") == "outcome_dropped" for one in caplog.records))
    life.quiet()
    (line,) = [one for one in caplog.records if getattr(one, "event", "") == "outcome_dropped"]
    assert '["r1"]' in line.getMessage()
    assert "overtaken='drop'" in line.getMessage()
    assert world.attempts() == []
    assert world.order().receipt in (None, "r2"), "what was dropped was written"


def test_drop_of_an_outcome_that_a_person_gives_says_that_it_is_in_the_log_alone(world: World) -> None:
    charging(world, InDoubt.hold(), occurrence=[Order.round], overtaken="drop")
    world.orders(1, round=2, status="cancelled")
    stored(world, occurrence="1", state=State.HELD, unsure=True)
    with acting(world) as person:
        did = actions.settle(person, "paid", "1", outcome='"by hand"')
    assert (did.became, did.done) == ("deleted", True)
    assert "in the log" in did.words
    assert (world.attempts(), world.order().receipt) == ([], None)


def test_drop_of_a_deleted_record_holds_nothing(world: World) -> None:
    gateway, life = flying(world, overtaken="drop")
    world.run("delete from orders")
    lands(gateway, life)
    assert world.attempts() == []


def test_drop_where_the_attempt_is_gone_holds_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "groundstate")
    gateway, life = flying(world, overtaken="drop")
    world.force("delete from groundstate_attempt")
    world.set(1, status="cancelled")
    lands(gateway, life)
    assert any(getattr(one, "event", "") == "late_outcome_dropped" for one in caplog.records)
    assert world.attempts() == []


# ---- "hold", and the default -----------------------------------------------------------------------------------------------------
@OVERTAKEN
@pytest.mark.parametrize("in_doubt", [ASK, SAME_KEY, InDoubt.hold(), InDoubt.repeat()], ids=["lookup", "same_key", "hold", "repeat"])
def test_hold_is_held_whatever_the_handler_would_write(world: World, in_doubt: InDoubt, moved: dict[str, Any]) -> None:
    def paid(order: Order, outcome: str) -> None:
        order.receipt = outcome  # a fact, which the default would keep

    gateway, life = flying(world, in_doubt, overtaken="hold", handler=paid)
    world.set(1, **moved)
    gateway.gate.set()
    until(lambda: "held" in world.states())
    one = next(one for one in world.attempts() if one.occurrence == "1")
    assert (one.outcome, one.unsure) == ('["r1"]', False)
    assert one.why == "overtaken: its condition or occurrence no longer held, and overtaken='hold' is declared"
    life.stop()
    assert gateway.called(1) == 1 or in_doubt.kind == "repeat"


def test_hold_where_the_attempt_is_gone_is_held_anew_even_where_the_call_may_be_made_twice(world: World) -> None:
    gateway, _ = flying(world, InDoubt.repeat(), overtaken="hold")
    world.force("delete from groundstate_attempt")
    world.set(1, status="cancelled")
    gateway.gate.set()
    until(lambda: world.states() == ["held"])
    assert world.attempt().outcome == '["r1"]'


@OVERTAKEN
def test_where_calling_twice_does_no_harm_an_overtaken_outcome_is_dropped_with_a_line_in_the_log(
    world: World, moved: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "groundstate")
    gateway, life = flying(world, InDoubt.repeat())
    world.set(1, **moved)
    lands(gateway, life)
    (line,) = [one for one in caplog.records if getattr(one, "event", "") == "outcome_dropped"]
    assert "let go under InDoubt.repeat()" in line.getMessage()
    assert world.attempts() == []
    if "round" in moved:
        assert (world.order().receipt, gateway.called(1)) == ("r2", 2), "the next round did not go on"


def test_where_calling_twice_does_no_harm_a_fact_is_written_all_the_same(world: World) -> None:
    def paid(order: Order, outcome: str) -> None:
        order.receipt = outcome

    gateway, life = flying(world, InDoubt.repeat(), handler=paid)
    world.set(1, status="cancelled")
    lands(gateway, life)
    assert (world.order().receipt, world.attempts()) == ("r1", [])


def test_where_calling_twice_does_no_harm_an_outcome_that_is_held_for_a_bug_does_not_keep_the_next_round(world: World) -> None:
    def paid(order: Order, outcome: str) -> None:
        if outcome == "r1":
            raise ValueError("a bug")
        order.status, order.receipt = "paid", outcome

    charging(world, InDoubt.repeat(), occurrence=[Order.round], handler=paid)
    world.orders(1)
    life = world.worker()
    until(lambda: world.states() == ["held"])
    world.set(1, round=2)
    life.sweep()
    until(lambda: world.order().status == "paid")
    assert world.order().receipt == "r2"


def test_an_overtaken_handler_takes_it_where_there_is_one_whatever_the_policy(world: World) -> None:
    for_reaction: list[str] = []
    gateway = charging(world, InDoubt.repeat(), occurrence=[Order.round])

    @gateway.reaction.overtaken
    def _(order: Order, outcome: str) -> None:
        for_reaction.append(outcome)
        order.note = outcome

    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.set(1, status="cancelled")
    lands(gateway, life)
    assert (for_reaction, world.order().note, world.attempts()) == (["r1"], "r1", [])
