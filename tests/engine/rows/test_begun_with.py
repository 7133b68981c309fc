"""Code that is deployed while calls are in doubt: a doubt is settled by code that can ask where it was called, and held by any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from groundstate import Absent, ExternalService, IdempotencyKey, InDoubt, Retry, Unknown
from groundstate.engine.operate import action
from groundstate.engine.operate.action import ActionResult, Person
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules import begun_kind
from groundstate.rules.attempt import Attempt, State
from groundstate.store import connect
from tests.engine.charging import ASK
from tests.engine.kit import QUICK, Base, Gateway, Order, World, ms, until

LONG = timedelta(seconds=20)
SAME_KEY = InDoubt.same_key(kept_for=timedelta(hours=24), settle_after=ms(100))


class Code:
    """One version of the shop's code: which outside is called, by which call, and with which find, over which gateway."""

    def __init__(self, gateway: Gateway, service: str = "bank", in_doubt: InDoubt = ASK, **other: Any) -> None:
        self.gateway, self.service, self.in_doubt = gateway, service, in_doubt
        self.call: str = other.pop("call", "charge")
        self.find: str = other.pop("lookup", "charged")
        self.key: bool = other.pop("key", True)
        self.retry: Retry = other.pop("retry", QUICK)
        self.said: dict[str, Any] = {name: other.pop(name) for name in ("name", "answers_for") if name in other}
        self.moves: bool = other.pop("moves", True)  # whether its handler moves the order on
        self.also: Gateway | None = other.pop("also", None)  # the old service's books, in which the lookup looks as well
        self.options = other

    def declare(self, world: World) -> World:
        made: Any = ExternalService(self.service).call(in_doubt=self.in_doubt, timeout=LONG, retry=self.retry, **self.said)(self._call())
        if self.in_doubt.kind in ("lookup", "same_key") and self.find:
            made.lookup(_named(self._find, self.find))

        @world.app.on(Order, Order.status == "placed", call=made, name="paid", **self.options)
        def paid(order: Order, outcome: str) -> None:
            order.receipt = outcome
            if self.moves:
                order.status = "paid"

        return world

    def _call(self) -> Any:
        gateway = self.gateway

        async def with_key(order: Order, key: IdempotencyKey) -> str:
            return await gateway.act(order.id, key)

        async def without(order: Order) -> str:
            return await gateway.act(order.id, f"none {order.id}")

        return _named(with_key if self.key else without, self.call)

    def _find(self, order: Order, key: IdempotencyKey) -> str | Absent | Unknown:
        found: str | Absent | Unknown = self.gateway.find(order.id, key)
        if isinstance(found, Absent) and self.also is not None:
            found = self.also.find(order.id, key)
        return found


def _named(function: Any, name: str) -> Any:
    def find(order: Order, key: IdempotencyKey) -> str | Absent | Unknown:
        answer: str | Absent | Unknown = function(order, key)
        return answer

    made = find if getattr(function, "__self__", None) is not None else function
    made.__name__ = made.__qualname__ = name
    return made


class Left:
    """Old code that died with calls in the air, all of which were made; and the code that comes after it, on the same database."""

    def __init__(self, world: World, old: Code, orders: int = 3) -> None:
        self.world, self.old = world, old
        old.declare(world).there()
        for number in range(1, orders + 1):
            old.gateway.plan(number, "done_hang")
        world.orders(orders)
        self.worlds: list[World] = []
        dying = world.worker()
        until(lambda: old.gateway.waiting == orders)
        dying.kill()

    def then(self, code: Code, *, settles: bool = True) -> World:
        """The next version; settles: a worker of it runs until all is quiet, and ends."""
        new = World(self.world.url)
        new._there = True
        self.worlds.append(new)
        code.declare(new)
        new.app.init(accept=True)
        if settles:
            new.settled()
        return new


@pytest.fixture
def leaves(world: World) -> Iterator[Callable[..., Left]]:
    made: list[Left] = []

    def leave(old: Code, **other: Any) -> Left:
        made.append(Left(world, old, **other))
        return made[-1]

    yield leave
    for left in made:
        left.old.gateway.gate.set()
        for new in left.worlds:
            new.close()


Leaves = Callable[..., Left]


