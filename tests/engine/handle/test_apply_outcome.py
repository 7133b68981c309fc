"""What becomes of an outcome: overtaken, held, coming late, given up (hazards 10 to 16, 56 to 61, 65)."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from groundstate import DeclarationWarning, ExternalService, Failure, InDoubt, Retry, StateRefusedError
from groundstate.engine.operate import actions
from groundstate.engine.rows import outcome_json
from groundstate.store import connect
from tests.engine.charging import ASK, SAME_KEY, charging
from tests.engine.kit import QUICK, Gateway, Order, World, ms, until


def test_hazard_10_an_outage_of_the_gateway_does_not_write_an_attempt_for_each_record(world: World) -> None:
    gateway = charging(world, ASK, limit=5)
    for number in range(1, 201):
        gateway.plan(number, "refuse")
    world.orders(200)
    life = world.worker()
    until(lambda: life.pauses)
    life.sweep()
    assert len(world.attempts()) <= 15
    gateway.plans.clear()
    until(lambda: world.count(Order.status == "paid") == 200)
    assert len(gateway.ledger) == 200


def test_hazard_11_an_outcome_waits_in_memory_while_it_cannot_be_written_and_nothing_new_is_begun(world: World) -> None:
    gateway = charging(world, InDoubt.hold(), limit=1)
    gateway.plan(1, "done_hang")
    world.orders(3)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    life.broken = True
    gateway.gate.set()
    until(lambda: life.in_trouble)
    assert len(gateway.calls) == 1, "a call was begun while conclusions are stuck"
    life.broken = False
    life.quiet()
    assert world.count(Order.status == "paid") == 3
    assert len(gateway.ledger) == 3
    assert world.attempts() == []


def _cut_at(database: Any, begins: str, times: int) -> list[str]:
    """The line to the server goes dead without a word just before such statements, as a proxy's does; returns those that it met."""
    cut: list[str] = []

    def before(connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith(begins) and len(cut) < times:
            cut.append(statement)
            with socket.socket(fileno=os.dup(connection.connection.driver_connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)

    event.listen(database.engine, "before_cursor_execute", before)
    return cut


@pytest.mark.parametrize("at", ["UPDATE orders", "DELETE FROM groundstate_attempt"])
def test_a_line_that_is_cut_while_an_outcome_is_concluded_is_no_reason_to_hold_it(postgres_world: World, at: str) -> None:
    gateway = charging(postgres_world, ASK)
    life = postgres_world.worker()
    cut = _cut_at(life.database, at, times=4)  # together, each reaction apart, each record alone, and once more
    postgres_world.orders(1)
    until(lambda: postgres_world.order().status == "paid" or "held" in postgres_world.states())
    life.stop()
    assert len(cut) == 4
    assert postgres_world.attempts() == []
    assert postgres_world.order().status == "paid"
    assert len(gateway.ledger) == 1


def test_a_line_that_is_cut_while_a_person_settles_is_no_reason_to_hold_it(postgres_world: World) -> None:
    charging(postgres_world, InDoubt.hold()).plan(1, "raise")
    postgres_world.orders(1)
    postgres_world.settled()
    database, make_lives, _ = connect.open_store(postgres_world.app.stores[0].settings())
    cut = _cut_at(database, "DELETE FROM groundstate_attempt", times=1)
    try:
        person = actions.build_person("shop", list(postgres_world.app.reactions.values()), database, make_lives(), by="ada")
        actions.settle(person, "paid", "1", outcome='"r0"')
    finally:
        database.close()
    assert cut
    assert postgres_world.attempts() == []
    assert postgres_world.order().receipt == "r0"


def _in_doubt_then_cancelled(world: World, gateway: Gateway) -> None:
    """A charge was made, its answer was lost with the worker, and a person cancels the order meanwhile."""
    gateway.plan(1, "done_hang")
    world.orders(1)
    first = world.worker()
    until(lambda: gateway.waiting == 1)
    first.kill()
    world.set(1, status="cancelled")


def test_hazard_12_what_a_find_tells_of_a_cancelled_order_goes_to_overtaken(world: World) -> None:
    gateway = charging(world, ASK)

    @gateway.reaction.overtaken
    def _(order: Order, outcome: str) -> None:
        order.note = f"refund {outcome}"

    _in_doubt_then_cancelled(world, gateway)
    world.settled()
    assert world.order().note == "refund r1"
    assert world.order().status == "cancelled"
    assert world.attempts() == []


def test_hazard_12_without_overtaken_it_is_held_with_the_outcome(world: World) -> None:
    gateway = charging(world, ASK)
    _in_doubt_then_cancelled(world, gateway)
    world.settled()
    attempt = world.attempt()
    assert (attempt.state, attempt.unsure, attempt.outcome) == ("held", False, '["r1"]')
    assert world.order().status == "cancelled"


def test_hazard_13_no_other_reaction_takes_a_record_whose_charge_is_in_the_air_but_a_fact(world: World) -> None:
    gateway = charging(world, InDoubt.hold())

    with pytest.warns(DeclarationWarning, match="the first to run takes the record"):

        @world.app.on(Order, Order.status == "placed", Order.note == "late")
        def cancelled(order: Order) -> None:
            order.status = "cancelled"

    @world.app.on(Order, Order.note == "late", done_column=Order.mailed)
    def mailed(order: Order) -> None:
        order.mailed = "told"

    gateway.plan(1, "hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.set(1, note="late")
    until(lambda: world.order().mailed == "told")
    life.sweep()
    life.sweep()
    assert world.order().status == "placed"
    gateway.gate.set()
    life.quiet()
    assert world.order().status == "paid"


def test_hazard_13_a_fact_may_write_its_own_column_only(world: World) -> None:
    @world.app.on(Order, Order.status == "placed", done_column=Order.mailed, retry=Retry(times=1))
    def mailed(order: Order) -> None:
        order.mailed, order.note = "told", "and more"

    world.orders(1)
    world.settled()
    assert world.order().mailed is None
    assert "note" in (world.attempt().error or "")


def test_hazard_14_a_record_that_was_deleted_in_doubt_is_held_under_its_key(world: World) -> None:
    gateway = charging(world, ASK)
    gateway.plan(1, "done_hang")
    world.orders(1)
    first = world.worker()
    until(lambda: gateway.waiting == 1)
    first.kill()
    world.run("delete from orders")
    world.settled()
    attempt = world.attempt()
    assert (attempt.record, attempt.state) == ("1", "held")
    assert attempt.outcome is not None or attempt.unsure


def test_hazard_14_our_session_hook_refuses_to_delete_a_record_under_an_attempt(world: World) -> None:
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "hang")
    world.orders(1)
    world.worker()
    until(lambda: gateway.waiting == 1)
    with world.session() as session:
        session.delete(session.get(Order, 1))
        with pytest.raises(StateRefusedError):
            session.flush()


@dataclass(frozen=True)
class Receipt:
    id: str
    total: int


def test_hazard_16_a_held_outcome_comes_back_as_what_the_handler_takes(world: World) -> None:
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.hold())
    async def charge(order: Order) -> Receipt:
        return Receipt("r1", 5)

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: Receipt) -> None:
        raise ValueError("a bug")

    world.orders(1)
    world.settled()
    attempt = world.attempt()
    assert attempt.outcome is not None
    assert outcome_json.load_first_outcome(Receipt, attempt.outcome) == Receipt("r1", 5)


