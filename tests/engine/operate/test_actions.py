"""What a person can do, each row of the table's last part: on what is held, beside workers that run at the same time."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, select, update

from groundstate import ExternalService, IdempotencyKey, InDoubt, ReactionContext, Retry
from groundstate.engine.operate import action, actions, renaming
from groundstate.engine.operate import held as listing
from groundstate.engine.operate.action import Person
from groundstate.engine.operate.held import Filter, Held, Page
from groundstate.engine.rows import attempts
from groundstate.rules.attempt import Attempt, State
from groundstate.store import connect, tables
from groundstate.values import keys
from groundstate.values.errors import ConflictError, NotFoundError
from tests.engine.charging import ASK, SAME_KEY, charging
from tests.engine.kit import HANG_S, Gateway, Order, World, forcing, ms, until

HOUR = 3600.0
MONTH = 30 * 24 * HOUR


@pytest.fixture
def on_postgres(postgres_url: str) -> Iterator[World]:
    """A world for what only PostgreSQL has: locks on single rows, and constraints that are checked at COMMIT."""
    made = World(postgres_url)
    yield made
    made.close()


@contextmanager
def acting(world: World, *, app: str | None = None, without: str | None = None, by: str | None = "ada") -> Iterator[Person]:
    """A person at the world's store, on the world's clock; `without`: a reaction that this person's code does not declare."""
    database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
    world.clock_of(database)
    specs = [spec for spec in world.app.reactions.values() if spec.name != without]
    try:
        yield actions.build_person(app or world.app.name, specs, database, make_lives(), by=by)
    finally:
        database.close()


def retry(world: World, record: str = "1", **options: Any) -> action.ActionResult:
    with acting(world, **options) as person:
        return actions.retry(person, "paid", record)


def absent(world: World, **options: Any) -> action.ActionResult:
    with acting(world, **options) as person:
        return actions.settle_absent(person, "paid", "1")


def settle(world: World, outcome: str, **options: Any) -> action.ActionResult:
    with acting(world, **options) as person:
        return actions.settle(person, "paid", "1", outcome=outcome)


def forget(world: World, record: str = "1", **options: Any) -> action.ActionResult:
    with acting(world, **options) as person:
        return actions.forget(person, "paid", record)


def held(world: World, which: Filter | None = None, **options: Any) -> Page:
    with acting(world) as person:
        return listing.read_held_page(person.app, person.database, person.queries, which, **options)


def only(world: World) -> Held:
    page = held(world)
    assert len(page.held) == 1, page
    return page.held[0]


def in_doubt_and_held(world: World, policy: InDoubt | None = None, *, step: str = "raise", **options: Any) -> Gateway:
    """A call that may have been made, and that nobody but a person settles."""
    gateway = charging(world, policy or InDoubt.hold(), **options)
    gateway.plan(1, step)
    world.orders(1)
    world.settled()
    assert world.states() == ["held"]
    return gateway


class Switch:
    """Whether the handler of the reaction works."""

    def __init__(self) -> None:
        self.broken = True
        self.runs = 0

    def handler(self, order: Order, outcome: str) -> None:
        self.runs += 1
        if self.broken:
            raise RuntimeError("a bug in the handler")
        order.status, order.receipt = "paid", outcome


def held_with_outcome(world: World, policy: InDoubt = ASK) -> tuple[Gateway, Switch]:
    """A call that was made, with its outcome held since the handler has a bug."""
    switch = Switch()
    gateway = charging(world, policy, handler=switch.handler)
    world.orders(1)
    world.settled()
    assert world.states() == ["held"]
    return gateway, switch


def change(world: World, **values: Any) -> None:
    """What somebody else did to the attempts meanwhile."""
    with forcing(world.engine) as connection:
        connection.execute(update(tables.attempt).values(**values))


def stored(world: World, **values: Any) -> None:
    """An attempt that stands, as it could have come about long ago."""
    with acting(world) as person, person.incarnation.open_transaction() as tx:
        spec = person.queries["paid"].spec
        base = Attempt(
            "shop", "paid", "1", "", State.HELD, worker=7, call=attempts.new_call_number(tx.database.dice), call_no=1, unsure=False,
            since=tx.now,
            first_at=tx.now, deadline=tx.now, blocks=spec.table_name, why="a test",
        )  # fmt: skip
        attempts.insert_attempts(tx, [replace(base, **values)])


# ---- retry -----------------------------------------------------------------------------------------------------------------------
def test_an_outcome_in_hand_is_concluded_by_the_handler_in_the_persons_process_and_is_never_a_new_call(world: World) -> None:
    gateway, switch = held_with_outcome(world)
    switch.broken = False
    did = retry(world)
    assert (did.became, did.done) == ("concluded", True)
    assert (world.order().status, world.order().receipt) == ("paid", "r1")
    assert world.attempts() == []
    assert gateway.called(1) == 1


def test_an_outcome_whose_handler_still_fails_stays_held_once_with_the_new_error(world: World) -> None:
    gateway, switch = held_with_outcome(world)
    did = retry(world)
    assert (did.became, did.done) == ("held", False)
    assert "a bug in the handler" in did.words
    attempt = world.attempt()
    assert json.loads(attempt.outcome or "") == ["r1"]
    assert (attempt.state, attempt.unsure, switch.runs) == (State.HELD, False, 2 + 1)
    assert gateway.called(1) == 1