def _held(world: World, count: int, reason: str) -> list[Attempt]:
    found = world.attempts()
    assert [(one.state, one.unsure) for one in found] == [(State.HELD, True)] * count, found
    assert all(reason in (one.why or "") for one in found), found
    return found


def as_person(world: World, deed: Callable[[Person, Attempt], ActionResult]) -> ActionResult:
    database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
    database.connect()
    try:
        life = Incarnation(world.app.name, database, make_lives(), None)
        questions = {spec.name: ConditionQuery(spec, database) for spec in world.app.reactions.values()}
        return deed(Person(life, questions, "the test"), world.attempts()[0])
    finally:
        database.close()


def retry(person: Person, one: Attempt) -> ActionResult:
    return action.run_action_on_attempts(person, one.reaction, [one.identity], partial(action.decide_retry, person))[0]


def settle(outcome: str, person: Person, one: Attempt) -> ActionResult:
    return action.run_action_on_attempts(person, one.reaction, [one.identity], partial(action.decide_outcome, person, outcome))[0]


# ---- the row -----------------------------------------------------------------------------------------------------------------------
def test_an_attempt_remembers_what_its_call_was_begun_with(leaves: Leaves) -> None:
    left = leaves(Code(Gateway(), occurrence=[Order.round]), orders=1)
    one = left.world.attempt()
    said = begun_kind.parse_kind(one.begun_with)
    assert said == begun_kind.Kind("bank", "charge", "charged", key=True, policy="lookup", occurrence=("round",))


# ---- a call elsewhere --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("policy", [ASK, SAME_KEY, InDoubt.hold()], ids=lambda one: one.kind)
def test_a_call_that_is_moved_to_another_service_leaves_its_doubts_to_a_person_and_calls_nobody_twice(
    leaves: Leaves, policy: InDoubt
) -> None:
    bank, psp = Gateway(), Gateway()
    left = leaves(Code(bank, in_doubt=policy))
    new = left.then(Code(psp, "psp", policy))
    _held(new, 3, "it was a call to bank, and the reaction calls psp now")
    assert (psp.ledger, psp.asked) == ([], [])
    new.orders_from(4, 4)  # what comes new is called where it is called now
    new.settled()
    assert [record for record, _ in psp.ledger] == [4]


@pytest.mark.parametrize("way", ["taken while its reaction is suspect", "matched when the time was lost", "accepted as a doubt"])
def test_a_doubt_of_a_lost_time_is_asked_after_where_the_code_called_that_wrote_it_and_nowhere_else(world: World, way: str) -> None:
    bank, psp = Gateway(), Gateway()
    bank.finds[1] = [Unknown()] * 1_000  # the doubt stays one
    Code(bank, retry=Retry(times=None, first=ms(5), longest=ms(5))).declare(world)
    if way == "accepted as a doubt":
        Base.metadata.create_all(world.engine)
        world._there = True
        world.orders(1)
        world.app.init(accept=["paid=doubt"])
        life = world.worker()
    else:
        world.orders(1, status="new")
        life = world.worker()
        if way == "matched when the time was lost":
            life.stop()
            world.set(status="placed")
            world.app.init(after_restore=True)
            life = world.worker()
        else:
            life.quiet()
            life.worker.incarnation.suspects.add("paid")
            world.set(status="placed")
            life.sweep()
    until(lambda: world.states() == ["doubt"] and bank.asked != [])
    life.kill()
    new = World(world.url)
    new._there = True
    Code(psp, "psp").declare(new)
    new.settled()
    _held(new, 1, "it was a call to bank, and the reaction calls psp now")
    assert (bank.ledger, psp.ledger, psp.asked) == ([], [], [])
    new.close()


def test_the_old_code_settles_its_doubts_when_it_is_put_back_and_a_person_gives_them_back(leaves: Leaves) -> None:
    bank, psp = Gateway(), Gateway()
    left = leaves(Code(bank), orders=1)
    new = left.then(Code(psp, "psp"))
    did = as_person(new, retry)
    assert did.became == "refused"
    assert "it was a call to bank" in did.words
    bank.gate.set()
    back = left.then(Code(bank), settles=False)
    assert as_person(back, retry).became == "doubt"
    back.settled()
    assert (back.order().status, back.attempts(), len(bank.ledger), psp.calls) == ("paid", [], 1, [])