@pytest.mark.parametrize("fault", ["raises", "makes no progress"])
def test_hazard_56_an_outcome_in_hand_is_held_and_never_becomes_a_new_call(world: World, fault: str) -> None:
    def paid(order: Order, outcome: str) -> None:
        order.note = outcome
        if fault == "raises":
            raise ValueError("a bug")

    gateway = charging(world, SAME_KEY, handler=paid)
    world.orders(3)
    life = world.worker()
    life.quiet()
    world.forward(7200)
    life.quiet()
    assert world.states() == ["held"] * 3
    assert len(gateway.calls) == 3
    assert [one.outcome for one in world.attempts()] == ['["r1"]', '["r2"]', '["r3"]'] or all(one.outcome for one in world.attempts())
    assert not any(one.unsure for one in world.attempts())
    assert world.order().note is None


def test_hazard_57_a_moved_occurrence_is_no_second_call_while_the_first_is_in_doubt(world: World) -> None:
    gateway = charging(world, InDoubt.hold(), occurrence=[Order.round])
    gateway.plan(1, "done_raise")
    world.orders(1)
    life = world.worker()
    life.quiet()
    world.set(1, round=2)
    life.quiet()
    assert gateway.called(1) == 1
    assert world.attempt().unsure


def test_hazard_58_catching_up_to_the_next_occurrence_is_progress(world: World) -> None:
    def paid(order: Order, outcome: str) -> None:
        order.round += 1
        order.receipt = outcome
        if order.round == 4:
            order.status = "paid"

    gateway = charging(world, ASK, handler=paid, occurrence=[Order.round])
    world.orders(1)
    world.settled()
    assert gateway.done(1) == 3
    assert world.order().status == "paid"
    assert world.attempts() == []


