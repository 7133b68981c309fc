"""Records that are broken, and not their service: its probes go to others as well, so that what can be carried out is. All by counts."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from groundstate import Absent, ExternalService, IdempotencyKey, InDoubt, NotDone, Retry
from groundstate.rules import circuit_breaker
from tests.engine.kit import CALL_LIMIT, Order, ms, until
from tests.others_go_on.conftest import RECEIPT, Beside
from tests.patience import LOOKS_S

BROKEN = range(1, 13)
GOOD = range(101, 106)
AT_ONCE_DUE = Retry(times=None, first=ms(1), longest=ms(1))
BETWEEN = 2  # the probe that is under way when the good ones come is not counted; then one may be of a broken record, and one is of a good


class Service:
    """Raises for broken records. `hold`: a call for one of those waits as long as this is set."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.hold = threading.Event()
        self.waiting = threading.Event()
        self.service = ExternalService("desk")

    async def take(self, order: Order, error: type[Exception]) -> str:
        self.calls.append(order.id)
        if order.id not in BROKEN:
            return RECEIPT
        while self.hold.is_set():  # an event of threads
            self.waiting.set()
            await asyncio.sleep(LOOKS_S)
        raise error("400 this record is broken")

    def call(self, error: type[Exception], in_doubt: InDoubt, retry: Retry = AT_ONCE_DUE) -> Any:
        @self.service.call(in_doubt=in_doubt, retry=retry, timeout=CALL_LIMIT)
        async def push(order: Order) -> str:
            return await self.take(order, error)

        return push


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit_breaker, "FIRST_S", 0.01)
    monkeypatch.setattr(circuit_breaker, "LONGEST_S", 0.02)
    monkeypatch.setattr(circuit_breaker, "DOUBLES_EACH_S", 0.01)


def declare(beside: Beside, name: str, status: str, call: Any, **options: Any) -> None:
    def pushed(order: Order, outcome: str) -> None:
        order.status = outcome

    beside.app.on(Order, Order.status == status, call=call, name=name, **options)(pushed)


def calls_before_a_good_one(beside: Beside, service: Service, *good: Order) -> list[int]:
    """While the service is paused by broken records good ones are written; what is called from then on, up to the first of them."""
    life = beside.worker()
    until(lambda: life.pauses)
    service.hold.set()
    beside.forward(60)  # those in doubt are asked after now
    assert service.waiting.wait(60)
    until(lambda: len(life.worker.components.call_turns._flying) == 1)  # those that were begun before the pause are back
    mark = len(service.calls)
    beside.add(*good)
    until(
        lambda: (
            any(queue.has_work and not queue.due_work.has_due_attempts for queue in life.worker.queues)
            or any(queue.rows.fresh for queue in life.worker.queues)
        )
    )
    service.hold.clear()
    until(lambda: beside.count(Order.status == RECEIPT) == len(good), beside.attempts)
    calls = service.calls[mark:]
    return calls[: next(number for number, one in enumerate(calls) if one not in BROKEN) + 1]


@pytest.mark.parametrize("error", [NotDone, RuntimeError], ids=["not_done", "in_doubt"])
def test_a_new_record_is_a_probe_at_least_each_second_time(beside: Beside, error: type[Exception]) -> None:
    service = Service()
    declare(beside, "pushed", "placed", service.call(error, InDoubt.repeat()))
    beside.orders_from(BROKEN[0], BROKEN[-1])
    assert len(calls_before_a_good_one(beside, service, *[Order(id=number) for number in GOOD])) <= BETWEEN


def test_a_new_record_is_a_probe_beside_lookups_that_raise(beside: Beside) -> None:
    service = Service()
    call = service.call(RuntimeError, InDoubt.lookup(settle_after=ms(1)))

    @call.lookup
    async def found(order: Order, key: IdempotencyKey) -> str | Absent:
        await service.take(order, RuntimeError)
        return Absent()

    declare(beside, "pushed", "placed", call)
    beside.orders_from(BROKEN[0], BROKEN[-1])
    assert len(calls_before_a_good_one(beside, service, *[Order(id=number) for number in GOOD])) <= BETWEEN


def test_a_new_record_of_another_reaction_on_the_same_service_is_a_probe(beside: Beside) -> None:
    service = Service()
    declare(beside, "pushed", "placed", service.call(NotDone, InDoubt.repeat()))
    declare(beside, "shipped", "paid", service.call(NotDone, InDoubt.repeat()))
    beside.orders_from(BROKEN[0], BROKEN[-1])
    good = [Order(id=number, status="paid") for number in GOOD]
    assert len(calls_before_a_good_one(beside, service, *good)) <= BETWEEN


def test_a_new_record_of_the_same_part_is_a_probe_of_that_part(beside: Beside) -> None:
    service = Service()
    declare(beside, "pushed", "placed", service.call(NotDone, InDoubt.repeat()), per=Order.note)
    beside.add(*[Order(id=number, note="a tenant") for number in BROKEN])
    good = [Order(id=number, note="a tenant") for number in GOOD]
    assert len(calls_before_a_good_one(beside, service, *good)) <= BETWEEN


def test_records_that_failed_are_probes_as_well_while_new_ones_come(beside: Beside) -> None:
    """A service that is down, and as many new records as there may be: who failed has his turn."""
    tried: list[int] = []

    async def down(order: Order) -> str:
        tried.append(order.id)
        raise NotDone("no route")

    declare(beside, "pushed", "placed", ExternalService("desk", limit=5).call(in_doubt=InDoubt.repeat(), retry=AT_ONCE_DUE)(down))
    beside.orders_from(1, 200)
    life = beside.worker()
    until(lambda: life.pauses)
    mark = len(tried)
    until(lambda: len(tried) >= mark + 20)
    probes = tried[mark : mark + 20]
    again = [one for number, one in enumerate(probes, mark) if one in tried[:number]]
    assert 8 <= len(again) <= 12, probes


def test_both_reactions_on_a_service_that_is_down_have_their_probes(beside: Beside) -> None:
    tried: list[str] = []
    desk = ExternalService("desk", limit=5)

    def down(name: str) -> Any:
        async def push(order: Order) -> str:
            tried.append(name)
            raise NotDone("no route")

        return desk.call(in_doubt=InDoubt.repeat(), retry=AT_ONCE_DUE)(push)

    declare(beside, "pushed", "placed", down("pushed"))
    declare(beside, "shipped", "paid", down("shipped"))
    beside.add(*[Order(id=number, status="placed" if number % 2 else "paid") for number in range(1, 201)])
    life = beside.worker()
    until(lambda: life.pauses)
    mark = len(tried)
    until(lambda: len(tried) >= mark + 20)
    assert {tried[mark:][:20].count(name) for name in ("pushed", "shipped")} <= {9, 10, 11}