def test_a_person_says_with_which_outcome_the_old_service_did_it(leaves: Leaves) -> None:
    left = leaves(Code(Gateway()), orders=1)
    new = left.then(Code(Gateway(), "psp"))
    assert as_person(new, partial(settle, '"r1"')).became == "concluded"
    assert (new.order().status, new.order().receipt, new.attempts()) == ("paid", "r1", [])


def test_a_find_that_says_that_it_knows_the_old_service_settles_what_that_was_asked_to_do(leaves: Leaves) -> None:
    bank, psp = Gateway(), Gateway()
    left = leaves(Code(bank))
    bank.ledger.pop()  # one of them was not made after all
    new = left.then(Code(psp, "psp", answers_for=["bank"], also=bank), settles=False)
    life = new.worker()
    until(lambda: len(bank.asked) >= 3)
    new.forward(60)  # from then on Absent is believed
    until(lambda: new.count(Order.status == "paid") == 3)
    life.quiet()
    assert new.attempts() == []
    assert sorted({record for record, _ in [*bank.ledger, *psp.ledger]}) == [1, 2, 3]
    assert (len(bank.ledger), len(psp.ledger)) == (2, 1)


@pytest.mark.parametrize("policy", [ASK, SAME_KEY], ids=lambda one: one.kind)
def test_a_key_where_none_was_given_settles_nothing_that_was_called_without(leaves: Leaves, policy: InDoubt) -> None:
    bank = Gateway()
    left = leaves(Code(bank, in_doubt=InDoubt.hold(), key=False))
    new = left.then(Code(bank, in_doubt=policy))
    _held(new, 3, "it was given no key, and the call takes one now")
    assert len(bank.calls) == 3
    assert bank.asked == []


def test_another_call_of_the_same_service_is_another_call_and_the_same_one_renamed_says_so(leaves: Leaves) -> None:
    bank = Gateway()
    left = leaves(Code(bank))
    new = left.then(Code(bank, call="charge_again"))
    _held(new, 3, "it was the call charge of bank, and the reaction makes the call charge_again now")
    bank.gate.set()
    renamed = left.then(Code(bank, call="charge_again", name="charge"), settles=False)
    for _ in range(3):
        assert as_person(renamed, lambda person, _one: retry(person, next(one for one in renamed.attempts() if one.why))).became == "doubt"
    renamed.settled()
    assert (renamed.attempts(), renamed.count(Order.status == "paid"), len(bank.calls)) == ([], 3, 3)


def test_another_find_is_not_asked_for_what_the_old_one_was_to_know(leaves: Leaves) -> None:
    bank = Gateway()
    left = leaves(Code(bank))
    new = left.then(Code(bank, lookup="looked_up_elsewhere"))
    _held(new, 3, "its lookup was charged, and is looked_up_elsewhere now")
    assert bank.asked == []


def test_what_was_promised_once_is_not_called_twice_by_a_later_again_and_what_was_not_is(leaves: Leaves) -> None:
    bank, psp = Gateway(), Gateway()
    left = leaves(Code(bank))
    _held(left.then(Code(bank, in_doubt=InDoubt.repeat())), 3, "it was begun under InDoubt.lookup(), which calls nothing twice")
    assert len(bank.calls) == 3
    mailed = World(left.world.url)
    mailed.force("delete from groundstate_attempt")
    left.worlds.append(mailed)
    mailed._there = True
    careless = Code(psp, "psp", InDoubt.repeat())
    psp.plan(1, "raise")
    careless.declare(mailed)
    mailed.settled()
    assert mailed.count(Order.status == "paid") == 3
    assert psp.called(1) == 2


def test_an_outcome_of_old_code_that_still_runs_is_concluded_by_it(leaves: Leaves, world: World) -> None:
    bank, psp = world.gateway(), world.gateway()
    Code(bank).declare(world).there()
    bank.plan(1, "done_hang")
    world.orders(1)
    old = world.worker()
    until(lambda: bank.waiting == 1)
    new = World(world.url)
    new._there = True
    try:
        Code(psp, "psp").declare(new)
        beside = new.worker()
        beside.quiet()
        bank.gate.set()
        until(lambda: world.order().status == "paid")
        old.stop()
        beside.quiet()
        assert (world.attempts(), len(bank.ledger), psp.calls) == ([], 1, [])
    finally:
        new.close()


