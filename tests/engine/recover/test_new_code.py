"""Code that changes over rows that stay (hazards 49, 50, 62), and what strangers can do (52, 54)."""

from __future__ import annotations

import pytest

from groundstate import ExternalService, InDoubt, Retry
from groundstate.engine.sql import commit_hooks
from tests.engine.charging import charging
from tests.engine.kit import Order, World, ms, until


def _again(world: World) -> None:
    """The same app, declared anew by newer code."""
    world.app.reactions.clear()


def test_hazard_49_a_new_reaction_does_not_start_on_old_rows_until_a_person_says_so(world: World) -> None:
    world.there()
    world.orders(3, status="archived")

    @world.app.on(Order, Order.status == "archived")
    def swept(order: Order) -> None:
        order.status = "swept"

    life = world.worker()
    until(lambda: [(one.name, one.rows, one.changed) for one in life.worker.refused_reactions] == [("swept", 3, False)])
    life.quiet()
    assert world.count(Order.status == "archived") == 3
    assert "--accept" in life.worker.refused_reactions[0].message
    world.app.init(accept=["swept"])
    until(lambda: world.count(Order.status == "swept") == 3)


def test_hazard_49_a_baseline_leaves_the_old_rows_and_starts_with_new_ones(world: World) -> None:
    world.there()
    world.orders(3, status="archived")

    @world.app.on(Order, Order.status == "archived")
    def swept(order: Order) -> None:
        order.status = "swept"

    world.app.init(baseline=["swept"])
    world.orders_from(4, 4)
    world.set(4, status="archived")
    life = world.worker()
    until(lambda: world.order(4).status == "swept")
    life.quiet()
    assert world.count(Order.status == "archived") == 3
    world.set(1, status="placed")
    until(lambda: "1" not in [one.record for one in world.attempts()])


def test_hazard_50_a_changed_condition_that_newly_matches_old_rows_is_reported(world: World) -> None:
    @world.app.on(Order, Order.status == "placed", Order.round > 5, name="packed")
    def packed(order: Order) -> None:
        order.status = "packed"

    world.orders(2)
    world.settled()
    _again(world)

    @world.app.on(Order, Order.status == "placed", name="packed")
    def packed_too(order: Order) -> None:
        order.status = "packed"

    life = world.worker()
    until(lambda: [(one.name, one.rows, one.changed) for one in life.worker.refused_reactions] == [("packed", 2, True)])
    assert world.count(Order.status == "placed") == 2


def test_hazard_50_a_changed_condition_that_matches_nothing_more_is_accepted_silently(world: World) -> None:
    @world.app.on(Order, Order.status == "placed", name="packed")
    def packed(order: Order) -> None:
        order.status = "packed"

    world.orders(2)
    world.settled()
    _again(world)

    @world.app.on(Order, Order.status == "placed", Order.round > 0, name="packed")
    def packed_too(order: Order) -> None:
        order.status = "packed again"

    life = world.worker()
    life.quiet()
    world.orders_from(3, 3)
    until(lambda: world.order(3).status == "packed again")
    assert life.worker.refused_reactions == []


def test_hazard_62_a_renamed_reaction_keeps_the_name_that_its_keys_are_made_of(world: World) -> None:
    gateway = charging(world, InDoubt.hold())
    world.orders(1)
    world.settled()
    reaction = world.app.reactions.pop("paid")
    world.app.reactions["charged"] = reaction
    reaction.name = "charged"
    world.run("update groundstate_reaction set name = 'charged' where name = 'paid'")
    world.set(1, status="placed")
    world.settled()
    keys = [key for _, key in gateway.ledger]
    assert len(keys) == 2
    assert keys[0] == keys[1]


def test_hazard_52_forged_hints_change_no_final_state(world: World) -> None:
    gateway = charging(world, InDoubt.hold())
    world.orders(3)
    world.set(3, status="cancelled")
    life = world.worker()
    touched = commit_hooks.TouchedRecords()
    touched.add(Order, [(3,), (999,), (1,)], [{"status": "placed"}, {}, {"status": "placed"}])
    for _ in range(50):
        life.worker.note_commit(touched)
    life.quiet()
    assert sorted(record for record, _ in gateway.ledger) == [1, 2]
    assert world.order(3).status == "cancelled"
    assert world.attempts() == []


@pytest.mark.parametrize("where", ["plain", "call"])
def test_hazard_54_error_texts_are_redacted_bounded_and_without_control_characters(
    world: World, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "card 4242 \x1b[31m" + "x" * 10_000

    if where == "plain":

        @world.app.on(Order, Order.status == "placed", retry=Retry(times=1))
        def packed(order: Order) -> None:
            raise ValueError(secret)

    else:

        @ExternalService("bank").call(in_doubt=InDoubt.hold(), retry=Retry(times=1, first=ms(5)))
        def charge(order: Order) -> str:
            raise ValueError(secret)

        @world.app.on(Order, Order.status == "placed", call=charge)
        def paid(order: Order, outcome: str) -> None:
            order.status = "paid"

    world.orders(1)
    life = world.worker(redact=lambda words: words.replace("4242", "****"))
    life.quiet()
    error = world.attempt().error or ""
    assert "****" in error
    assert "4242" not in error
    assert "\x1b" not in error
    assert len(error) <= 2000
    assert "****" in caplog.text
    assert "4242" not in caplog.text, "the log tells what the table does not"
