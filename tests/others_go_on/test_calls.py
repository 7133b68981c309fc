"""What one call does, or what keeps it from being made."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from groundstate import ExternalService, Failure, InDoubt, NotDone, Retry
from groundstate.engine.call import executor, thread_pool
from groundstate.engine.call.result_log import FailedCalls
from groundstate.engine.rows.in_flight import NothingHappened, Unclear
from groundstate.engine.rows.limited_logging import LINES_MOST, WITHIN_S, LimitedLines
from groundstate.engine.watch.log_backoff import RepeatedTrouble
from groundstate.engine.worker import shut_down
from groundstate.rules.circuit_breaker import IN_A_ROW
from tests.engine.kit import HANG_S, QUICK, Order, ms, until
from tests.others_go_on.conftest import MORE, ONCE, ONE, OTHERS, Beside


async def _receipt() -> str:
    return "receipt"


def _receipt_in_a_thread() -> str:
    return "receipt"


@pytest.mark.parametrize("call", [_receipt, _receipt_in_a_thread])
@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("can't start new thread")])
def test_calls_that_cannot_be_started_fail_and_are_made_once_they_can_be(
    beside: Beside, call: Any, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside.called(call, retry=QUICK, service=ExternalService("desk", limit=20))
    refused: list[Exception] = []

    def refuse(*_arguments: Any, **_more: Any) -> Any:
        refused.append(error)
        patch.undo()
        raise error

    patch = monkeypatch
    if isinstance(error, OSError):
        patch.setattr(executor, "new_call_loop", refuse)
        patch.setattr(thread_pool.Threads, "run", refuse)
    else:
        patch.setattr(threading.Thread, "start", _only_ours(threading.Thread.start, refuse))
    beside.orders(OTHERS + 1)
    beside.worker()
    until(lambda: beside.count(Order.status == "done") == OTHERS + 1, beside.attempts)
    assert len(refused) == 1
    assert beside.attempts() == []


def _only_ours(start: Any, refuse: Any) -> Any:
    """Threads of calls cannot be started, others can."""

    def start_it(thread: threading.Thread) -> None:
        if thread.name in ("groundstate-calls", "groundstate-sync-call"):
            refuse()
        start(thread)

    return start_it


def test_an_async_call_that_swallows_its_cancellation_is_told_as_a_thread_that_hangs_is(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "UNWINDS_S", 0.01)
    monkeypatch.setattr(shut_down, "CALLS_END_S", 0.01)
    gate = threading.Event()

    async def swallow() -> str:
        while not gate.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        raise RuntimeError("it was late")

    beside.called(swallow, in_doubt=InDoubt.hold(), timeout=ms(20), service=ExternalService("desk", limit=20))
    beside.go_on("timed out after 0.02 s", event="call_hangs", state="doubt")
    one = beside.lives[0].worker
    assert one.components.call_turns.limits.number_of_hanging_calls == 1, "its slot is free, and one more call than the limit is under way"
    one.stop(0)
    assert one.incarnation.liveness.has_lock(), "another worker takes this one for dead, and settles a call that may still land"
    gate.set()
    until(lambda: "groundstate-last-calls" not in {thread.name for thread in threading.enumerate()})
    assert not one.incarnation.liveness.has_lock()


def test_a_task_that_a_call_left_behind_may_end_the_process_and_the_calls_go_on(beside: Beside) -> None:
    async def leave() -> str:
        async def end() -> NoReturn:
            raise SystemExit(3)

        beside.left = asyncio.ensure_future(end())  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)
        return "receipt"

    beside.called(leave)
    beside.orders(OTHERS + 1)
    beside.worker()
    until(lambda: beside.count(Order.status == "done") == OTHERS + 1, beside.attempts)
    assert [line.levelname for line in beside.said.records if getattr(line, "event", None) == "call_task_raised"] == ["ERROR"]


def test_a_call_that_stops_the_loop_of_all_calls_stops_none_of_them_and_is_told(beside: Beside) -> None:
    async def stop() -> str:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return "receipt"

    beside.called(stop, service=ExternalService("desk", limit=20))
    beside.orders(OTHERS + 1)
    beside.worker()
    until(lambda: beside.count(Order.status == "done") == OTHERS + 1, beside.attempts)
    assert [line.levelname for line in beside.said.records if getattr(line, "event", None) == "call_loop_stopped"] == ["ERROR"]


@pytest.mark.parametrize("many", [False, True])
def test_calls_that_another_call_cancels_before_they_begin_are_made_all_the_same(beside: Beside, many: bool) -> None:
    cancelled: list[int] = []

    async def cancel() -> str:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        cancelled.append(len([task for task in others if task.cancel()]))
        return "receipt"

    service = ExternalService("desk", limit=20)
    beside.called(cancel, service=service)
    if many:

        async def ask_many(orders: Sequence[Order]) -> list[str]:
            return ["receipt"] * len(orders)

        asked = service.call_many(size=2, in_doubt=InDoubt.repeat())(ask_many)

        @beside.app.on(Order, Order.status == "paid", name="packed", call=asked)
        def packed(order: Order, outcome: str) -> None:
            order.status = "done"

    beside.orders(OTHERS + 1)
    if many:
        beside.run(f"update orders set status = 'paid' where id > {ONE}")
    beside.worker()
    until(lambda: beside.count(Order.status == "done") == OTHERS + 1, beside.attempts)
    assert len(cancelled) == 1
    assert beside.attempts() == []


def test_a_call_for_many_refuses_one_record(beside: Beside) -> None:
    async def ask_many(orders: Sequence[Order]) -> list[str | NotDone]:
        return [NotDone("no paper") if order.id == ONE else "receipt" for order in orders]

    _for_many(beside, ask_many, ONCE)
    beside.go_on("no paper", event="call_failed")


def test_a_call_for_many_raises_for_one_record(beside: Beside) -> None:
    async def ask_many(orders: Sequence[Order]) -> list[str]:
        if ONE in [order.id for order in orders]:
            raise ValueError("no paper")
        return ["receipt"] * len(orders)

    _for_many(beside, ask_many, MORE)
    beside.placed()
    beside.worker()
    beside.until_done()
    until(lambda: beside.states() == ["held"], beside.attempts)
    beside.listed("no paper", "held")


def _for_many(beside: Beside, ask_many: Any, retry: Retry) -> None:
    asked = ExternalService("desk", limit=20).call_many(size=10, in_doubt=InDoubt.repeat(), retry=retry)(ask_many)

    @beside.app.on(Order, Order.status == "placed", name="done", call=asked)
    def done(order: Order, outcome: str) -> None:
        order.status = "done"


def test_a_client_that_hangs_while_it_is_opened_keeps_off_no_call_of_another_outside(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    @contextmanager
    def hangs() -> Iterator[None]:
        assert gate.wait(HANG_S)
        yield

    @ExternalService("slow", client=hangs).call(in_doubt=InDoubt.repeat())
    def tell(order: Order) -> str:
        return "told"

    @beside.app.on(Order, Order.status == "done", Order.id == 2, Order.note.is_(None), call=tell)
    def told(order: Order, outcome: str) -> None:
        order.note = outcome

    beside.called(_receipt_in_a_thread, service=ExternalService("desk", client=lambda: nullcontext("pen")))
    beside.orders(OTHERS + 1)
    beside.worker()
    until(lambda: beside.count(Order.status == "done") == OTHERS + 1, beside.attempts)
    gate.set()
    until(lambda: beside.order(2).note == "told", beside.attempts)


def test_a_client_that_takes_long_to_be_made_in_the_loop_is_told_as_such_and_no_call_is_blamed(beside: Beside) -> None:
    gate = threading.Event()

    @contextmanager
    def opened() -> Iterator[str]:
        yield "pen"

    def slow() -> Any:
        assert gate.wait(HANG_S)
        return opened()

    async def receipt() -> str:
        return "receipt"

    beside.called(receipt, service=ExternalService("desk", client=slow))
    beside.orders(1)
    beside.worker()
    until(lambda: beside.told("call_loop_blocked") != [])
    gate.set()
    (line,) = beside.told("call_loop_blocked")
    assert line.startswith("WARNING the loop of async calls is blocked: the client= of the service desk takes long to make its client")
    assert "in slow" in line
    until(lambda: beside.order(1).status == "done", beside.attempts)


def test_a_call_that_fails_at_last_is_answered_by_gave_up_and_the_log_tells_why(beside: Beside) -> None:
    def refuse() -> NoReturn:
        raise NotDone("no paper")

    reaction = beside.called(refuse, retry=MORE)

    @reaction.gave_up
    def _(order: Order, failure: Failure) -> None:
        order.status = "cancelled"

    beside.orders(OTHERS + 1)
    beside.worker()
    beside.until_done()
    until(lambda: beside.order(ONE).status == "cancelled", beside.attempts)
    assert beside.told("call_failed") == ["INFO done on orders 1: the call failed: NotDone: no paper"] * 3
    (given_up,) = beside.told("given_up")
    assert given_up == "INFO done on orders 1: given up after 3 failures, and its gave_up handler answered; the last one: NotDone: no paper"


def test_the_failure_by_which_an_endpoint_pauses_is_a_warning(beside: Beside) -> None:
    @ExternalService("desk").call(in_doubt=InDoubt.repeat(), retry=Retry(times=1))
    async def refuse(order: Order) -> str:
        raise NotDone("no paper")

    @beside.app.on(Order, Order.status == "placed", call=refuse)
    def done(order: Order, outcome: str) -> None:
        order.status = "done"

    beside.orders(IN_A_ROW)
    beside.worker()
    until(lambda: beside.states() == ["held"] * IN_A_ROW, beside.attempts)
    assert [line.partition(" ")[0] for line in beside.told("call_failed")] == ["INFO"] * (IN_A_ROW - 1) + ["WARNING"]
    (line,) = beside.told("service_breaker")
    assert line == "WARNING the service desk fails: it pauses for 1.0 s, and is probed; its last answer: NotDone: no paper"
    for line in beside.told("attempt_kept"):
        assert re.match(r"ERROR done on orders \d is held now, and waits for a person: .*NotDone: no paper", line)
        assert line.endswith("; `groundstate held --reaction done` says what can be done")


def flight_of(record: int) -> Any:
    return SimpleNamespace(
        identity=("shop", "paid", str(record), ""), query=SimpleNamespace(spec=SimpleNamespace(name="paid", table_name="orders"))
    )


def test_of_many_failed_calls_ten_are_told_and_then_how_many_more(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="groundstate")
    lines = LimitedLines()
    told = FailedCalls(str, lines)

    def fail(record: int, now: float, *, pauses: bool = False) -> None:
        flight: Any = flight_of(record)
        told.log_failure(NothingHappened(flight, "no paper"), now, pauses=pauses)

    for record in range(LINES_MOST + 3):
        fail(record, 100.0)
    fail(99, 100.0, pauses=True)
    lines.log_left_out_counts(100.0 + WITHIN_S / 2)
    assert [getattr(line, "record", None) for line in caplog.records] == [*map(str, range(LINES_MOST)), "99"]
    lines.log_left_out_counts(100.0 + WITHIN_S)
    assert caplog.records[-1].getMessage() == "paid: 3 more calls failed since then, for which no line was written"
    fail(100, 100.0 + WITHIN_S)
    assert getattr(caplog.records[-1], "record", None) == "100"
    for record in range(LINES_MOST):
        fail(record, 100.0 + WITHIN_S)
    lines.log_left_out_counts(100.0 + WITHIN_S, over=True)
    assert getattr(caplog.records[-1], "count", None) == 1


def test_of_many_doubts_ten_are_told_beside_what_failed_and_then_how_many_more(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="groundstate")
    lines = LimitedLines()
    told = FailedCalls(str, lines)
    for record in range(LINES_MOST + 3):
        flight: Any = flight_of(record)
        told.log_failure(Unclear(flight, "500"), 100.0, pauses=False, doubts=True)
        told.log_failure(Unclear(flight, "its attempt had moved on"), 100.0, pauses=False)
        told.log_failure(Unclear(flight, "told when it began to hang", running=True), 100.0, pauses=False, doubts=True)
    last: Any = flight_of(99)
    told.log_failure(NothingHappened(last, "no paper"), 100.0, pauses=False)
    assert [line.getMessage() for line in caplog.records] == [
        *(f"paid on orders {record} is in doubt: 500" for record in range(LINES_MOST)),
        "paid on orders 99: the call failed: no paper",
    ]
    lines.log_left_out_counts(100.0 + WITHIN_S)
    assert caplog.records[-1].getMessage() == "paid: 3 more calls are in doubt since then, for which no line was written"


def test_a_sync_call_that_hangs_has_one_line_with_the_cure(beside: Beside) -> None:
    gate = threading.Event()
    beside.called(lambda: str(gate.wait(HANG_S)), in_doubt=InDoubt.hold(), timeout=ms(20))
    beside.go_on("timed out after 0.02 s, and still runs", event="call_hangs", state="doubt")
    (line,) = beside.told("call_hangs")
    assert "and is in doubt: give its client a time limit of its own" in line
    assert not beside.told("call_in_doubt")
    gate.set()


def test_what_goes_on_is_said_at_once_and_then_at_gaps_that_double_up_to_a_minute() -> None:
    one = RepeatedTrouble()
    said = [second for second in range(400) if one.is_due_to_be_logged("no route", 100.0 + second)]
    assert said == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363]
    assert one.is_due_to_be_logged("another error", 100.0)
    assert not one.is_due_to_be_logged("another error", 100.0)
