"""A service that is down, or asks for a pause: another service's calls go on meanwhile, and its own are made when it is back."""

from __future__ import annotations

import threading

import pytest

from groundstate import Busy, Outside, Retry, again
from groundstate.engine.guarded import describe
from groundstate.rules import breaker
from tests.engine.kit import Order, ms, until
from tests.others_go_on.conftest import RECEIPT, Beside

WAITING = range(1001, 1021)
PATIENT = Retry(times=None, first=ms(5), longest=ms(20))


@pytest.mark.parametrize("error", [ConnectionRefusedError("no route"), Busy(ms(10))], ids=["down", "busy"])
def test_a_service_pauses(beside: Beside, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_S", 0.05)
    monkeypatch.setattr(breaker, "LONGEST_S", 0.1)
    monkeypatch.setattr(breaker, "DOUBLES_EACH_S", 0.05)
    back = threading.Event()

    async def receipt() -> str:
        return RECEIPT

    @Outside("bank", limit=5).call(in_doubt=again(), retry=PATIENT)
    async def charge(order: Order) -> str:
        if not back.is_set():
            raise error
        return RECEIPT

    @beside.app.on(Order, Order.status == "charging", call=charge)
    def charged(order: Order, outcome: str) -> None:
        order.status = "charged"

    beside.called(receipt, outside=Outside("desk", limit=20))
    beside.add(*[Order(id=number, status="charging") for number in WAITING])
    life = beside.worker()
    until(lambda: life.pauses)
    beside.placed()
    beside.until_done()
    paused = beside.status("charged")
    assert paused.rows + sum(one.count for one in paused.attempts.values()) == len(WAITING)
    report = beside.pending()
    assert all((one.error or "").startswith(describe(error)) for one in (*report.in_doubt, *report.failed))
    assert (beside.why(WAITING[0], "charged").attempts[0].error or "").startswith(describe(error))
    assert beside.told("outside_breaker") == ["WARNING the outside bank fails: it pauses, and is probed"]
    back.set()
    until(lambda: beside.count(Order.status == "charged") == len(WAITING), beside.attempts)
    until(lambda: beside.attempts() == [], beside.attempts)
    assert beside.told("outside_breaker")[1:] == ["WARNING the outside bank answers again"]
