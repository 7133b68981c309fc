"""A record moves from one reaction to another that makes the same call: it is called once, and a person says whether once more."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import and_

from groundstate import Absent, ExternalService, IdempotencyKey, InDoubt, Unknown
from groundstate.cli import pending
from groundstate.engine.operate import actions
from tests.engine.charging import ASK, SAME_KEY
from tests.engine.kit import CALL_LIMIT, QUICK, Gateway, Order, World, until
from tests.engine.operate.test_actions import acting


def two_countries(world: World, policy: InDoubt, handler: Any = None) -> Gateway:
    """`paid_de` and `paid_fr` charge the orders of their country at one bank, by one call."""
    gateway = world.gateway()
    bank = ExternalService("bank")

    @bank.call(in_doubt=policy, timeout=CALL_LIMIT, retry=QUICK)
    async def charge(order: Order, key: IdempotencyKey) -> str:
        return await gateway.act(order.id, key)

    if policy.kind == "lookup":

        @charge.lookup
        def charged(order: Order, key: IdempotencyKey) -> str | Absent | Unknown:
            answer: str | Absent | Unknown = gateway.find(order.id, key)
            return answer

    for country in ("de", "fr"):

        @world.app.on(Order, and_(Order.status == "placed", Order.note == country), call=charge, name=f"paid_{country}")
        def paid(order: Order, outcome: str) -> None:
            if handler is not None:
                handler(order)
            order.status, order.receipt = "paid", outcome

    return gateway


@pytest.mark.parametrize("policy", [ASK, SAME_KEY, InDoubt.hold()], ids=["lookup", "same_key", "hold"])
def test_an_order_whose_country_changes_while_its_charge_is_in_the_air_is_not_charged_by_the_other_reaction(
    world: World, policy: InDoubt
) -> None:
    gateway = two_countries(world, policy)
    gateway.plan(1, "done_hang")
    world.add(Order(id=1, note="de"))
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.set(1, note="fr")
    gateway.gate.set()
    until(lambda: world.states() == ["held"])
    life.sweep()
    life.quiet()
    assert (gateway.called(1), world.order().status) == (1, "placed")
    report = pending.read_pending(world.app, world.app.stores[0])
    assert [(one.reaction, one.record, one.waits_for) for one in report.waits] == [("paid_fr", "1", "paid_de")]
    with acting(world) as person:
        assert actions.forget(person, "paid_de", "1").became == "deleted"
    life.sweep()
    until(lambda: world.order().status == "paid")
    assert gateway.called(1) == 2, "a person let it go"


def test_so_it_is_with_an_outcome_that_a_faulty_handler_did_not_take(world: World) -> None:
    def faulty(order: Order) -> None:
        if order.note == "de":
            raise RuntimeError("a bug")

    gateway = two_countries(world, InDoubt.hold(), faulty)
    world.add(Order(id=1, note="de"), Order(id=2, note="fr"))
    world.settled()
    world.set(1, note="fr")
    world.settled()
    assert (world.states(), gateway.called(1), world.order().status) == (["held"], 1, "placed")
    assert (gateway.called(2), world.order(2).status) == (1, "paid")


def test_where_calling_twice_does_no_harm_the_other_reaction_goes_on(world: World) -> None:
    gateway = two_countries(world, InDoubt.repeat())
    gateway.plan(1, "done_hang")
    world.add(Order(id=1, note="de"))
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.set(1, note="fr")
    gateway.gate.set()
    until(lambda: world.order().status == "paid")
    life.quiet()
    assert gateway.called(1) == 2