def test_an_outcome_whose_record_moved_on_is_overtaken_and_the_default_holds_it(world: World) -> None:
    _, switch = held_with_outcome(world)
    switch.broken = False
    world.set(1, status="cancelled", receipt="by hand")
    assert retry(world).became == "held"
    assert world.order().receipt == "by hand"
    assert json.loads(world.attempt().outcome or "") == ["r1"]


def test_an_outcome_whose_record_moved_on_is_given_to_the_overtaken_handler(world: World) -> None:
    gateway, switch = held_with_outcome(world)
    refunded: list[str] = []

    @gateway.reaction.overtaken
    def _(order: Order, outcome: str) -> None:
        refunded.append(outcome)
        order.note = "refunded"

    switch.broken = False
    world.set(1, status="cancelled")
    assert retry(world).became == "concluded"
    assert refunded == ["r1"]
    assert (world.order().status, world.order().note, world.attempts()) == ("cancelled", "refunded", [])


def test_an_outcome_whose_record_was_deleted_stays_held_and_can_be_forgotten(world: World) -> None:
    held_with_outcome(world)
    world.run("delete from orders")
    did = retry(world)
    assert did.became == "held"
    assert "deleted" in did.words
    assert forget(world).became == "deleted"
    assert world.attempts() == []


def test_of_several_outcomes_one_is_concluded_and_the_others_stay_listed(world: World) -> None:
    _, switch = held_with_outcome(world)
    switch.broken = False
    change(world, outcome='["r1", "r2"]')
    assert retry(world).became == "concluded"
    assert world.order().receipt == "r1"
    attempt = world.attempt()
    assert (attempt.state, json.loads(attempt.outcome or "")) == (State.HELD, ["r2"])
    assert "these came as well" in (attempt.why or "")


def test_equal_outcomes_under_one_key_are_one_effect(world: World) -> None:
    _, switch = held_with_outcome(world, SAME_KEY)
    switch.broken = False
    change(world, outcome='["r1", "r1"]')
    assert retry(world).became == "concluded"
    assert world.attempts() == []


def test_an_outcome_in_hand_with_another_call_in_the_air_waits_until_that_can_no_longer_land(world: World) -> None:
    _, switch = held_with_outcome(world)
    switch.broken = False
    change(world, unsure=True)
    with pytest.raises(ConflictError, match="may still be on its way"):
        retry(world)
    world.forward(HOUR)
    assert retry(world).became == "concluded"


def test_an_outcome_of_which_only_the_text_was_kept_is_asked_for_by_hand(world: World) -> None:
    _, switch = held_with_outcome(world)
    switch.broken = False
    change(world, outcome=json.dumps([{"groundstate_repr": "<Receipt r1>"}]))
    with pytest.raises(ConflictError, match="settle it with its outcome by hand"):
        retry(world)
    assert settle(world, '"r1"').became == "concluded"
    assert world.order().receipt == "r1"


def test_an_outcome_that_does_not_fit_the_handler_any_more_is_refused_in_words(world: World) -> None:
    held_with_outcome(world)
    change(world, outcome="[17]")
    with pytest.raises(ConflictError, match="does not fit the handler any more"):
        retry(world)


def test_a_sure_held_attempt_is_failed_and_due_at_once_with_its_tries_counted_anew(world: World) -> None:
    gateway = charging(world, ASK, retry=Retry(times=2, first=ms(5), longest=ms(5)))
    gateway.plan(1, "refuse", "refuse")
    world.orders(1)
    life = world.worker()
    until(lambda: world.states() == ["held"])
    assert retry(world).became == "failed"
    life.quiet()
    until(lambda: world.order().status == "paid")
    assert gateway.called(1) == 3


def test_a_doubt_that_a_find_can_settle_is_given_back_to_the_workers(world: World) -> None:
    gateway = charging(world, ASK)
    world.orders(1)
    stored(world, unsure=True, deadline=_now(world), first_at=_now(world))
    gateway.ledger.append((1, _key(world)))
    assert retry(world).became == "doubt"
    assert world.attempt().next_at is not None
    world.settled()
    assert (world.order().status, world.order().receipt, gateway.called(1)) == ("paid", "r1", 0)


def test_a_doubt_of_nobodys_is_settled_by_the_next_worker(world: World) -> None:
    gateway = charging(world, InDoubt.repeat())
    world.orders(1)
    stored(world, unsure=True)
    retry(world)
    world.settled()
    assert (world.order().status, gateway.called(1)) == ("paid", 1)


def test_a_doubt_under_hold_cannot_be_retried(world: World) -> None:
    in_doubt_and_held(world)
    before = world.attempt()
    with pytest.raises(ConflictError, match="settle it as absent or with its outcome first"):
        retry(world)
    assert world.attempt() == before


def test_a_doubt_whose_key_is_too_old_cannot_be_retried(world: World) -> None:
    charging(world, SAME_KEY)
    world.orders(1)
    stored(world, unsure=True)
    world.forward(2 * MONTH)
    with pytest.raises(ConflictError, match="nobody can say"):
        retry(world)


