"""The name that keys are made of, after a rename: it is said by the code, and what our tables lose changes no key."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from groundstate import ExternalService, IdempotencyKey, InDoubt
from groundstate.engine.operate import check, renaming
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from groundstate.values.errors import DeclarationError, StoreRefusedError
from tests.engine.charging import ASK, charging, left_in_doubt
from tests.engine.kit import CALL_LIMIT, Gateway, Order, World, until
from tests.engine.operate.test_actions import acting


def renamed(world: World, key_name: str | None = "paid") -> tuple[World, Gateway]:
    """`paid` is `charged` since, and the code says so. Returns the new code's world."""
    gateway = charging(world, ASK, name="paid")
    world.there()
    with acting(world) as person:
        renaming.rename(person, "paid", "charged")
    later = World(world.url)
    later._there = True
    said: Any = {} if key_name is None else {"key_name": key_name}
    charging(later, ASK, gateway=gateway, name="charged", **said)
    return later, gateway


def test_where_our_tables_are_lost_after_a_rename_a_call_is_looked_up_under_its_own_key(world: World) -> None:
    later, gateway = renamed(world)
    left_in_doubt(later, gateway, Order(id=1))
    for table in ("attempt", "worker", "reaction", "rate"):
        later.force(f"drop table groundstate_{table}")
    later.app.init(after_restore=True)
    later.app.init(accept=["charged=doubt"])
    later.settled()
    assert (gateway.called(1), later.order().status, later.states()) == (1, "paid", [])
    later.close()


def test_so_it_is_where_the_row_of_the_reaction_alone_is_lost(world: World) -> None:
    later, gateway = renamed(world)
    left_in_doubt(later, gateway, Order(id=1))
    later.run("delete from groundstate_reaction where name = 'charged'")
    later.worker()
    until(lambda: later.order().status == "paid")
    assert gateway.called(1) == 1
    later.close()


def test_code_that_does_not_say_it_is_told_to(world: World, caplog: pytest.LogCaptureFixture) -> None:
    later, _ = renamed(world, None)
    with caplog.at_level(logging.WARNING, logger="groundstate"):
        later.settled()
    assert [line.getMessage() for line in caplog.records if getattr(line, "event", None) == "key_name_unsaid"] != []
    assert "key_name='paid' to App.on" in caplog.text
    database, *_ = connect.open_store(later.app.stores[0].settings())
    try:
        found = check.check_database(database, [ConditionQuery(spec, database) for spec in later.app.reactions.values()], [])
    finally:
        database.close()
    assert [(one.subject, one.cure) for one in found if one.kind == "key name"] == [("charged", "key_name='paid' in App.on")]
    later.close()


def test_code_that_says_another_name_than_the_database_is_refused(world: World) -> None:
    later, _ = renamed(world, "billed")
    with pytest.raises(StoreRefusedError, match=r"says key_name='billed', but on this database the keys of its calls are made of 'paid'"):
        later.worker()
    later.close()


def test_a_new_reaction_that_is_given_the_old_name_is_refused_since_it_would_make_the_same_keys(world: World) -> None:
    later, gateway = renamed(world, None)
    another = ExternalService("another bank")

    @another.call(in_doubt=InDoubt.hold(), timeout=CALL_LIMIT)
    async def pay(order: Order, key: IdempotencyKey) -> str:
        return await gateway.act(order.id, key)

    @later.app.on(Order, Order.status == "billed", call=pay, name="paid")
    def paid(order: Order, outcome: str) -> None:
        order.status = outcome

    with pytest.raises(StoreRefusedError, match="paid would make the keys of charged, which had that name when its first call was made"):
        later.worker()
    later.close()


def test_two_reactions_of_one_app_do_not_make_the_same_keys(world: World) -> None:
    charging(world, ASK, name="paid")
    with pytest.raises(DeclarationError, match="charged would make the keys of reaction paid"):
        charging(world, ASK, name="charged", key_name="paid", occurrence=[Order.round])
    said: Any = {"key_name": "paid"}
    declare = world.app.on(Order, Order.note.is_(None), name="noted", **said)

    def noted(order: Order) -> None:
        order.note = "noted"

    with pytest.raises(DeclarationError, match="there is no call="):
        declare(noted)
