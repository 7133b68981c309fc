"""Records that go round: told once and slowed down, while others go on; and what is no ring, however often it comes."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.orm import Session

from groundstate import ExternalService, InDoubt
from groundstate.clock import SYSTEM_CLOCK
from groundstate.engine.handle.recheck_conditions import Work
from groundstate.engine.sql import record_cycles
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.record_cycles import RecordCycles
from tests.engine.kit import CALL_LIMIT, HANG_S, Order, World, until


@pytest.fixture(autouse=True)
def _a_minute_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """For twenty rounds of a busy machine."""
    monkeypatch.setattr(record_cycles, "WITHIN_S", 10 * HANG_S)


def undoing_each_other(world: World) -> list[str]:
    """Two reactions that undo each other on orders that are placed or paid; returns their runs."""
    runs: list[str] = []

    @world.app.on(Order, Order.status == "placed")
    def ping(order: Order) -> None:
        runs.append("ping")
        order.status = "paid"

    @world.app.on(Order, Order.status == "paid")
    def pong(order: Order) -> None:
        runs.append("pong")
        order.status = "placed"

    return runs


def told(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [one for one in caplog.records if getattr(one, "event", None) == "record_goes_round"]


def test_a_record_that_two_reactions_undo_is_told_once_slowed_down_and_others_go_on(world: World, caplog: pytest.LogCaptureFixture) -> None:
    runs = undoing_each_other(world)

    @world.app.on(Order, Order.status == "new")
    def packed(order: Order) -> None:
        order.status = "packed"

    world.orders(1)
    world.worker()
    until(lambda: told(caplog))
    (line,) = told(caplog)
    assert line.levelno == logging.WARNING
    assert set(line.reactions) == {"ping", "pong"}
    assert line.record == "1"
    assert "orders 1 goes round" in line.getMessage()
    before = len(runs)
    assert before < 60, "it went round for long before it was slowed down"
    world.add(*[Order(id=number, status="new") for number in range(2, 102)])
    until(lambda: world.count(Order.status == "packed") == 100)
    until(lambda: len(runs) >= before + 2)  # by itself, after its pauses
    assert len(told(caplog)) == 1


def test_its_pauses_grow_to_a_minute(world: World, caplog: pytest.LogCaptureFixture) -> None:
    undoing_each_other(world)
    world.orders(1)
    life = world.worker()
    until(lambda: told(caplog))
    pauses: set[float] = set()

    def grown() -> bool:
        pauses.update(slow.pause_s for slow in list(life.worker.incarnation.rings._slowed.values()))
        return max(pauses) >= 8

    until(grown, lambda: pauses)
    assert min(pauses) >= 2, "the first pause, of a second, is on when the next one is set"
    assert record_cycles.LONGEST_S == 60


def test_a_worker_with_a_record_that_goes_round_is_not_quiet_and_stops_all_the_same(world: World, caplog: pytest.LogCaptureFixture) -> None:
    undoing_each_other(world)
    world.orders(1)
    life = world.worker()
    until(lambda: told(caplog))
    until(lambda: life.worker.incarnation.rings.has_waiting_records)
    assert not life.worker.wait_until_idle(0.0)
    life.stop()
    assert life.ended


def test_a_record_that_is_put_right_leaves_its_ring(world: World, caplog: pytest.LogCaptureFixture) -> None:
    undoing_each_other(world)
    world.orders(1)
    life = world.worker()
    until(lambda: told(caplog))
    world.set(status="packed")
    life.quiet()
    assert world.order().status == "packed"


def test_a_ring_of_three_reactions_names_all_of_them(world: World, caplog: pytest.LogCaptureFixture) -> None:
    @world.app.on(Order, Order.status == "placed")
    def paid(order: Order) -> None:
        order.status = "paid"

    @world.app.on(Order, Order.status == "paid", Order.note.is_(None))
    def noted(order: Order) -> None:
        order.note = "seen"

    @world.app.on(Order, Order.note.is_not(None))
    def unnoted(order: Order) -> None:
        order.status, order.note = "placed", None

    world.orders(1)
    world.worker()
    until(lambda: told(caplog))
    assert set(told(caplog)[0].reactions) == {"paid", "noted", "unnoted"}


def test_a_ring_that_leads_through_a_call_is_slowed_down_and_others_are_called(world: World, caplog: pytest.LogCaptureFixture) -> None:
    bank, calls = ExternalService("bank"), []

    @bank.call(in_doubt=InDoubt.repeat(), timeout=CALL_LIMIT)
    def charge(order: Order) -> str:
        calls.append(order.id)
        return "receipt"

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, _receipt: str) -> None:
        order.status = "paid" if order.note is None else "over"

    @world.app.on(Order, Order.status == "paid")
    def reopened(order: Order) -> None:
        order.status = "placed"

    world.orders(1)
    life = world.worker()
    until(lambda: told(caplog))
    assert set(told(caplog)[0].reactions) == {"paid", "reopened"}
    assert life.worker.worker_health().going_round == 1
    before = len(calls)
    assert before < 60, "it was called for long before it was slowed down"
    world.add(*[Order(id=number, note="once") for number in range(2, 22)])
    until(lambda: world.count(Order.status == "over") == 20)
    until(lambda: calls.count(1) > before)  # by itself, after its pauses
    assert len(told(caplog)) == 1


def test_a_ring_over_two_records_is_found(world: World, caplog: pytest.LogCaptureFixture) -> None:
    @world.app.on(Order, Order.status == "placed", Order.id == 1)
    def first(order: Order, session: Session) -> None:
        order.status = "rests"
        session.get_one(Order, 2).status = "placed"

    @world.app.on(Order, Order.status == "placed", Order.id == 2)
    def second(order: Order, session: Session) -> None:
        order.status = "rests"
        session.get_one(Order, 1).status = "placed"

    world.add(Order(id=1), Order(id=2, status="rests"))
    world.worker()
    until(lambda: told(caplog))
    assert set(told(caplog)[0].reactions) == {"first", "second"}


def test_many_records_that_go_round_are_all_slowed_down_and_few_lines_tell_of_them(world: World, caplog: pytest.LogCaptureFixture) -> None:
    undoing_each_other(world)
    world.orders(40)  # few enough for a busy machine, which must come to each so often within a minute
    life = world.worker()
    until(lambda: len({key for _, key, _ in life.worker.incarnation.rings._slowed}) == 40)
    assert 1 <= len([one for one in told(caplog) if one.levelno == logging.WARNING]) <= record_cycles.TOLD_MOST


def test_a_record_with_a_new_occurrence_each_time_is_not_slowed_down(world: World, caplog: pytest.LogCaptureFixture) -> None:
    @world.app.on(Order, Order.status == "placed", occurrence=[Order.round])
    def out(order: Order) -> None:
        order.status = "paid"

    @world.app.on(Order, Order.status == "paid", Order.round < 60, occurrence=[Order.round])
    def back(order: Order) -> None:
        order.status, order.round = "placed", order.round + 1

    world.orders(1)
    world.settled()
    assert (world.order().round, world.order().status) == (60, "paid")
    assert told(caplog) == []


def test_a_loop_of_fewer_rounds_is_not_slowed_down(world: World, caplog: pytest.LogCaptureFixture) -> None:
    @world.app.on(Order, Order.status == "placed")
    def out(order: Order) -> None:
        order.status = "paid"

    @world.app.on(Order, Order.status == "paid", Order.round < record_cycles.TIMES - 1)
    def back(order: Order) -> None:
        order.status, order.round = "placed", order.round + 1

    world.orders(3)
    world.settled()
    assert world.count(Order.round == record_cycles.TIMES - 1) == 3
    assert told(caplog) == []


def test_a_chain_of_more_states_than_that_is_no_ring(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(2 * record_cycles.TIMES):

        @world.app.on(Order, Order.status == f"step {number}", name=f"step{number}")
        def step(order: Order) -> None:
            order.status = f"step {int(order.status.removeprefix('step ')) + 1}"

    world.orders(1, status="step 0")
    world.settled()
    assert world.order().status == f"step {2 * record_cycles.TIMES}"
    assert told(caplog) == []


def test_what_somebody_else_asks_for_again_and_again_is_not_slowed_down(world: World, caplog: pytest.LogCaptureFixture) -> None:
    @world.app.on(Order, Order.status == "placed")
    def paid(order: Order) -> None:
        order.status = "paid"

    @world.app.on(Order, Order.status == "paid")
    def packed(order: Order) -> None:
        order.status = "packed"

    world.orders(1, status="packed")
    life = world.worker()
    for _ in range(3 * record_cycles.TIMES):
        with world.session() as session, session.begin():
            session.get_one(Order, 1).status = "placed"
        until(lambda: world.order().status == "packed")
    assert told(caplog) == []
    assert not life.worker.incarnation.rings
    assert any(count.acquitted_until for count in life.worker.incarnation.rings._again.values()), "it was not looked at who asks for it"


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REMEMBERED", "COUNTED_MOST"):
        monkeypatch.setattr(record_cycles, name, 100)
    known = RecordCycles()
    question: ConditionQuery = object.__new__(ConditionQuery)
    vars(question)["database"] = SimpleNamespace(clock=SYSTEM_CLOCK)
    for number in range(0, 10_000, 10):
        some = [Work((number + one,), None, "", (), {}) for one in range(10)]
        known.count_carried_out(question, some, None)
        known.count_carried_out(question, some, None)
    assert len(known._again) == 100
    assert sum(len(one) for one in [*known._recent.values(), *known._before.values()]) <= 220