# ---- occurrences -------------------------------------------------------------------------------------------------------------------
def test_an_occurrence_that_is_added_leaves_its_doubts_to_a_person_and_is_called_by_nobody_meanwhile(leaves: Leaves) -> None:
    bank = Gateway()
    left = leaves(Code(bank), orders=1)
    new = left.then(Code(bank, occurrence=[Order.round]))
    _held(new, 1, "its occurrence was none, and is made of round now")
    assert (len(bank.calls), bank.asked) == (1, [])
    assert as_person(new, partial(settle, '"r1"')).became == "concluded"  # of the round that stands there now, as the person says
    new.settled()
    assert (new.order().status, new.attempts(), len(bank.calls)) == ("paid", [], 1)


def test_a_person_s_outcome_under_an_added_occurrence_is_held_where_the_handler_moves_nothing(leaves: Leaves) -> None:
    bank = Gateway()
    left = leaves(Code(bank), orders=1)
    new = left.then(Code(bank, moves=False, occurrence=[Order.round]))
    did = as_person(new, partial(settle, '"r1"'))
    assert (did.became, did.words.partition(":")[0]) == ("held", "made no progress")
    new.settled()
    assert (new.order().status, new.states(), len(bank.calls)) == ("placed", ["held"], 1)


def test_an_occurrence_that_is_added_calls_what_a_person_says_was_not_done(leaves: Leaves, world: World) -> None:
    bank = Gateway()
    left = leaves(Code(bank), orders=1)
    bank.ledger.clear()
    new = left.then(Code(bank, occurrence=[Order.round]))
    new.forward(120)
    new.force("update groundstate_attempt set deadline = '2026-01-01 00:00:00.000000'")
    did = as_person(new, lambda person, one: action.run_action_on_attempts(person, one.reaction, [one.identity], action.decide_absent)[0])
    assert did.became == "deleted"
    new.settled()
    assert (new.order().status, len(bank.ledger)) == ("paid", 1)


def test_an_occurrence_that_is_taken_away_leaves_its_doubts_to_a_person(leaves: Leaves) -> None:
    bank = Gateway()
    left = leaves(Code(bank, occurrence=[Order.round]))
    _held(left.then(Code(bank)), 3, "its occurrence was made of round, and is none now")
    assert len(bank.calls) == 3


def test_what_failed_under_old_code_was_surely_not_done_and_is_called_where_it_is_called_now(world: World) -> None:
    bank, psp = world.gateway(), world.gateway()
    Code(bank, retry=Retry(times=2, first=timedelta(hours=1))).declare(world).there()  # it dies between two tries, and not in one
    bank.plan(1, "refuse")
    world.orders(1)
    old = world.worker()
    until(lambda: world.states() == ["failed"])
    old.kill()
    new = World(world.url)
    new._there = True
    try:
        Code(psp, "psp").declare(new)
        new.forward(3600)  # when its next try is due
        life = new.worker()
        until(lambda: new.order().status == "paid")
        life.stop()
        assert (new.attempts(), bank.ledger, len(psp.ledger)) == ([], [], 1)
    finally:
        new.close()


# ---- what cannot be read -------------------------------------------------------------------------------------------------------------
def test_a_row_that_does_not_say_what_it_was_begun_with_is_settled_by_its_policy(leaves: Leaves) -> None:
    bank = Gateway()
    left = leaves(Code(bank))
    left.world.force("update groundstate_attempt set begun_with = null")
    bank.gate.set()
    new = left.then(Code(bank))
    assert (new.attempts(), new.count(Order.status == "paid"), len(bank.calls)) == ([], 3, 3)


def test_a_row_that_says_nonsense_of_it_is_held_for_a_person(leaves: Leaves) -> None:
    bank = Gateway()
    left = leaves(Code(bank), orders=1)
    left.world.force("update groundstate_attempt set begun_with = '{'")
    new = left.then(Code(bank))
    found = _held(new, 1, "begun_with '{'")
    assert found[0].begun_with is None
    assert len(bank.calls) == 1
