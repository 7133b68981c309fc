"""The reaction that most tests are about: a placed order is charged by the gateway, and is paid."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from groundstate import Absent, ExternalService, IdempotencyKey, InDoubt, Retry, Unknown
from tests.engine.kit import CALL_LIMIT, QUICK, Gateway, Order, World, ms, until

ASK = InDoubt.lookup(settle_after=ms(100))
SAME_KEY = InDoubt.same_key(kept_for=timedelta(hours=24))


def charging(
    world: World,
    in_doubt: InDoubt,
    *,
    sync: bool = False,
    timeout: timedelta = CALL_LIMIT,
    retry: Retry = QUICK,
    limit: int | None = None,
    handler: Any = None,
    gateway: Gateway | None = None,
    **options: Any,
) -> Gateway:
    """Declares it on the world's app; returns its gateway, whose outside is `gateway.outside` and whose reaction `gateway.reaction`."""
    gateway = gateway or world.gateway()
    bank = gateway.service = ExternalService("bank", limit=limit, not_done=["builtins.ConnectionRefusedError"])

    if sync:

        @bank.call(in_doubt=in_doubt, timeout=timeout, retry=retry)
        def charge(order: Order, key: IdempotencyKey) -> str:
            return gateway.act_sync(order.id, key)

    else:

        @bank.call(in_doubt=in_doubt, timeout=timeout, retry=retry)
        async def charge(order: Order, key: IdempotencyKey) -> str:
            return await gateway.act(order.id, key)

    if in_doubt.kind == "lookup":

        @charge.lookup
        def _(order: Order, key: IdempotencyKey) -> str | Absent | Unknown:
            answer: str | Absent | Unknown = gateway.find(order.id, key)
            return answer

    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    gateway.reaction = world.app.on(Order, Order.status == "placed", call=charge, **{"name": "paid"} | options)(handler or paid)
    return gateway


def left_in_doubt(world: World, gateway: Gateway, record: Any) -> None:
    """The first record is charged, and its worker dies before it hears of that."""
    world.there()
    gateway.plan(1, "done_hang")
    world.add(record)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    life.kill()
    gateway.gate.set()
