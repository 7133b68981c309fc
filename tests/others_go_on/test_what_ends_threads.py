"""What is no Exception, such as SystemExit of a library, comes from a user's code: it is that record's failure, and ends no worker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.orm import Session

from groundstate import App, ExternalService, InDoubt, Store
from groundstate.cli.health import Health
from groundstate.engine.worker.loop_iteration import LoopIteration
from groundstate.engine.worker.worker import Worker
from groundstate.store import connect
from tests.engine.kit import Base, Order, until
from tests.others_go_on.conftest import ONCE, ONE, OTHERS, Beside
from tests.patience import HANG_S


def _raiser(error: type[BaseException]) -> Callable[[object], NoReturn]:
    def ends(_order: object) -> NoReturn:
        raise error("enough")

    return ends


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit])
def test_a_handler_raises_it(beside: Beside, error: type[BaseException]) -> None:
    beside.handled(_raiser(error))
    beside.go_on(f"the handler raised {error.__name__}: enough", event="handler_failed")


def test_sends_raises_it(beside: Beside) -> None:
    ends = _raiser(KeyboardInterrupt)

    def sends(order: Order) -> int:
        if order.id == ONE:
            ends(order)
        return order.id

    @ExternalService("desk").call(in_doubt=InDoubt.repeat(), retry=ONCE)
    async def ask(number: int) -> str:
        return "receipt"

    @beside.app.on(Order, Order.status == "placed", name="done", call=ask, prepare=sends)
    def done(order: Order, outcome: str) -> None:
        order.status = "done"

    beside.go_on("prepare raised KeyboardInterrupt: enough", event="sends_failed")


def test_the_handler_of_an_outcome_raises_it(beside: Beside) -> None:
    async def receipt() -> str:
        return "receipt"

    beside.called(receipt, handler=_raiser(SystemExit))
    beside.go_on("the handler raised SystemExit: enough", event="outcome_held")


def test_a_hook_raises_it_at_the_flush(beside: Beside) -> None:
    def hook(session: Session, *_more: Any) -> None:
        if any(isinstance(one, Order) and one.id == ONE and one.status == "done" for one in session.dirty):
            raise asyncio.CancelledError("enough")

    event.listen(Session, "before_flush", hook)
    try:
        beside.handled(lambda _order: None)
        beside.go_on("its flush was refused: CancelledError: enough", event="handler_failed")
    finally:
        event.remove(Session, "before_flush", hook)


@pytest.mark.parametrize("error", [SystemExit, RuntimeError])
def test_a_hook_raises_when_its_record_is_loaded(beside: Beside, error: type[BaseException]) -> None:
    def hook(order: Order, *_more: Any) -> None:
        if order.id == ONE:
            raise error("enough")

    beside.handled(lambda _order: None)
    event.listen(Order, "load", hook)
    try:
        beside.go_on(f"its record cannot be read: {error.__name__}: enough", event="record_unreadable")
    finally:
        event.remove(Order, "load", hook)


class Ends(BaseException):
    """An error of ours, which ends a worker's thread."""


def test_a_workers_thread_ends_and_another_worker_carries_out(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    turn, make = LoopIteration.run_iteration, App._make_worker
    ends = iter([True])

    def end_once(self: LoopIteration) -> None:
        if next(ends, False):
            raise Ends("no more turns")
        turn(self)

    def wait(self: App, *arguments: Any) -> Worker:
        if arguments[-1]:  # in the place of another
            assert gate.wait(HANG_S)
        return make(self, *arguments)

    monkeypatch.setattr(LoopIteration, "run_iteration", end_once)
    monkeypatch.setattr(App, "_make_worker", wait)
    app = App("threads", Store(database_url, Base))

    @app.on(Order, Order.status == "placed")
    def done(order: Order) -> None:
        order.status = "done"

    app.init(tables=True)
    app.start()
    try:
        until(lambda: app.down)
        why = "its worker ended by itself: Ends: no more turns"
        assert list(app.down.values()) == [why]
        health = Health(app)
        health.started = True
        ((ready, said),) = [(one.ready, one.why) for one in health.check_stores(60)]
        assert (ready, said) == (False, f"no worker runs for it: {why}")
        assert health.find_stuck_workers(60) == [], "whoever asks /livez kills the process, in which another worker is to come"
        assert isinstance(app.failure, Ends)
        events = [getattr(line, "event", None) for line in caplog.records if line.levelname != "INFO"]
        assert [event for event in events if event != "transaction_long"] == ["worker_ended"]  # a busy machine may make one long
        gate.set()
        engine = create_engine(connect.resolve_settings(database_url, None, None, "lossy").url)
        with Session(engine) as session:
            session.add_all([Order(id=number + 1) for number in range(OTHERS)])
            session.commit()
        until(lambda: count(engine) == OTHERS)
        until(lambda: not app.down)
        until(lambda: app.failure is None)
        assert [one.ready for one in health.check_stores(60)] == [True]
        until(lambda: "worker_replaced" in [getattr(line, "event", None) for line in caplog.records])  # said once it runs
        engine.dispose()
    finally:
        gate.set()
        app.stop()


def count(engine: Engine) -> int:
    """How many orders are done."""
    with Session(engine) as session:
        return session.execute(select(func.count()).select_from(Order).where(Order.status == "done")).scalar_one()