def test_a_failed_attempt_is_tried_at_once(world: World) -> None:
    gateway = charging(world, ASK, retry=Retry(first=ms(HOUR * 1000), longest=ms(HOUR * 1000)))
    gateway.plan(1, "refuse")
    world.orders(1)
    life = world.worker()
    until(lambda: world.states() == ["failed"])
    assert retry(world).became == "failed"
    until(lambda: world.order().status == "paid")
    life.quiet()
    assert gateway.called(1) == 2


def test_a_failed_attempt_of_a_reaction_without_a_call_is_tried_at_once(world: World) -> None:
    switch = Switch()

    @world.app.on(Order, Order.status == "placed", retry=Retry(first=ms(HOUR * 1000), longest=ms(HOUR * 1000)), name="paid")
    def _(order: Order) -> None:
        switch.handler(order, "none")

    world.orders(1)
    world.worker()
    until(lambda: world.states() == ["failed"])
    switch.broken = False
    retry(world)
    until(lambda: world.order().status == "paid")
    assert world.attempts() == []


def test_a_baseline_row_is_carried_out_once_a_person_says_so_and_blocks_others_from_then_on(world: World) -> None:
    gateway = charging(world, ASK)
    world.app.init(tables=True)
    world._there = True
    world.orders(2)
    world.app.init(baseline=["paid"])
    world.settled()
    assert gateway.calls == []
    assert retry(world).became == "failed"
    mine = next(one for one in world.attempts() if one.record == "1")
    assert mine.blocks == "orders"
    world.settled()
    assert (world.order(1).status, world.order(2).status) == ("paid", "placed")


# ---- settle as absent ------------------------------------------------------------------------------------------------------------
def test_absent_is_not_believed_before_the_call_can_no_longer_be_on_its_way(world: World) -> None:
    gateway = in_doubt_and_held(world)
    before = world.attempt()
    with pytest.raises(ConflictError, match="may still be on its way until"):
        absent(world)
    assert world.attempt() == before
    world.forward(HOUR)
    assert absent(world).became == "failed"
    after = world.attempt()
    assert (after.state, after.unsure) == (State.FAILED, False)
    world.settled()
    assert (world.order().status, gateway.called(1)) == ("paid", 2)


def test_absent_where_the_condition_no_longer_holds_leaves_nothing(world: World) -> None:
    in_doubt_and_held(world)
    world.forward(HOUR)
    world.set(1, status="cancelled")
    assert absent(world).became == "deleted"
    assert world.attempts() == []


def test_absent_where_the_occurrence_moved_leaves_nothing_and_the_new_round_is_called(world: World) -> None:
    gateway = in_doubt_and_held(world, occurrence=[Order.round])
    world.forward(HOUR)
    world.set(1, round=2)
    assert absent(world).became == "deleted"
    world.settled()
    assert (world.order().status, gateway.called(1)) == ("paid", 2)


def test_absent_where_the_record_was_deleted_leaves_nothing(world: World) -> None:
    in_doubt_and_held(world)
    world.forward(HOUR)
    world.run("delete from orders")
    assert absent(world).became == "deleted"
    assert world.attempts() == []


def test_absent_where_no_call_is_in_doubt_is_refused(world: World) -> None:
    held_with_outcome(world)
    with pytest.raises(ConflictError, match="no call of it is in doubt"):
        absent(world)


def test_absent_for_a_later_call_leaves_the_outcome_in_hand_to_be_retried(world: World) -> None:
    _, switch = held_with_outcome(world)
    switch.broken = False
    change(world, unsure=True)
    world.forward(HOUR)
    did = absent(world)
    assert (did.became, did.done) == ("settled", True)
    assert (world.attempt().unsure, world.attempt().outcome) == (False, '["r1"]')
    assert retry(world).became == "concluded"


# ---- settle with an outcome ------------------------------------------------------------------------------------------------------
def test_a_doubt_under_hold_is_settled_with_its_outcome_at_once(world: World) -> None:
    gateway = in_doubt_and_held(world, step="done_raise")
    assert settle(world, '"r1"').became == "concluded"
    assert (world.order().status, world.order().receipt, world.attempts()) == ("paid", "r1", [])
    assert gateway.called(1) == 1


@pytest.mark.parametrize("written", ["r1", "17", "null", "", '{"receipt": "r1"}'])
def test_an_outcome_of_the_wrong_type_is_refused_in_words_and_changes_nothing(world: World, written: str) -> None:
    in_doubt_and_held(world)
    before = world.attempt()
    with pytest.raises(ConflictError, match="no outcome of type str"):
        settle(world, written)
    assert (world.attempt(), world.order().status) == (before, "placed")


def test_the_handler_is_given_the_outcome_as_its_own_type_and_the_moment(world: World) -> None:
    seen: list[Any] = []
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.hold(), timeout=ms(5000))
    def price(order: Order, key: IdempotencyKey) -> Decimal:
        raise RuntimeError("lost")

    @world.app.on(Order, Order.status == "placed", call=price, name="paid")
    def _(order: Order, outcome: Decimal, ctx: ReactionContext) -> None:
        seen.extend([outcome, ctx.call_no, ctx.restarted])
        order.status = "paid"

    world.orders(1)
    world.settled()
    assert settle(world, "10.50").became == "concluded"
    assert seen == [Decimal("10.50"), 1, True]


