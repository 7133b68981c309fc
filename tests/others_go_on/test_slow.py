"""A handler, or a condition, that takes very long: other reactions are carried out meanwhile, and what is slow is told."""

from __future__ import annotations

import threading

import pytest

from groundstate.engine.watch import slow_conditions
from groundstate.store import statement_timeouts
from tests.engine.clocks import Turned
from tests.engine.handle.test_slow_handlers import SLOW_S, gate
from tests.engine.kit import HANG_S, Order, until
from tests.others_go_on.conftest import ONE, Beside, a_world


def test_a_condition_takes_very_long(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_conditions, "LIMIT_S", 0.1)
    monkeypatch.setattr(statement_timeouts, "LOOKS_S", 0.02)
    takes_long = gate(beside)

    @beside.app.on(Order, Order.note.is_(None), takes_long)
    def noted(order: Order) -> None:
        order.note = "seen"

    beside.handled(lambda _order: None)
    beside.there()
    beside.run("UPDATE gate SET steps = 1000000000000")
    beside.placed()
    life = beside.worker()
    beside.until_done()
    until(lambda: beside.told("condition_slow"))
    (line,) = beside.told("condition_slow")
    assert line.startswith("WARNING noted: the query of its condition takes longer than 0.1 s")
    beside.run("INSERT INTO orders (id, status, round) VALUES (1001, 'placed', 1)")  # of which nobody gives a hint
    life.sweep()
    until(lambda: 1001 in beside.done())
    assert life.worker.queues[0].rows.aside
    assert (beside.count(Order.note.is_not(None)), beside.told("condition_slow")) == (0, [line])


def test_each_handler_of_another_reaction_is_slow(beside: Beside) -> None:
    beside.clock = clock = Turned()
    runs: list[str] = []

    @beside.app.on(Order, Order.note.is_(None), Order.id > 1000)
    def slow(order: Order) -> None:
        clock.ahead += SLOW_S
        order.note = "seen"
        runs.append("slow")

    beside.handled(lambda _order: None)
    beside.orders_from(1001, 1030)
    beside.placed()
    beside.worker()
    beside.until_done()
    assert runs.count("slow") < 30, "each of its rows was carried out before the others"
    until(lambda: beside.count(Order.note == "seen") == 30)


@pytest.mark.usefixtures("locks_told_at_once")
def test_a_handler_waits_for_ever_and_another_worker_carries_out(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    gate, waits = threading.Event(), threading.Event()

    def wait(_order: Order) -> None:
        waits.set()
        assert gate.wait(HANG_S)

    with a_world(postgres_url, caplog) as beside:
        beside.handled(wait)
        beside.orders(1)
        beside.worker()
        assert waits.wait(HANG_S)
        try:
            beside.placed()
            beside.worker()
            beside.until_done()
            (found,) = beside.pending().locked
            assert (found.reaction, found.record, found.ours) == ("done", str(ONE), True)
            assert "whose handler has run since then, and waits for something that is not the database" in found.who
            assert (beside.status().rows, beside.why().holds) == (1, True)
        finally:
            gate.set()
        until(lambda: ONE in beside.done())
