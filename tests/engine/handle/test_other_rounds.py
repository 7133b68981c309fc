"""A held call keeps its own reaction from the record under every other occurrence, until a person settles it (hazard 57).

The occurrence is a part of the call's key: once it moves, what was called under the old one says nothing to the provider about the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from groundstate import ExternalService, Failure, InDoubt, Retry, Unknown
from groundstate.engine.operate import actions, pending, why
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules.attempt import State
from groundstate.store import connect
from groundstate.values.errors import StateRefusedError
from tests.engine.charging import ASK, SAME_KEY, charging
from tests.engine.kit import Gateway, Life, Order, World, ms, until
from tests.engine.operate.test_actions import HOUR, acting, stored

KEYED = pytest.mark.parametrize("in_doubt", [ASK, SAME_KEY, InDoubt.hold()], ids=["lookup", "same_key", "hold"])


def moved_while_in_the_air(world: World, in_doubt: InDoubt = ASK) -> tuple[Gateway, Life]:
    """The call of round 1 acts, the round moves, and the outcome comes after that: it is held."""
    gateway = charging(world, in_doubt, occurrence=[Order.round])
    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.set(1, round=2)
    gateway.gate.set()
    until(lambda: "held" in world.states())
    life.quiet()
    return gateway, life


@KEYED
def test_an_outcome_that_is_held_keeps_its_own_reaction_from_the_next_round(world: World, in_doubt: InDoubt) -> None:
    gateway, life = moved_while_in_the_air(world, in_doubt)
    life.sweep()
    life.quiet()
    one = world.attempt()
    assert (one.state, one.unsure, one.occurrence, one.outcome) == (State.HELD, False, "1", '["r1"]')
    assert gateway.called(1) == 1, "the record was called once more under the key of the next round"
    assert world.order().status == "placed"


def test_it_does_so_for_a_worker_that_starts_later_and_takes_the_backlog(world: World) -> None:
    gateway, life = moved_while_in_the_air(world)
    life.stop()
    world.settled()
    assert gateway.called(1) == 1


def test_it_does_so_in_a_pass_that_leaves_rows_with_attempts_out_by_sql(world: World) -> None:
    gateway, life = moved_while_in_the_air(world)
    question = ConditionQuery(world.app.reactions["paid"], life.database)
    with life.database.reading() as connection:
        assert connection.execute(question.selects.select_cursors_after(None, 5, crowded=True)).all() == []
        assert len(connection.execute(question.selects.select_cursors_after(None, 5, crowded=False)).all()) == 1
    assert gateway.called(1) == 1


def test_once_a_person_lets_it_go_the_next_round_is_carried_out(world: World) -> None:
    gateway, life = moved_while_in_the_air(world)
    with acting(world) as person:
        assert actions.forget(person, "paid", "1").became == "deleted"
    life.sweep()
    until(lambda: world.order().status == "paid")
    assert (gateway.called(1), world.order().receipt) == (2, "r2")


def test_put_back_to_its_round_it_is_concluded_with_the_outcome_in_hand(world: World) -> None:
    gateway, life = moved_while_in_the_air(world)
    world.set(1, round=1)
    life.sweep()
    life.quiet()
    assert gateway.called(1) == 1
    with acting(world) as person:
        assert actions.retry(person, "paid", "1").became == "concluded"
    assert (world.order().status, world.order().receipt, gateway.called(1)) == ("paid", "r1", 1)


def test_a_round_that_moves_on_twice_and_back_is_called_once(world: World) -> None:
    gateway, life = moved_while_in_the_air(world)
    for number in (3, 1, 2, 4):
        world.set(1, round=number)
        life.sweep()
        life.quiet()
    assert gateway.called(1) == 1
    assert [one.occurrence for one in world.attempts()] == ["1"]


def test_other_reactions_go_on_with_the_record_meanwhile(world: World) -> None:
    @world.app.on(Order, Order.note.is_(None), Order.round == 2)
    def noted(order: Order) -> None:
        order.note = "seen"

    _, life = moved_while_in_the_air(world)
    life.sweep()
    until(lambda: world.order().note == "seen")
    assert [one.reaction for one in world.attempts()] == ["paid"]


def test_a_fact_is_kept_from_the_next_round_as_well(world: World) -> None:
    gateway = world.gateway()

    @ExternalService("mail").call(in_doubt=InDoubt.hold())
    async def send(order: Order) -> str:
        return await gateway.act(order.id)

    @world.app.on(Order, Order.status == "placed", call=send, done_column=Order.mailed, occurrence=[Order.round])
    def mailed(order: Order, outcome: str) -> None:
        order.mailed = outcome

    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.set(1, round=2)
    gateway.gate.set()
    until(lambda: "held" in world.states())
    life.sweep()
    life.quiet()
    assert gateway.called(1) == 1


@KEYED
def test_a_call_in_doubt_whose_round_moved_is_settled_and_calls_nothing(world: World, in_doubt: InDoubt) -> None:
    late = Retry(times=10, first=timedelta(hours=1), longest=timedelta(hours=1))
    gateway = charging(world, in_doubt, occurrence=[Order.round], retry=late)
    gateway.plan(1, "done_raise")
    gateway.finds[1] = [Unknown()]
    world.orders(1)
    life = world.worker()
    until(lambda: len(gateway.asked) == 1 if in_doubt.kind == "lookup" else bool(set(world.states()) & {"doubt", "held"}))
    life.quiet()
    world.set(1, round=2)
    world.forward(2 * HOUR)
    until(lambda: world.states() == ["held"])
    life.sweep()
    life.quiet()
    one = world.attempt()
    assert (one.occurrence, one.unsure, one.outcome) == ("1", in_doubt.kind != "lookup", '["r1"]' if in_doubt.kind == "lookup" else None)
    assert gateway.called(1) == 1


def test_a_doubt_that_a_dead_worker_left_is_found_and_held_and_the_moved_round_waits(world: World) -> None:
    gateway = charging(world, ASK, occurrence=[Order.round])
    gateway.plan(1, "done_hang")
    world.orders(1)
    first = world.worker()
    until(lambda: gateway.waiting == 1)
    first.kill()
    world.set(1, round=2)
    second = world.worker()
    until(lambda: "held" in world.states())
    second.sweep()
    second.quiet()
    one = world.attempt()
    assert (one.outcome, one.occurrence, gateway.called(1)) == ('["r1"]', "1", 1)


def test_an_outcome_that_a_person_gave_and_that_is_still_held_calls_nothing(world: World) -> None:
    """The story of a mailer: a mail in doubt, a button that moves the due column, and `settle --outcome` that answers 'still held'."""
    gateway = charging(world, InDoubt.hold(), occurrence=[Order.round])
    gateway.plan(1, "done_raise")
    world.orders(1)
    life = world.worker()
    until(lambda: world.states() == ["held"])
    world.set(1, round=2)
    with acting(world) as person:
        did = actions.settle(person, "paid", "1", outcome='"r1"')
    assert (did.became, did.done) == ("held", False)
    life.sweep()
    life.quiet()
    assert gateway.called(1) == 1
    with acting(world) as person:
        assert actions.retry(person, "paid", "1").became == "held"
    life.sweep()
    life.quiet()
    assert gateway.called(1) == 1, "a retry of an outcome in hand became a call"


def test_a_person_who_says_absent_lets_the_next_round_go_on(world: World) -> None:
    gateway = charging(world, InDoubt.hold(), occurrence=[Order.round])
    gateway.plan(1, "raise")
    world.orders(1)
    life = world.worker()
    until(lambda: world.states() == ["held"])
    world.set(1, round=2)
    life.sweep()
    life.quiet()
    assert gateway.called(1) == 1
    world.forward(HOUR)
    with acting(world) as person:
        assert actions.settle_absent(person, "paid", "1").became == "deleted"
    until(lambda: world.order().status == "paid")
    assert gateway.called(1) == 2


# ---- the same record by other ways -----------------------------------------------------------------------------------------------
def test_a_record_that_is_deleted_and_inserted_anew_in_another_round_waits_for_the_held_call_of_the_first(world: World) -> None:
    gateway, life = moved_while_in_the_air(world)
    world.run("delete from orders")
    world.add(Order(id=1, round=3))
    life.sweep()
    life.quiet()
    assert (gateway.called(1), [one.occurrence for one in world.attempts()]) == (1, ["1"])


def test_a_record_whose_outcome_is_held_gets_no_other_primary_key(world: World) -> None:
    gateway, life = moved_while_in_the_air(world)
    with world.session() as session, session.begin():
        order = session.get_one(Order, 1)
        order.id = 2
        with pytest.raises(StateRefusedError, match="orders 1 cannot be given another primary key now: paid is held on it"):
            session.flush()
        session.rollback()
    life.sweep()
    life.quiet()
    assert gateway.calls == [(1, gateway.calls[0][1])]


def test_each_record_of_one_call_for_many_keeps_its_own_next_round(world: World) -> None:
    gateway = world.gateway()

    @ExternalService("bank").call_many(in_doubt=InDoubt.hold(), size=10)
    async def charge(orders: Sequence[Order]) -> Sequence[str]:
        return [await gateway.act(order.id) for order in orders]

    @world.app.on(Order, Order.status == "placed", call=charge, occurrence=[Order.round], name="paid")
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    gateway.plan(2, "done_hang")
    world.orders(3)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.set(2, round=2)
    gateway.gate.set()
    until(lambda: world.states() == ["held"] and world.count(Order.status == "paid") == 2)
    life.sweep()
    life.quiet()
    assert (world.attempt().record, sorted(record for record, _ in gateway.ledger)) == ("2", [1, 2, 3])


def test_an_outcome_that_comes_when_its_attempt_is_gone_is_held_and_keeps_the_next_round(world: World) -> None:
    gateway = charging(world, ASK, occurrence=[Order.round])
    gateway.plan(1, "done_hang")
    world.orders(1, round=1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.set(1, status="elsewhere", round=2)
    world.force("delete from groundstate_attempt")
    gateway.gate.set()
    until(lambda: world.states() == ["held"])
    world.set(1, status="placed")
    life.sweep()
    life.quiet()
    assert (gateway.called(1), world.attempt().occurrence) == (1, "1")


# ---- gave_up and expired ---------------------------------------------------------------------------------------------------------
def test_gave_up_does_not_answer_for_a_round_while_the_call_of_another_is_held_and_unsure(world: World) -> None:
    gateway = charging(world, InDoubt.hold(), occurrence=[Order.round], retry=Retry(times=2, first=ms(5), longest=ms(5)))
    told: list[Failure] = []

    @gateway.reaction.gave_up
    def _(order: Order, failure: Failure) -> None:
        told.append(failure)
        order.status = "declined"

    world.orders(1, round=2)
    stored(world, occurrence="1", state=State.HELD, unsure=True)
    stored(world, occurrence="2", state=State.FAILED, failures=2)
    life = world.worker()
    life.sweep()
    life.turn()
    assert (told, gateway.calls, world.order().status) == ([], [], "placed")
    assert [one.state for one in world.attempts()] == [State.HELD, State.FAILED]
    world.force("delete from groundstate_attempt where occurrence = '1'")
    life.sweep()
    until(lambda: world.order().status == "declined")
    assert len(told) == 1


# ---- told to a person ------------------------------------------------------------------------------------------------------------
def report_of(world: World) -> pending.Pending:
    database, lives, _ = connect.open_store(world.app.stores[0].settings())
    world.clock_of(database)
    try:
        return pending.build_pending_report(
            "shop", database, [ConditionQuery(one, database) for one in world.app.reactions.values()], lives()
        )
    finally:
        database.close()


def test_pending_says_that_the_reaction_waits_for_its_own_held_round_and_by_which_command_it_goes_on(world: World) -> None:
    moved_while_in_the_air(world)
    report = report_of(world)
    (waits,) = report.waits
    assert (waits.reaction, waits.record, waits.round, waits.standing) == ("paid", "1", "1", "held")
    assert waits.waits_for == "its own round 1"
    assert waits.person is not None
    assert "groundstate retry paid 1 --occurrence 1" in waits.person
    assert "groundstate forget paid 1 --occurrence 1" in waits.person
    assert report.to_do[0].rows == 0, "a record that waits for a person was counted as work to be done"


def test_pending_says_so_of_a_call_that_may_have_been_made(world: World) -> None:
    charging(world, InDoubt.hold(), occurrence=[Order.round])
    world.orders(1, round=2)
    stored(world, occurrence="1", unsure=True)
    (waits,) = report_of(world).waits
    assert waits.person == "`groundstate settle paid 1 --occurrence 1`, with --absent or --outcome"


def test_why_says_that_the_reaction_waits_for_its_own_held_round_and_by_which_command_it_goes_on(world: World) -> None:
    moved_while_in_the_air(world)
    database, lives, _ = connect.open_store(world.app.stores[0].settings())
    try:
        questions = [ConditionQuery(one, database) for one in world.app.reactions.values()]
        (answer,) = why.explain_record("shop", database, questions, lives(), "orders", "1").answers
    finally:
        database.close()
    assert answer.holds
    assert answer.occurrence == "2"
    assert [(one.reaction, one.round) for one in answer.waits_for] == [("paid", "1")]
    assert answer.next.startswith("waits until a person settles its own held attempt of round 1: `groundstate retry paid 1 --occurrence 1`")