def test_an_outcome_whose_condition_no_longer_holds_goes_on_as_overtaken(world: World) -> None:
    in_doubt_and_held(world)
    world.set(1, status="cancelled")
    assert settle(world, '"r1"').became == "held"
    attempt = world.attempt()
    assert (attempt.unsure, attempt.outcome, world.order().status) == (False, '["r1"]', "cancelled")


def test_an_outcome_for_a_deleted_record_is_held_with_it(world: World) -> None:
    in_doubt_and_held(world)
    world.run("delete from orders")
    assert settle(world, '"r1"').became == "held"
    assert world.attempt().outcome == '["r1"]'


def test_an_outcome_by_hand_whose_handler_fails_is_held_before_those_that_were_there(world: World) -> None:
    _, switch = held_with_outcome(world)
    assert settle(world, '"by hand"').became == "held"
    assert json.loads(world.attempt().outcome or "") == ["by hand", "r1"]
    switch.broken = False
    assert retry(world).became == "concluded"
    assert world.order().receipt == "by hand"


def test_a_reaction_without_a_call_has_no_outcome_to_be_settled_with(world: World) -> None:
    @world.app.on(Order, Order.status == "placed", retry=Retry(times=1, first=ms(5)), name="paid")
    def _(order: Order) -> None:
        raise RuntimeError("a bug")

    world.orders(1)
    world.settled()
    with pytest.raises(ConflictError, match="makes no call"):
        settle(world, '"r1"')


def test_a_handler_whose_commit_is_refused_keeps_the_outcome_held(on_postgres: World) -> None:
    world = on_postgres
    in_doubt_and_held(world)
    world.run(
        "create function refuse() returns trigger language plpgsql as "
        "$$ begin if new.status = 'paid' then raise exception 'the books are closed'; end if; return null; end $$"
    )
    world.run(
        "create constraint trigger closed after update on orders deferrable initially deferred for each row execute function refuse()"
    )
    did = settle(world, '"r1"')
    assert did.became == "held"
    assert "the books are closed" in did.words
    attempt = world.attempt()
    assert (attempt.outcome, attempt.unsure, world.order().status) == ('["r1"]', False, "placed")


# ---- forget ----------------------------------------------------------------------------------------------------------------------
def test_forgetting_while_the_condition_holds_is_refused_since_that_would_be_a_new_call(world: World) -> None:
    in_doubt_and_held(world)
    world.forward(HOUR)
    before = world.attempt()
    with pytest.raises(ConflictError, match="would be a new call"):
        forget(world)
    assert world.attempt() == before


def test_what_no_longer_holds_is_forgotten_once_its_call_can_no_longer_land(world: World) -> None:
    in_doubt_and_held(world)
    world.set(1, status="cancelled")
    with pytest.raises(ConflictError, match="may still be on its way"):
        forget(world)
    world.forward(HOUR)
    assert forget(world).became == "deleted"
    assert world.attempts() == []


def test_what_is_forgotten_with_an_outcome_is_said_in_the_log_with_it_and_with_who(world: World, caplog: pytest.LogCaptureFixture) -> None:
    held_with_outcome(world)
    world.set(1, status="cancelled")
    with caplog.at_level(logging.WARNING, "groundstate"):
        forget(world, by="grace")
    assert '["r1"]' in caplog.text
    assert "forgotten by grace" in caplog.text


def test_without_by_it_is_the_operating_systems_user_who_did_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    in_doubt_and_held(world, step="done_raise")
    with caplog.at_level(logging.WARNING, "groundstate"):
        settle(world, '"r1"', by=None)
    assert f"settled with an outcome by {actions.user_name()}" in caplog.text


# ---- what is not held, or not there ----------------------------------------------------------------------------------------------
def test_forgetting_a_reaction_without_a_call_is_refused_since_its_handler_would_run_again(world: World) -> None:
    @world.app.on(Order, Order.status == "placed", retry=Retry(times=1))
    def paid(order: Order) -> None:
        raise RuntimeError("a bug")

    world.orders(1)
    world.settled()
    assert world.states() == ["held"]
    with pytest.raises(ConflictError, match="once forgotten its handler would run again: change the record first, or `retry` it"):
        forget(world)
    with acting(world) as person:
        words = [did.words for did in actions.forget_all(person, "paid")]
    assert len(words) == 1
    assert "call" not in words[0]


@pytest.mark.parametrize("act", [retry, absent, forget, lambda world: settle(world, '"r1"')])
@pytest.mark.parametrize("state", [State.BEGUN, State.DOUBT])
def test_what_a_worker_carries_out_is_left_alone(world: World, state: State, act: Callable[[World], object]) -> None:
    charging(world, InDoubt.hold())
    world.orders(1)
    stored(world, state=state, unsure=state is State.DOUBT, next_at=_now(world))
    before = world.attempt()
    world.forward(HOUR)
    with pytest.raises(ConflictError, match=f"it is {state.display_text}, not held"):
        act(world)
    assert world.attempt() == before


@pytest.mark.parametrize("act", [absent, forget, lambda world: settle(world, '"r1"')])
def test_a_failed_attempt_is_neither_settled_nor_forgotten(world: World, act: Callable[[World], object]) -> None:
    charging(world, InDoubt.hold())
    world.orders(1)
    stored(world, state=State.FAILED, next_at=_now(world))
    with pytest.raises(ConflictError, match="it is failed, not held"):
        act(world)