def test_hazard_59_timeouts_count_and_the_last_one_gives_up(world: World) -> None:
    gateway = charging(world, InDoubt.repeat(), retry=Retry(times=3, first=ms(5), longest=ms(5)), timeout=ms(20))
    told: list[Failure] = []

    @gateway.reaction.gave_up
    def _(order: Order, failure: Failure) -> None:
        told.append(failure)
        order.status = "declined"

    gateway.plan(1, *["hang"] * 10)
    world.orders(1)
    life = world.worker()
    until(lambda: world.order().status == "declined")
    life.quiet()
    assert gateway.called(1) == 3
    assert told[0].calls == 3
    assert world.attempts() == []


def test_hazard_59_a_life_that_ended_under_the_call_counts(world: World) -> None:
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "hang")
    world.orders(1)
    first = world.worker()
    until(lambda: gateway.waiting == 1)
    first.kill()
    world.settled()
    assert world.attempt().failures == 1


def test_hazard_60_finds_are_under_the_outsides_limit_too(world: World) -> None:
    gateway = charging(world, ASK, limit=3)
    at_once: list[int] = []
    asking = 0

    def find(record: int, key: str) -> str:
        nonlocal asking
        asking += 1
        at_once.append(asking)
        gateway.gate.wait(0.005)
        asking -= 1
        return f"r{record}"

    gateway.find = find  # type: ignore[method-assign]
    for number in range(1, 13):
        gateway.plan(number, "done_raise")
    world.orders(12)
    world.settled()
    assert max(at_once) <= 3
    assert world.count(Order.status == "paid") == 12


def test_hazard_61_a_fact_concludes_though_a_webhook_was_faster(world: World) -> None:
    def told(order: Order, outcome: str) -> None:
        order.receipt = outcome

    gateway = charging(world, InDoubt.hold(), handler=told)
    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.set(1, status="paid by webhook")
    gateway.gate.set()
    life.quiet()
    assert (world.order().status, world.order().receipt) == ("paid by webhook", "r1")
    assert world.attempts() == []


def test_hazard_61_a_state_is_held_with_its_outcome(world: World) -> None:
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.set(1, status="cancelled")
    gateway.gate.set()
    life.quiet()
    assert (world.order().status, world.order().receipt) == ("cancelled", None)
    assert (world.attempt().state, world.attempt().outcome, world.attempt().unsure) == ("held", '["r1"]', False)


def test_hazard_65_a_call_that_asked_for_it_is_stopped_when_its_record_moved_on(world: World) -> None:
    bank = ExternalService("bank")
    ended: list[int] = []
    began: list[int] = []

    @bank.call(in_doubt=InDoubt.repeat(), timeout=timedelta(minutes=20), stop_when_overtaken=True, retry=QUICK)
    async def encode(order: Order) -> str:
        began.append(order.id)
        try:
            await asyncio.sleep(1200)
        finally:
            ended.append(order.id)
        return "done"

    @world.app.on(Order, Order.status == "placed", call=encode)
    def encoded(order: Order, outcome: str) -> None:
        order.status = "encoded"

    world.orders(6)
    life = world.worker()
    until(lambda: len(began) == 6)
    world.run("UPDATE orders SET status = 'cancelled'")
    until(lambda: len(ended) == 6)
    life.quiet()
    assert world.attempts() == []
    assert not life.pauses, "what was cut off by ourselves says nothing of the endpoint"


def test_sends_reads_other_rows_and_what_it_raises_was_surely_not_done(world: World) -> None:
    bank = ExternalService("bank")
    sent: list[str] = []

    @bank.call(in_doubt=InDoubt.hold(), retry=Retry(first=timedelta(hours=1)))
    def send(words: str) -> str:
        sent.append(words)
        return "m1"

    def letter(order: Order, session: Session) -> str:
        if order.id == 2:
            raise LookupError("no address")
        return f"{order.id} of {session.query(Order).count()}"

    @world.app.on(Order, Order.status == "placed", call=send, prepare=letter, done_column=Order.mailed)
    def mailed(order: Order, outcome: str) -> None:
        order.mailed = outcome

    world.orders(2)
    world.settled()
    assert sent == ["1 of 2"]
    attempt = world.attempt()
    assert (attempt.record, attempt.state, attempt.unsure) == ("2", "failed", False)
    assert "prepare raised LookupError" in (attempt.error or "")
