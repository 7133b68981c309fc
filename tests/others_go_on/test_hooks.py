"""What the framework calls of a user's beside handlers and calls: a hook that fails takes nobody along, and the log says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from groundstate import Absent, ExternalService, Failure, InDoubt, NotDone, Retry, Unknown
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.transaction import OurSession
from groundstate.engine.watch.hint_publisher import HintPublisher
from groundstate.engine.watch.trace_hooks import GuardedWatch, Where
from groundstate.store import connect
from groundstate.transport.memory import MemoryTransport
from tests.engine.kit import QUICK, Order, ms, until
from tests.others_go_on.conftest import ONE, RECEIPT, Beside
from tests.telemetry.test_traces import Broken


class Loud(logging.Handler):
    """It does not guard itself, as those of the standard library do."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error
        self.given = 0

    def emit(self, _record: logging.LogRecord) -> None:
        self.given += 1
        raise self.error("the collector of logs is down")


@pytest.mark.parametrize("error", [OSError, SystemExit])
def test_a_log_handler_raises(beside: Beside, error: type[BaseException]) -> None:
    broken = Loud(error)
    logging.getLogger("groundstate").addHandler(broken)
    try:
        beside.handled(lambda _order: 1 / 0)
        beside.go_on("division by zero", event="handler_failed")
        assert broken.given
    finally:
        logging.getLogger("groundstate").removeHandler(broken)


SELDOM = Retry(times=None, first=ms(60_000))


def _refuse() -> NoReturn:
    raise OSError("no paper")


async def _refuse_on_the_loop() -> NoReturn:
    raise OSError("no paper")


@pytest.mark.parametrize("call", [_refuse, _refuse_on_the_loop])
@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_function_of_not_done_raises(beside: Beside, call: Any, error: type[BaseException]) -> None:
    def tell(_error: Exception) -> bool:
        raise error("enough")

    beside.called(call, in_doubt=InDoubt.hold(), service=ExternalService("desk", limit=20, not_done=[tell]))
    beside.go_on("OSError: no paper", event="call_in_doubt")
    assert len(beside.told("not_done_failed")) == 1


def test_a_listener_of_flushes_raises(beside: Beside) -> None:
    def hook(session: Session, *_more: Any) -> None:
        if isinstance(session, OurSession) and any(isinstance(one, Order) and one.id == ONE for one in session.dirty):
            raise RuntimeError("enough")

    event.listen(Session, "after_flush", hook)
    try:
        beside.handled(lambda _order: None)
        beside.go_on("its flush was refused: enough", event="handler_failed")
    finally:
        event.remove(Session, "after_flush", hook)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_gave_up_handler_raises(beside: Beside, error: type[BaseException]) -> None:
    def refuse() -> NoReturn:
        raise NotDone("no paper")

    reaction = beside.called(refuse)

    @reaction.gave_up
    def _(order: Order, failure: Failure) -> None:
        raise error("enough")

    beside.go_on(f"its gave_up handler failed: the handler raised {error.__name__}: enough", event="attempt_kept")


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_find_raises(beside: Beside, error: type[BaseException]) -> None:
    @ExternalService("desk", limit=20).call(in_doubt=InDoubt.lookup(settle_after=ms(1)), timeout=ms(100), retry=SELDOM)
    def send(order: Order) -> str:
        if order.id == ONE:
            raise OSError("no answer")
        return RECEIPT

    @send.lookup
    def _(order: Order) -> str | Absent | Unknown:
        raise error("enough")

    @beside.app.on(Order, Order.status == "placed", name="done", call=send)
    def done(order: Order, outcome: str) -> None:
        order.status = "done"

    beside.placed()
    beside.worker()
    beside.until_done()
    until(lambda: beside.attempts() and "enough" in (beside.attempt().error or ""), beside.attempts)
    beside.listed(f"{error.__name__}: enough", "doubt")
    lines = beside.told("call_failed")  # one each time it is asked, which on a busy machine may be twice by now
    assert lines
    assert all(f"lookup raised {error.__name__}: enough" in line for line in lines)


def test_a_find_that_its_time_limit_ends_is_told_as_such(beside: Beside) -> None:
    @ExternalService("desk", limit=20).call(in_doubt=InDoubt.lookup(settle_after=ms(1)), timeout=ms(100), retry=SELDOM)
    async def send(order: Order) -> str:
        if order.id == ONE:
            raise OSError("no answer")
        return RECEIPT

    @send.lookup
    async def _(order: Order) -> str | Absent | Unknown:
        await asyncio.Event().wait()
        return Unknown()

    @beside.app.on(Order, Order.status == "placed", name="done", call=send)
    def done(order: Order, outcome: str) -> None:
        order.status = "done"

    beside.placed()
    beside.worker()
    beside.until_done()
    until(lambda: "timed out" in (beside.attempt().error or ""), beside.attempts)
    beside.listed("its lookup timed out after 0.1 s", "doubt")
    assert set(beside.told("call_failed")) == {"INFO done on orders 1: its lookup timed out after 0.1 s"}


class Torn(MemoryTransport):
    def send(self, _hint: bytes) -> None:
        raise OSError("the line is down")


def test_a_transport_raises(beside: Beside) -> None:
    beside.handled(lambda _order: None)
    database, _, _ = connect.open_store(beside.app.stores[0].settings())
    told = HintPublisher("shop", Torn(), [ConditionQuery(spec, database) for spec in beside.app.reactions.values()])
    told.start()
    try:
        beside.worker(messenger=told)
        beside.placed()
        beside.until_done()
        until(lambda: beside.told("hints_unsent"))
    finally:
        told.stop()
        database.close()


async def _receipt() -> str:
    return RECEIPT


def _receipt_in_a_thread() -> str:
    return RECEIPT


@pytest.mark.parametrize("call", [_receipt, _receipt_in_a_thread])
@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_client_raises_when_it_is_opened_and_when_it_is_closed(beside: Beside, call: Any, error: type[BaseException]) -> None:
    fails = iter([True])

    @contextmanager
    def client() -> Iterator[None]:
        if next(fails, False):
            raise error("enough")
        yield
        raise error("enough")

    beside.called(call, retry=QUICK, service=ExternalService("desk", limit=20, client=client))
    beside.placed()
    life = beside.worker()
    beside.until_done()
    until(lambda: ONE in beside.done(), beside.attempts)
    life.stop()
    assert [line.partition(" ")[0] for line in beside.told("client_close_failed")] == ["ERROR"]


@pytest.mark.parametrize("late", [False, True])
def test_a_watch_raises_and_is_told_of_once(beside: Beside, late: bool) -> None:
    beside.called(_receipt, service=ExternalService("desk", limit=20))
    life = beside.worker(start=False)
    life.worker.components.worker_state.watched = life.worker.components.call_turns.caller.watched = GuardedWatch(
        Where("shop", "here"), Broken(late=late)
    )
    life.worker.start()
    beside.placed()
    beside.until_done()
    assert [line.partition(" ")[0] for line in beside.told("watch_failed")] == ["ERROR"]