def test_a_record_without_an_attempt_and_a_reaction_that_nobody_knows_are_not_found(world: World) -> None:
    charging(world, InDoubt.hold())
    world.orders(1)
    with pytest.raises(NotFoundError, match="no attempt of paid stands on 1"):
        retry(world)
    with acting(world) as person, pytest.raises(NotFoundError, match="no reaction 'payed' here: there are paid"):
        actions.retry(person, "payed", "1")
    with acting(world) as person, pytest.raises(NotFoundError, match="no primary key of Order"):
        actions.retry(person, "paid", "one")


def test_a_record_is_found_however_its_key_is_typed(world: World) -> None:
    in_doubt_and_held(world, step="done_raise")
    with acting(world) as person:
        assert actions.settle(person, "paid", " 01", outcome='"r1"').record == "1"


def test_of_several_occurrences_one_must_be_named(world: World) -> None:
    gateway = charging(world, InDoubt.hold(), occurrence=[Order.round])
    world.orders(1)
    stored(world, occurrence="1", unsure=True)
    stored(world, occurrence="2", unsure=True)
    with acting(world) as person:
        with pytest.raises(ConflictError, match="'1', '2'"):
            actions.settle(person, "paid", "1", outcome='"r1"')
        assert actions.settle(person, "paid", "1", "1", outcome='"r1"').became == "concluded"
        with pytest.raises(NotFoundError, match="occurrence '3'"):
            actions.forget(person, "paid", "1", "3")
    assert [one.occurrence for one in world.attempts()] == ["2"]
    assert gateway.calls == []


