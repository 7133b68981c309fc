"""Of what befalls many records at once the log has ten lines, and then how many more there were; the reports list all of them."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy.orm import Session

from groundstate import NotDone
from groundstate.engine.rows.limited_logging import LINES_MOST
from groundstate.values.answers import Failure
from tests.engine.kit import Order, until
from tests.others_go_on.conftest import MORE, ONCE, Beside

MANY = range(1, LINES_MOST + 4)


def left_out(beside: Beside) -> list[tuple[str, str, int]]:
    """The level, the event and the count of each line that tells how many were left out."""
    lines = [line for line in beside.said.records if getattr(line, "event", None) == "lines_left_out"]
    return sorted((line.levelname, getattr(line, "of", ""), getattr(line, "count", 0)) for line in lines)


def test_many_handlers_that_fail_have_ten_lines_of_each_kind_and_a_count(beside: Beside) -> None:
    beside.ones = MANY
    beside.handled(lambda _order: 1 / 0, retry=ONCE)
    beside.placed()
    life = beside.worker()
    beside.until_done()
    until(lambda: beside.states() == ["held"] * len(MANY), beside.attempts)
    life.stop()
    assert len(beside.told("handler_failed")) == len(beside.told("attempt_kept")) == LINES_MOST
    assert left_out(beside) == [("ERROR", "attempt_kept", 3), ("WARNING", "handler_failed", 3)]
    assert beside.status().attempts["held"].count == len(MANY)


def test_many_calls_that_are_given_up_have_ten_lines_and_a_count(beside: Beside) -> None:
    beside.ones = MANY

    @beside.app.on(Order, Order.status == "placed", Order.id.in_(MANY), name="tried", retry=MORE)
    def tried(_order: Order) -> None:
        raise NotDone("no paper")

    @tried.gave_up
    def tried_gave_up(order: Order, _failure: Failure) -> None:
        order.status = "given up"

    beside.app.on(Order, Order.status == "placed", Order.id.not_in(MANY), name="done")(lambda order: setattr(order, "status", "done"))
    beside.placed()
    life = beside.worker()
    beside.until_done()
    until(lambda: beside.count(Order.status == "given up") == len(MANY), beside.attempts)
    life.stop()
    assert len(beside.told("given_up")) == LINES_MOST
    assert ("INFO", "given_up", 3) in left_out(beside)


def test_many_ticks_that_fail_have_ten_lines_and_a_count(beside: Beside) -> None:
    @beside.app.every(timedelta(hours=1), missed="all", retry=ONCE)
    def hourly(_session: Session) -> None:
        raise ValueError("enough")

    beside.there()
    beside.settled()
    beside.forward(3600 * (len(MANY) + 0.5))
    life = beside.worker()
    until(lambda: beside.states() == ["held"] * len(MANY), beside.attempts)
    life.stop()
    assert len(beside.told("tick_failed")) == LINES_MOST
    assert ("WARNING", "tick_failed", 3) in left_out(beside)
