"""Handlers that are slow: others get their turns beside them. Time is turned by the handlers themselves, and nobody waits for it."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any

import pytest
from sqlalchemy import Boolean, ColumnElement, event, literal_column

from groundstate import ExternalService, Failure, InDoubt, InOrder, Retry
from groundstate.engine.watch import slow_conditions, sweeps
from groundstate.engine.watch.waiting_rows import BATCH_LEAST
from groundstate.store import statement_timeouts
from tests.engine.charging import charging
from tests.engine.clocks import Turned
from tests.engine.kit import CALL_LIMIT, Order, World, ms, until

SLOW_S = 0.05  # what one slow handler takes


@pytest.fixture
def turned(world: World) -> Turned:
    """The clock of the workers: it moves by what handlers say that they took."""
    world.clock = made = Turned(still=True)
    return made


def longest(runs: list[str], name: str) -> int:
    """The most runs of one kind with nothing between them."""
    return max(len(list(some)) for one, some in groupby(runs) if one == name)


def then_packed(world: World, runs: list[str]) -> None:
    """A quick reaction that follows each slow one."""

    @world.app.on(Order, Order.status == "paid")
    def packed(order: Order) -> None:
        runs.append("quick")
        order.status = "packed"


def slowly_paid_and_quickly_packed(world: World, turned: Turned) -> list[str]:
    """Which handlers run, in their order."""
    runs: list[str] = []

    @world.app.on(Order, Order.status == "placed")
    def paid(order: Order) -> None:
        turned.ahead += SLOW_S
        runs.append("slow")
        order.status = "paid"

    then_packed(world, runs)
    return runs


def test_a_slow_handler_is_a_batch_of_one_and_others_have_their_turns_between(world: World, turned: Turned) -> None:
    runs = slowly_paid_and_quickly_packed(world, turned)
    world.orders(12)
    world.settled()
    assert world.count(Order.status == "packed") == 12
    assert longest(runs, "slow") <= 2


def test_slow_handlers_of_hinted_records_leave_none_of_them_out(world: World, turned: Turned) -> None:
    runs = slowly_paid_and_quickly_packed(world, turned)
    world.there()
    life = world.worker()
    life.quiet()
    life.hints_alone()
    world.orders(12)  # by a session of this process, which gives hints
    until(lambda: world.count(Order.status == "packed") == 12)
    assert longest(runs, "slow") <= 2, "fresh ones, and one of a backlog, in one turn"


def test_one_slow_backlog_waits_for_no_end_of_another(world: World, turned: Turned) -> None:
    runs: list[str] = []

    @world.app.on(Order, Order.receipt.is_(None), Order.id <= 10)
    def first(order: Order) -> None:
        turned.ahead += SLOW_S
        runs.append("first")
        order.receipt = "r"

    @world.app.on(Order, Order.mailed.is_(None), Order.id > 10)
    def second(order: Order) -> None:
        turned.ahead += SLOW_S
        runs.append("second")
        order.mailed = "m"

    world.orders(20)
    world.settled()
    assert Counter(runs) == {"first": 10, "second": 10}
    assert max(longest(runs, "first"), longest(runs, "second")) <= 4


def test_a_line_of_slow_handlers_keeps_its_order(world: World, turned: Turned) -> None:
    runs: list[str] = []

    @world.app.on(Order, Order.status == "placed", in_order=InOrder(Order.note, Order.id))
    def paid(order: Order) -> None:
        turned.ahead += SLOW_S
        runs.append("slow")
        order.status, order.receipt = "paid", str(len(runs))

    then_packed(world, runs)
    world.orders(6, note="line")
    world.settled()
    assert [world.order(number).status for number in range(1, 7)] == ["packed"] * 6
    assert sorted(range(1, 7), key=lambda number: int(world.order(number).receipt)) == list(range(1, 7))
    assert longest(runs, "slow") <= 2


def test_a_slow_handler_that_fails_does_so_alone_and_others_have_their_turns(world: World, turned: Turned) -> None:
    runs: list[str] = []

    @world.app.on(Order, Order.status == "placed", retry=Retry(times=5, first=ms(60_000)))
    def paid(order: Order) -> None:
        turned.ahead += SLOW_S
        runs.append("slow")
        if order.id == 5:
            raise ValueError("this one is bad")
        order.status = "paid"

    then_packed(world, runs)
    world.orders(10)
    world.settled()
    assert world.count(Order.status == "packed") == 9
    assert (world.attempt().record, world.attempt().failures) == ("5", 1)
    assert longest(runs, "slow") <= 3, "a batch of one is done twice where it fails, and the next one may follow at once"


def test_a_slow_outcome_handler_lets_others_have_their_turns(world: World, turned: Turned) -> None:
    runs: list[str] = []

    def paid(order: Order, receipt: str) -> None:
        turned.ahead += SLOW_S
        runs.append("slow")
        order.status, order.receipt = "paid", receipt

    gateway = charging(world, InDoubt.repeat(), limit=8, handler=paid)
    then_packed(world, runs)
    for number in range(1, 9):
        gateway.plan(number, "hang")
    world.orders(8)
    life = world.worker()
    until(lambda: gateway.waiting == 8)
    gateway.gate.set()
    until(lambda: world.count(Order.status == "packed") == 8)
    life.quiet()
    assert longest(runs, "slow") <= 3, "what it wrote is heard of in the turn after it"
    assert len(gateway.ledger) == 8
    assert world.attempts() == []


def test_slow_gave_up_handlers_let_others_have_their_turns(world: World, turned: Turned) -> None:
    runs: list[str] = []

    gateway = charging(world, InDoubt.repeat(), limit=8, retry=Retry(times=1, first=ms(5)))

    @gateway.reaction.gave_up
    def refused(order: Order, failure: Failure) -> None:
        turned.ahead += SLOW_S
        runs.append("slow")
        order.status = "paid"

    then_packed(world, runs)
    for number in range(1, 5):  # fewer than open the breaker
        gateway.plan(number, "refuse")
    world.orders(4)
    world.worker()
    until(lambda: world.count(Order.status == "packed") == 4)
    assert longest(runs, "slow") <= 3


def test_where_sends_is_slow_few_calls_are_begun_at_once(world: World, turned: Turned) -> None:
    gateway = world.gateway()
    bank = ExternalService("bank", limit=100)

    @bank.call(in_doubt=InDoubt.repeat(), timeout=CALL_LIMIT)
    async def charge(number: int) -> str:
        return await gateway.act(number)

    def number_of(order: Order) -> int:
        turned.ahead += SLOW_S
        return order.id

    @world.app.on(Order, Order.status == "placed", call=charge, prepare=number_of)
    def paid(order: Order, receipt: str) -> None:
        order.status, order.receipt = "paid", receipt

    world.orders(20)
    life = world.worker()
    until(lambda: world.count(Order.status == "paid") == 20)
    assert life.worker.queues[0].rows.batch == 1


def test_quick_handlers_cost_no_more_statements_for_that(world: World) -> None:
    world.clock = Turned(still=True)  # as if this machine were never busy

    @world.app.on(Order, Order.status == "placed")
    def paid(order: Order) -> None:
        order.status = "paid"

    world.orders(1000)
    life = world.worker(start=False)
    said: list[str] = []

    def note_commit(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith(("UPDATE orders", "BEGIN IMMEDIATE", "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")):
            said.append(statement)

    event.listen(life.database.engine, "before_cursor_execute", note_commit)
    life.worker.start()
    life.quiet()
    assert world.count(Order.status == "paid") == 1000
    assert sum(one.startswith("UPDATE") for one in said) <= 1000 // BATCH_LEAST
    assert len(said) <= 2 * 1000 // BATCH_LEAST + 10


# ---- conditions ------------------------------------------------------------------------------------------------------------------
def test_a_condition_that_takes_long_is_asked_beside_the_others_and_told_of_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slow_conditions, "LIMIT_S", 0.2)
    monkeypatch.setattr(statement_timeouts, "LOOKS_S", 0.02)
    takes_long = gate(world)

    @world.app.on(Order, Order.receipt.is_(None), takes_long)
    def slow(order: Order) -> None:
        order.receipt = "r"

    @world.app.on(Order, Order.mailed.is_(None))
    def quick(order: Order) -> None:
        order.mailed = "m"

    world.there()
    world.run("UPDATE gate SET steps = 1000000000000")
    world.orders(3)
    life = world.worker()
    lane = life.worker.queues[0]
    until(lambda: lane.rows.aside)
    world.run("INSERT INTO orders (id, status, round) VALUES (9, 'placed', 1)")  # of which nobody gives a hint
    life.sweep()
    until(lambda: world.count(Order.mailed.is_not(None)) == 4)
    until(
        lambda: life.worker.components.separate_queries._queues[lane].allowed_s > 4 * slow_conditions.LIMIT_S,
        lambda: "it was not cut, or gets no more time",
    )
    assert world.count(Order.receipt.is_not(None)) == 0
    world.run("UPDATE gate SET steps = 1")
    until(lambda: world.count(Order.receipt.is_not(None)) == 4)
    life.quiet()
    told = [vars(record)["reaction"] for record in caplog.records if getattr(record, "event", "") == "condition_slow"]
    assert told.count("slow") == 1  # with so short a limit, a busy machine may cut the quick one as well


_ENDLESS_ON_SQLITE = """(
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < (SELECT steps FROM gate)) SELECT count(*) > 0 FROM n
)"""
_ENDLESS_ON_POSTGRES = "(SELECT CAST(pg_sleep(CASE WHEN steps > 1 THEN 3600 ELSE 0 END) AS text) IS NOT NULL FROM gate)"


def gate(world: World) -> ColumnElement[bool]:
    """A clause that always holds, and takes as long to ask as a table says: no time at all, until it is told another number of steps."""
    world.run("CREATE TABLE gate (steps BIGINT)")
    world.run("INSERT INTO gate VALUES (1)")
    return literal_column(_ENDLESS_ON_POSTGRES if world.postgres else _ENDLESS_ON_SQLITE, Boolean)


def test_a_stop_waits_for_no_condition_that_takes_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_conditions, "LIMIT_S", 0.2)
    monkeypatch.setattr(statement_timeouts, "LOOKS_S", 0.02)

    @world.app.on(Order, gate(world), Order.receipt.is_(None))
    def slow(order: Order) -> None:
        order.receipt = "r"

    world.there()
    world.run("UPDATE gate SET steps = 1000000000000")
    world.orders(1)
    life = world.worker()
    lane, queries = life.worker.queues[0], life.worker.components.separate_queries
    until(lambda: lane.rows.aside and queries._queues and queries._queues[lane].look is not None)
    look = queries._queues[lane].look
    life.stop()
    assert look is not None
    until(lambda: look.ended)
    assert look.keys == ()


def test_no_reaction_waits_for_a_sweep_longer_than_its_own_condition_makes_needful(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "SWEEP_LONGEST_S", 30)

    @world.app.on(Order, Order.receipt.is_(None))
    def cheap(order: Order) -> None:
        order.receipt = "r"

    @world.app.on(Order, Order.mailed.is_(None))
    def dear(order: Order) -> None:
        order.mailed = "m"

    life = world.worker()
    life.quiet()
    life.stop()
    ended, (first, second) = life.worker.components.sweeps, life.worker.queues
    for _ in range(3):
        ended.idle_s = 0.5
        assert ended._pause_s(0.0) <= 30
        first.rows.record_query_duration(0.001)
        second.rows.record_query_duration(0.4)
    ended.idle_s = 0.5
    pause_s = ended._pause_s(0.0)
    assert (pause_s, ended._pause_of_queue_s(first, pause_s), ended._pause_of_queue_s(second, pause_s)) == (30, 5, 8)
    second.rows.move_query_aside()
    second.rows.record_query_duration(60.0)
    second.rows.record_query_duration(60.0)
    assert ended._pause_of_queue_s(second, pause_s) == 60, "as long as it is asked, and no more than that"