# ---- races -----------------------------------------------------------------------------------------------------------------------
def after_the_look(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Something happens between the person's question which attempt it is, and the lock on its record."""
    carry_out = action._run_and_ask_in_turn_if_raised
    once = [happens]

    def in_one(*given: Any) -> Any:
        while once:
            once.pop()()
        return carry_out(*given)

    monkeypatch.setattr(action, "_run_and_ask_in_turn_if_raised", in_one)


def test_an_attempt_that_was_concluded_meanwhile_is_gone_and_its_outcome_stands(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    in_doubt_and_held(world)

    def concluded() -> None:
        world.force("delete from groundstate_attempt")
        world.set(1, status="paid", receipt="late")

    after_the_look(monkeypatch, concluded)
    with pytest.raises(ConflictError, match="was there before"):
        settle(world, '"r1"')
    assert (world.order().receipt, world.attempts()) == ("late", [])


def test_an_attempt_that_a_worker_took_up_meanwhile_is_left_to_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    held_with_outcome(world)
    after_the_look(monkeypatch, lambda: change(world, state="begun", outcome=None, call=99))
    with pytest.raises(ConflictError, match="it is begun, not held"):
        retry(world)
    assert (world.attempt().state, world.attempt().call) == (State.BEGUN, 99)


def test_a_late_outcome_of_a_living_worker_and_a_person_who_settles_are_one_conclusion(world: World) -> None:
    gateway = charging(world, InDoubt.hold(), sync=True, timeout=ms(50))
    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: world.states() == ["doubt"])
    with pytest.raises(ConflictError, match="it is in doubt, not held"):
        settle(world, '"r1"')
    gateway.gate.set()
    until(lambda: world.order().status == "paid")
    life.quiet()
    assert (world.attempts(), gateway.done(1)) == ([], 1)


def test_two_persons_who_settle_at_once_conclude_it_once(world: World) -> None:
    in_doubt_and_held(world)
    assert settle(world, '"first"', by="ada").became == "concluded"
    with pytest.raises(NotFoundError):
        settle(world, '"second"', by="grace")
    assert world.order().receipt == "first"


def test_of_many_who_settle_at_the_same_instant_one_does_and_the_others_are_told(world: World) -> None:
    in_doubt_and_held(world)
    start = threading.Barrier(4)
    told: list[str] = []

    def settles(number: int) -> None:
        start.wait(HANG_S)
        try:
            told.append(settle(world, json.dumps(f"by {number}"), by=f"person {number}").became)
        except (ConflictError, NotFoundError) as refused:
            told.append(type(refused).__name__)

    threads = [threading.Thread(target=settles, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert told.count("concluded") == 1
    assert len(told) == 4
    assert (world.order().status, world.attempts()) == ("paid", [])


def test_a_record_that_somebody_has_locked_is_waited_for_and_then_refused_in_words(
    on_postgres: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = on_postgres
    in_doubt_and_held(world, step="done_raise")
    monkeypatch.setattr(action, "PATIENCE_S", 0.2)
    with world.engine.begin() as connection:
        connection.execute(select(Order).where(Order.id == 1).with_for_update())
        with pytest.raises(ConflictError, match="locked by somebody else"):
            settle(world, '"r1"')
    assert settle(world, '"r1"').became == "concluded"


# ---- all of a reaction -----------------------------------------------------------------------------------------------------------
def test_all_held_attempts_of_a_reaction_are_retried_but_no_baseline(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = Switch()
    gateway = charging(world, ASK, handler=switch.handler)
    world.orders(7)
    world.settled()
    assert world.states() == ["held"] * 7
    switch.broken = False
    with forcing(world.engine) as connection:
        connection.execute(update(tables.attempt).where(tables.attempt.c.record == "3").values(why="baseline", outcome=None))
    monkeypatch.setattr(actions, "AT_ONCE", 2)
    with acting(world) as person:
        assert actions.count_attempts(person, "paid") == 6
        assert actions.count_attempts(person, "paid", baseline=True) == 1
        assert [did.became for did in actions.retry_all(person, "paid")] == ["concluded"] * 6
    assert world.count(Order.status == "paid") == 6
    assert len(gateway.calls) == 7
    assert [one.record for one in world.attempts()] == ["3"]


def test_failed_ones_are_retried_too_where_that_is_said(world: World) -> None:
    charging(world, ASK)
    world.orders(2)
    later = _now(world).replace(year=2100)
    stored(world, record="1", state=State.FAILED, next_at=later)
    stored(world, record="2")
    with acting(world) as person:
        assert [did.record for did in actions.retry_all(person, "paid")] == ["2"]
        assert [did.record for did in actions.retry_all(person, "paid", failed=True)] == ["1", "2"]
    world.settled()
    assert world.count(Order.status == "paid") == 2


def test_of_all_that_are_forgotten_those_whose_condition_holds_are_refused(world: World) -> None:
    charging(world, InDoubt.hold())
    world.orders(3)
    for number in (1, 2, 3):
        stored(world, record=str(number))
    world.set(2, status="cancelled")
    with acting(world) as person:
        done = {did.record: did.became for did in actions.forget_all(person, "paid")}
    assert done == {"1": "refused", "2": "deleted", "3": "refused"}
    assert [one.record for one in world.attempts()] == ["1", "3"]


def test_of_all_rows_that_were_left_out_those_whose_condition_holds_stay_since_they_would_be_carried_out(world: World) -> None:
    charging(world, InDoubt.hold())
    world.orders(3)
    world.app.init(baseline=["paid"])
    stored(world, record="9")
    world.set(2, status="cancelled")
    with acting(world) as person:
        done = {did.record: (did.became, "would be a new call" in did.words) for did in actions.forget_all(person, "paid", baseline=True)}
    assert done == {"1": ("refused", True), "2": ("deleted", False), "3": ("refused", True)}
    assert [one.record for one in world.attempts()] == ["1", "3", "9"]


@pytest.mark.parametrize("one_by_one", [False, True])
def test_rows_that_a_reaction_left_out_which_is_gone_are_forgotten_and_it_asks_again_before_it_takes_them(
    world: World, monkeypatch: pytest.MonkeyPatch, one_by_one: bool
) -> None:
    gateway = charging(world, InDoubt.hold())
    world.orders(5)
    world.app.init(baseline=["paid"])
    monkeypatch.setattr(actions, "AT_ONCE", 2)
    with acting(world, without="paid") as person:
        assert actions.count_attempts(person, "paid", baseline=True) == 5
        some = [actions.forget(person, "paid", "1")] if one_by_one else [*actions.forget_all(person, "paid", baseline=True)]
    assert {(did.became, "asks a person first" in did.words) for did in some} == {("deleted", True)}
    assert len(world.attempts()) == 5 - len(some)
    life = world.worker()
    until(lambda: [(one.name, one.rows) for one in life.worker.refused_reactions] == [("paid", len(some))])  # the others are still left out
    life.quiet()
    assert gateway.calls == []


def test_all_of_a_reaction_that_nobody_knows_is_not_found(world: World) -> None:
    charging(world, InDoubt.hold())
    world.there()
    with acting(world) as person, pytest.raises(NotFoundError, match="no reaction 'payed'"):
        actions.forget_all(person, "payed")


# ---- reactions that this code does not declare -------------------------------------------------------------------------------------
def test_a_removed_reaction_can_be_settled_and_forgotten_but_not_retried(world: World) -> None:
    charging(world, InDoubt.hold())
    world.orders(3)
    stored(world, record="1", unsure=True)
    stored(world, record="2")
    stored(world, record="3", state=State.FAILED, next_at=_now(world))
    world.forward(HOUR)
    with acting(world, without="paid") as person:
        with pytest.raises(ConflictError, match="does not declare paid"):
            actions.retry(person, "paid", "1")
        with pytest.raises(ConflictError, match="does not declare paid"):
            actions.settle(person, "paid", "1", outcome='"r1"')
        assert actions.settle_absent(person, "paid", "1").became == "deleted"
        assert actions.forget(person, "paid", "2").became == "deleted"
        assert actions.forget(person, "paid", "3").became == "deleted"
    assert world.attempts() == []


def test_what_was_forgotten_of_a_removed_reaction_is_asked_for_before_code_that_declares_it_again_calls_it(world: World) -> None:
    """Its condition may hold: nobody could see that without its code, and its call may have been made."""
    gateway = charging(world, ASK)
    world.orders(1)
    stored(world, record="1", unsure=True)
    world.forward(HOUR)
    with acting(world, without="paid") as person:
        did = actions.forget(person, "paid", "1")
    assert "asks a person first" in did.words
    life = world.worker()  # the code is put back
    until(lambda: [(one.name, one.calls) for one in life.worker.refused_reactions] == [("paid", 1)])
    life.quiet()
    assert gateway.calls == []


def test_a_call_of_a_removed_reaction_that_may_be_in_the_air_is_left_to_a_worker(world: World) -> None:
    charging(world, InDoubt.hold())
    world.orders(1)
    stored(world, state=State.BEGUN)
    with acting(world, without="paid") as person, pytest.raises(ConflictError, match="it is begun, not held"):
        actions.forget(person, "paid", "1")


# ---- held, listed ------------------------------------------------------------------------------------------------------------------
def test_what_is_held_is_listed_with_its_key_at_the_provider_and_what_can_be_done(world: World) -> None:
    gateway = in_doubt_and_held(world, step="done_raise")
    one = only(world)
    assert (one.reaction, one.table, one.record, one.unsure, one.calls, one.outcome) == ("paid", "orders", "1", True, 1, None)
    assert one.key == gateway.ledger[0][1]
    assert "a person decides" in one.why
    assert "the answer was lost" in (one.error or "")
    assert one.can == ("settle --outcome",)
    world.forward(HOUR)
    assert only(world).can == ("settle --absent", "settle --outcome")
    world.set(1, status="cancelled")
    assert only(world).can == ("settle --absent", "settle --outcome", "forget")


def test_an_outcome_in_hand_is_listed_with_it(world: World) -> None:
    held_with_outcome(world)
    one = only(world)
    assert (one.outcome, one.unsure, one.absent_from) == ('["r1"]', False, None)
    assert one.can == ("retry", "settle --outcome")


def test_forget_is_offered_where_it_is_not_refused_and_each_condition_is_asked_once_for_a_page(world: World) -> None:
    charging(world, InDoubt.hold(), occurrence=[Order.round])
    world.orders(4)
    for number in range(1, 6):
        stored(world, record=str(number), occurrence="1")
    stored(world, record="6", occurrence="1", reaction="charged")
    world.set(2, status="cancelled")
    world.set(3, round=2)
    asked: list[str] = []
    with acting(world) as person:
        note_commit = partial(_keep, asked)
        event.listen(Engine, "before_cursor_execute", note_commit)
        try:
            page = listing.read_held_page(person.app, person.database, person.queries)
        finally:
            event.remove(Engine, "before_cursor_execute", note_commit)
        offered = [one.record for one in page.held if "forget" in one.can]
        assert offered == ["6", "2", "3", "5"]
        for one in page.held:
            if one.record in offered:
                assert actions.forget(person, one.reaction, one.record).became == "deleted"
            else:
                with pytest.raises(ConflictError, match="would be a new call"):
                    actions.forget(person, one.reaction, one.record)
    assert sum("FROM orders" in one for one in asked) == 1


def _keep(asked: list[str], _connection: object, _cursor: object, statement: str, *_rest: object) -> None:
    asked.append(statement)


def test_where_a_condition_cannot_be_asked_what_is_held_is_listed_and_forget_is_not_offered(world: World) -> None:
    charging(world, InDoubt.hold())
    world.orders(1)
    stored(world)
    world.run("alter table orders rename column status to state")
    assert only(world).can == ("retry", "settle --outcome")


def test_held_attempts_are_filtered_and_come_in_pages(world: World) -> None:
    charging(world, InDoubt.hold())
    world.orders(5)
    for number in range(1, 5):
        stored(world, record=str(number), unsure=number > 2, error=f"50% of number_{number}", outcome='["r"]' if number == 1 else None)
    stored(world, record="5", why="baseline")
    page = held(world, limit=3)
    assert [one.record for one in page.held] == ["1", "2", "3"]
    assert (page.total, page.baselines, page.left) == (4, 1, True)
    rest = held(world, limit=3, after=page.more)
    assert ([one.record for one in rest.held], rest.more, rest.left) == (["4"], None, False)

    def records(**which: Any) -> list[str]:
        return [one.record for one in held(world, Filter(**which)).held]

    assert records(unsure=True) == ["3", "4"]
    assert records(unsure=False) == ["1", "2"]
    assert records(with_outcome=True) == ["1"]
    assert records(with_outcome=False) == ["2", "3", "4"]
    assert records(why="NUMBER_2") == ["2"]
    assert records(why="% of number") == ["1", "2", "3", "4"]
    assert records(why="50_") == []
    assert records(record="4") == ["4"]
    assert records(baseline=True) == ["5"]
    assert records(reaction="other") == []


# ---- trust -------------------------------------------------------------------------------------------------------------------------
def suspected(world: World) -> None:
    with world.engine.begin() as connection:
        connection.execute(update(tables.reaction).where(tables.reaction.c.name != "").values(suspect=True))


def suspects(world: World) -> list[str]:
    with world.engine.connect() as connection:
        return list(connection.execute(select(tables.reaction.c.name).where(tables.reaction.c.suspect)).scalars())


def test_trust_clears_suspicion_and_says_how_many_doubts_are_open(world: World) -> None:
    charging(world, InDoubt.hold())
    world.orders(3)
    suspected(world)
    stored(world, record="1", state=State.DOUBT, unsure=True, next_at=_now(world))
    stored(world, record="2", unsure=True)
    with acting(world) as person:
        assert renaming.trust_reactions(person) == renaming.Trusted(("paid",), in_doubt=1, held=1)
        assert renaming.trust_reactions(person) == renaming.Trusted((), in_doubt=1, held=1)
        with pytest.raises(NotFoundError, match="no reaction 'payed'"):
            renaming.trust_reactions(person, "payed")
    assert suspects(world) == []


def test_one_reaction_is_trusted_and_the_others_stay_suspect(world: World) -> None:
    charging(world, InDoubt.hold())

    @world.app.on(Order, Order.status == "paid", name="packed")
    def _(order: Order) -> None:
        order.status = "packed"

    world.orders(1)
    suspected(world)
    with acting(world) as person:
        assert renaming.trust_reactions(person, "packed").reactions == ("packed",)
    assert suspects(world) == ["paid"]


# ---- rename ------------------------------------------------------------------------------------------------------------------------
def formerly(world: World, name: str = "charged") -> None:
    """The database knows the reaction under an old name, since the code was changed."""
    with forcing(world.engine) as connection:
        connection.execute(update(tables.attempt).values(reaction=name))
        connection.execute(update(tables.reaction).where(tables.reaction.c.name == "paid").values(name=name, key_name=name))


def test_a_renamed_reaction_carries_its_attempts_over_and_keeps_its_keys(world: World) -> None:
    gateway = charging(world, SAME_KEY)
    world.orders(2)
    stored(world, record="1", unsure=True)
    formerly(world)
    with acting(world) as person:
        assert renaming.rename(person, "charged", "paid") == renaming.Renamed("charged", "paid", attempts=1)
        assert only(world).key == keys.call_key("shop", "charged", "1", "")
    retry(world)
    world.settled()
    assert sorted(gateway.calls) == [(1, keys.call_key("shop", "charged", "1", "")), (2, keys.call_key("shop", "charged", "2", ""))]


def test_a_new_name_with_attempts_of_its_own_is_refused(world: World) -> None:
    charging(world, InDoubt.hold())
    world.orders(2)
    stored(world, record="1")
    formerly(world)
    stored(world, record="2")
    with acting(world) as person, pytest.raises(ConflictError, match="paid has 1 attempt of its own"):
        renaming.rename(person, "charged", "paid")
    assert sorted(one.reaction for one in world.attempts()) == ["charged", "paid"]


def test_a_new_name_that_was_accepted_already_takes_the_key_name_of_the_old(world: World) -> None:
    charging(world, InDoubt.hold())
    world.orders(1)
    stored(world)
    formerly(world)
    world.app.init(accept="call")
    with acting(world) as person:
        renaming.rename(person, "charged", "paid")
    with world.engine.connect() as connection:
        rows = connection.execute(select(tables.reaction.c.name, tables.reaction.c.key_name).where(tables.reaction.c.name != "")).all()
    assert [tuple(row) for row in rows] == [("paid", "charged")]
    assert only(world).key == keys.call_key("shop", "charged", "1", "")


def test_an_old_name_that_nobody_knows_is_not_found(world: World) -> None:
    charging(world, InDoubt.hold())
    world.there()
    with acting(world) as person:
        with pytest.raises(NotFoundError, match="no reaction 'charged' here: there are paid"):
            renaming.rename(person, "charged", "paid")
        with pytest.raises(ConflictError, match="has that name already"):
            renaming.rename(person, "paid", "paid")
        with pytest.raises(ConflictError, match="no name"):
            renaming.rename(person, "paid", "a\x1fb")


def test_nothing_is_renamed_under_a_running_worker_and_a_killed_one_does_not_stand_in_the_way(world: World) -> None:
    charging(world, InDoubt.hold())
    world.orders(1, status="paid")
    life = world.worker()
    with acting(world) as person:
        with pytest.raises(ConflictError, match="a worker of the app runs"):
            renaming.rename(person, "paid", "charged")
        life.kill()
        assert renaming.rename(person, "paid", "charged").attempts == 0


def test_a_renamed_app_keeps_the_keys_that_were_made_of_its_old_name(world: World) -> None:
    gateway = charging(world, SAME_KEY)
    world.orders(2)
    stored(world, record="1", unsure=True)
    with forcing(world.engine) as connection:
        connection.execute(update(tables.attempt).values(app="store"))
        connection.execute(update(tables.reaction).where(tables.reaction.c.name != "").values(app="store"))
        long_ago = {"began_at": _now(world), "ended_at": _now(world)}
        connection.execute(insert(tables.worker).values(id=5, app="store", host="h", pid=1, begins=0, **long_ago))
    with acting(world) as person:
        assert renaming.rename_app(person, "store", "shop") == renaming.Renamed("store", "shop", attempts=1, reactions=1)
        with pytest.raises(NotFoundError, match="nothing is known of an app 'store'"):
            renaming.rename_app(person, "store", "shop")
    assert only(world).key == keys.call_key("store", "paid", "1", "")
    retry(world)
    world.settled()
    assert sorted(gateway.calls) == [(1, keys.call_key("store", "paid", "1", "")), (2, keys.call_key("store", "paid", "2", ""))]


# ---- small things ------------------------------------------------------------------------------------------------------------------
def _now(world: World) -> Any:
    with acting(world) as person, person.database.reading() as connection:
        return connection.execute(select(person.database.now())).scalar_one()


def _key(world: World) -> str:
    return keys.call_key("shop", "paid", "1", "")
