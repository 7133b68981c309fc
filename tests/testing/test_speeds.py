"""A run of the lab is the same, line by line, on a machine of any speed: no module that it goes through reads a real clock."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import App, ExternalService, InDoubt, Retry, Store, UtcDateTime, after
from groundstate.testing import Lab
from groundstate.testing.simulate.crash_plan import parse_schedule
from groundstate.testing.simulate.fake_environment import EPOCH

SCRATCH = r"groundstate-lab-\w+"  # the folder of a run's databases, which has another name each time
ROWS = 60
HANDLER_S = 0.004  # seconds that a handler takes on the slow machine: with all of a batch, longer than a batch may hold its locks
STATEMENT_S = 0.002  # seconds that each statement takes there


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    note: Mapped[str | None] = mapped_column(default=None)
    receipt: Mapped[str | None] = mapped_column(default=None)
    due: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


@dataclass
class Machine:
    """How long what runs on this machine really takes."""

    slow: bool = False

    def takes(self, seconds: float) -> None:
        end = time.perf_counter() + (seconds if self.slow else 0.0)
        while time.perf_counter() < end:
            pass

    @contextmanager
    def running(self, *, slow: bool) -> Iterator[None]:
        def asked(*_: Any) -> None:
            self.takes(STATEMENT_S)

        self.slow = slow
        event.listen(Engine, "before_cursor_execute", asked)
        try:
            yield
        finally:
            event.remove(Engine, "before_cursor_execute", asked)


Declared = Callable[[App, Machine, Lab], list[object]]


def batches(app: App, machine: Machine, _lab: Lab) -> list[object]:
    """Handlers without a call, in batches; some of them fail, and are found among the others."""

    @app.on(Order, Order.status == "placed", retry=Retry(times=2, first=timedelta(seconds=5)))
    def packed(order: Order) -> None:
        machine.takes(HANDLER_S)
        if order.id % 20 == 0 and order.note is None:
            raise ValueError("this one is bad")
        order.status = "packed"

    @app.on(Order, Order.status == "packed", Order.note.is_(None), done_column=Order.note)
    def noted(order: Order) -> None:
        machine.takes(HANDLER_S)
        order.note = "seen"

    return [Order(id=number + 1) for number in range(ROWS)]


def calls(app: App, machine: Machine, lab: Lab) -> list[object]:
    """Calls at a limited service, whose arguments and outcomes take long to prepare and to apply."""
    bank = ExternalService("bank", limit=5)

    @bank.call(in_doubt=InDoubt.repeat(), timeout=timedelta(seconds=20))
    def charge(number: int) -> str:
        raise AssertionError("the lab's fake is called instead")

    def number_of(order: Order) -> int:
        machine.takes(HANDLER_S)
        return order.id

    @app.on(Order, Order.status == "placed", call=charge, prepare=number_of)
    def paid(order: Order, receipt: str) -> None:
        machine.takes(HANDLER_S)
        order.status, order.receipt = "paid", receipt

    lab.fake(charge, lambda number: f"receipt {number}")
    return [Order(id=number + 1) for number in range(ROWS // 4)]


def due(app: App, machine: Machine, _lab: Lab) -> list[object]:
    """Records that become due at the same times, some at each."""

    @app.on(Order, Order.status == "placed", due=after(Order.due, timedelta(seconds=1)))
    def reminded(order: Order) -> None:
        machine.takes(HANDLER_S)
        order.status = "reminded"

    return [Order(id=number + 1, due=EPOCH + timedelta(seconds=7 * (number // 4))) for number in range(ROWS // 2)]


def lines(of: Declared, plan: str, caplog: pytest.LogCaptureFixture, *, slow: bool, postgres: str | None) -> list[str]:
    """Everything that one run says and leaves: its story, its crossings, its log and its rows."""
    machine = Machine()
    app = App("speeds", Store("sqlite:///speeds.db" if postgres is None else postgres, Base))
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "groundstate"), Lab(postgres=postgres) as made:
        rows = of(app, machine, made)
        trial = made._build_trial(app, *rows, may_fail=["packed"])
        with machine.running(slow=slow):
            stage = trial.run(parse_schedule(plan))
        said = [f"{one.levelname} {re.sub(SCRATCH, '', one.getMessage())}" for one in caplog.records if one.name.startswith("groundstate")]
        with stage.place.session() as session:
            left = [
                str(tuple(row)) for row in session.execute(select(Order.id, Order.status, Order.note, Order.receipt).order_by(Order.id))
            ]
            left.append(str(session.scalar(select(func.count()).select_from(text("groundstate_attempt")))))
        return [*stage.story, *(str(one) for one in stage.crossings), *said, *left, f"{stage.time.now_s} s"]


@pytest.mark.parametrize("plan", ["", "die@40 die@70", "switch@25 workers=2"])
@pytest.mark.parametrize("of", [batches, calls, due])
def test_a_slow_machine_says_the_same_lines(of: Declared, plan: str, caplog: pytest.LogCaptureFixture) -> None:
    quick = lines(of, plan, caplog, slow=False, postgres=None)
    slow = lines(of, plan, caplog, slow=True, postgres=None)
    assert len(quick) > 50
    assert slow == quick
