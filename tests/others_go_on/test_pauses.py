"""A service that is down, or asks for a pause: another service's calls go on meanwhile, and its own are made when it is back."""

from __future__ import annotations

import re
import threading

import pytest
from sqlalchemy import event, select

from groundstate import ExternalService, InDoubt, Retry, Throttled
from groundstate.engine.rows.limited_logging import LimitedLines
from groundstate.engine.sql.safe_text import describe_exception
from groundstate.engine.watch import reaction_pause
from groundstate.engine.watch.postponement import FAILING_MOST
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.rules import circuit_breaker
from groundstate.store.tables import attempt
from tests.engine.kit import Life, Order, ms, until
from tests.others_go_on.conftest import RECEIPT, Beside

WAITING = range(1001, 1021)
PATIENT = Retry(times=None, first=ms(5), longest=ms(20))


@pytest.mark.parametrize("error", [ConnectionRefusedError("no route"), Throttled(ms(10))], ids=["down", "busy"])
def test_a_service_pauses(beside: Beside, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit_breaker, "FIRST_S", 0.05)
    monkeypatch.setattr(circuit_breaker, "LONGEST_S", 0.1)
    monkeypatch.setattr(circuit_breaker, "DOUBLES_EACH_S", 0.05)
    back = threading.Event()

    async def receipt() -> str:
        return RECEIPT

    @ExternalService("bank", limit=5).call(in_doubt=InDoubt.repeat(), retry=PATIENT)
    async def charge(order: Order) -> str:
        if not back.is_set():
            raise error
        return RECEIPT

    @beside.app.on(Order, Order.status == "charging", call=charge)
    def charged(order: Order, outcome: str) -> None:
        order.status = "charged"

    beside.called(receipt, service=ExternalService("desk", limit=20))
    beside.add(*[Order(id=number, status="charging") for number in WAITING])
    life = beside.worker()
    until(lambda: life.pauses)
    beside.placed()
    beside.until_done()

    def all_are_seen() -> bool:  # but for a probe that begins while they are counted, which is seen twice
        paused = beside.status("charged")
        return paused.rows + sum(one.count for one in paused.attempts.values()) == len(WAITING)

    until(all_are_seen)
    report = beside.pending()
    assert all((one.error or "").startswith(describe_exception(error)) for one in (*report.in_doubt, *report.failed))
    assert (beside.why(WAITING[0], "charged").attempts[0].error or "").startswith(describe_exception(error))
    (line,) = beside.told("service_breaker")
    said = r"WARNING the service bank fails: it pauses for \d\.\d s, and is probed; its last answer: "
    assert re.match(said + re.escape(describe_exception(error)), line)
    back.set()
    until(lambda: beside.count(Order.status == "charged") == len(WAITING), beside.attempts)
    until(lambda: beside.attempts() == [], beside.attempts)
    assert re.fullmatch(r"WARNING the service bank answers again, after \d+\.\d s", beside.told("service_breaker")[1])


# ---- handlers without a call -----------------------------------------------------------------------------------------------------
def failures(beside: Beside) -> list[int]:
    """Of each record that failed, how often."""
    with beside.engine.connect() as connection:
        return list(connection.execute(select(attempt.c.failures)).scalars())


def pauses(life: Life) -> bool:
    return any(lane.postponement.is_failing for lane in life.worker.queues)


def idle(beside: Beside) -> WorkQueue:
    """Of a worker that has nothing to do."""
    beside.handled(lambda _order: None)
    beside.there()
    life = beside.worker()
    life.quiet()
    (lane,) = life.worker.queues
    return lane


def test_a_few_records_that_fail_again_and_again_pause_nothing(beside: Beside) -> None:
    beside.ones = range(1, 8)
    beside.handled(lambda _order: 1 / 0, retry=PATIENT)
    beside.add(*[Order(id=number) for number in beside.ones])
    life = beside.worker()
    until(lambda: sorted(failures(beside))[:1] >= [FAILING_MOST], beside.attempts)
    assert not pauses(life)
    assert beside.told("reaction_pauses") == []
    beside.placed()
    beside.until_done()


def test_records_that_cannot_be_read_pause_nothing(beside: Beside) -> None:
    beside.ones = range(1, FAILING_MOST + 6)

    def hook(order: Order, *_more: object) -> None:
        if order.id in beside.ones:
            raise ValueError("enough")

    event.listen(Order, "load", hook)
    try:
        beside.handled(lambda _order: None, retry=PATIENT)
        beside.add(*[Order(id=number) for number in beside.ones])
        life = beside.worker()
        until(lambda: len(failures(beside)) == len(beside.ones) and min(failures(beside)) > 1, beside.attempts)
        assert not pauses(life)
    finally:
        event.remove(Order, "load", hook)


def test_a_handler_that_fails_for_many_records_in_a_row_pauses_its_reaction_and_the_log_tells_of_both_ends(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_breaker, "FIRST_S", 0.05)
    monkeypatch.setattr(circuit_breaker, "LONGEST_S", 0.1)
    fails = True

    def handler(_order: Order) -> None:
        if fails:
            raise RuntimeError("no paper")

    beside.ones = range(1, FAILING_MOST + 11)
    beside.handled(handler, retry=PATIENT)
    beside.add(*[Order(id=number) for number in beside.ones])
    life = beside.worker()
    until(lambda: beside.told("reaction_pauses") != [])
    (line,) = beside.told("reaction_pauses")
    assert line.startswith(
        "WARNING done pauses, and tries one record at a time: its handler failed for 20 or more records in a row, the last time with"
        " the handler raised RuntimeError: no paper"
    )
    fails = False
    beside.placed()
    beside.until_done()
    until(lambda: not pauses(life))
    first, last = beside.told("reaction_pauses")
    assert first == line
    assert last.startswith("WARNING done goes on after ")
    assert last.endswith(" s: its handler carried out a record")


def test_pauses_that_come_again_and_again_are_told_ten_times_a_minute(beside: Beside) -> None:
    lane, lines = idle(beside), LimitedLines()
    for number in range(30):
        reaction_pause.count_batch_in_breaker(lane, lines, 0, {(key,): "no" for key in range(FAILING_MOST)}, number)
        assert lane.postponement.is_failing
        reaction_pause.count_batch_in_breaker(lane, lines, 1, {}, number)
        assert not lane.postponement.is_failing
    told = [getattr(one, "pauses", None) for one in beside.said.records if getattr(one, "event", "") == "reaction_pauses"]
    assert told == [True, False] * 10
    lines.log_left_out_counts(100.0)
    assert beside.told("lines_left_out") == ["WARNING done: 20 more pauses of its handler since then, for which no line was written"]


def test_a_record_that_fails_again_does_not_make_the_pause_longer(beside: Beside) -> None:
    lane, lines = idle(beside), LimitedLines()
    wrong = {(key,): "no" for key in range(FAILING_MOST)}
    reaction_pause.count_batch_in_breaker(lane, lines, 0, wrong, 100.0)
    until_ = lane.postponement.failing_until
    reaction_pause.count_batch_in_breaker(lane, lines, 0, wrong, until_ + 1)
    assert lane.postponement.limit_records(8, until_ + 1) == 1
    reaction_pause.count_batch_in_breaker(lane, lines, 0, {(77,): "no"}, until_ + 1)
    assert lane.postponement.limit_records(8, until_ + 1) == 0
