"""Old code and new code at work on one database: nothing is done twice, and nothing is lost, whatever changed between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial

import pytest

from groundstate import Retry
from groundstate.engine.operate import renaming
from groundstate.engine.operate.action import Person
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.rules.attempt import State
from groundstate.store import connect
from groundstate.values.errors import ConflictError, StoreRefusedError
from tests.engine import kit
from tests.engine.charging import ASK, SAME_KEY, charging
from tests.engine.kit import Gateway, Order, World, until


class Deploy:
    """The database of one world, and the next version of its code."""

    def __init__(self, old: World, new: World) -> None:
        self.old, self.new = old, new
        new._there = True

    def accepted(self) -> None:
        self.old.there()
        self.new.app.init(accept=True)


@pytest.fixture
def deploy(world: World) -> Iterator[Deploy]:
    new = World(world.url)
    yield Deploy(world, new)
    new.close()


def _once_each(gateway: Gateway, count: int) -> None:
    done = Counter(record for record, _ in gateway.ledger)
    assert set(done.values()) == {1}
    assert len(done) == count


def _with_a_call_in_the_air(deploy: Deploy, gateway: Gateway, step: str, *, orders: int = 1) -> kit.Life:
    """A worker of the old code, whose call for the first order does not come back."""
    gateway.plan(1, step)
    deploy.old.orders(orders)
    old = deploy.old.worker()
    until(lambda: gateway.waiting == 1)
    return old


def _step(world: World, name: str, before: str, after: str) -> None:
    def handler(order: Order) -> None:
        assert order.status == before, "somebody else was at it"
        order.status = after

    world.app.on(Order, Order.status == before, name=name)(handler)


def test_the_same_code_twice_takes_each_record_once(deploy: Deploy) -> None:
    gateway = charging(deploy.old, ASK)
    charging(deploy.new, ASK, gateway=gateway)
    deploy.accepted()
    deploy.old.orders(60)
    old, new = deploy.old.worker(), deploy.new.worker()
    until(lambda: deploy.old.count(Order.status == "paid") == 60)
    old.stop()
    new.quiet()
    _once_each(gateway, 60)
    assert deploy.old.attempts() == []


def test_a_call_of_the_old_code_in_the_air_is_left_alone_by_the_new_and_concluded_once(deploy: Deploy) -> None:
    gateway = charging(deploy.old, ASK)
    charging(deploy.new, ASK, gateway=gateway)
    deploy.accepted()
    old = _with_a_call_in_the_air(deploy, gateway, "hang")
    new = deploy.new.worker()
    new.quiet()
    new.sweep()
    assert gateway.asked == []
    gateway.gate.set()
    until(lambda: deploy.old.order().status == "paid")
    old.stop()
    new.stop()
    _once_each(gateway, 1)


def test_what_killed_old_code_had_in_the_air_is_settled_by_the_new(deploy: Deploy) -> None:
    gateway = charging(deploy.old, ASK)
    charging(deploy.new, ASK, gateway=gateway)
    deploy.accepted()
    old = _with_a_call_in_the_air(deploy, gateway, "done_hang", orders=3)
    new = deploy.new.worker()
    old.kill()
    until(lambda: deploy.new.count(Order.status == "paid") == 3)
    new.stop()
    gateway.gate.set()
    _once_each(gateway, 3)


def test_a_new_reaction_runs_beside_old_code_that_does_not_know_it(deploy: Deploy) -> None:
    for world in (deploy.old, deploy.new):
        _step(world, "packed", "placed", "packed")
    _step(deploy.new, "sent", "packed", "sent")
    deploy.old.orders(20)
    old = deploy.old.worker()
    until(lambda: deploy.old.count(Order.status == "packed") == 20)
    new = deploy.new.worker()
    until(lambda: [one.name for one in new.worker.refused_reactions] == ["sent"])  # on rows that were there: a person's word first
    deploy.new.app.init(accept=["sent"])
    until(lambda: deploy.old.count(Order.status == "sent") == 20)
    deploy.old.orders_from(21, 40)
    until(lambda: deploy.old.count(Order.status == "sent") == 40)
    old.stop()
    new.stop()


@pytest.mark.parametrize("wider", [False, True], ids=["narrower", "wider"])
def test_a_condition_that_changed_is_answered_by_both_and_each_record_once(deploy: Deploy, wider: bool) -> None:
    first, second = (deploy.new, deploy.old) if wider else (deploy.old, deploy.new)
    gateway = charging(first, ASK)
    charging(second, ASK, gateway=gateway)
    narrow = second.app.reactions["paid"]
    narrow.clauses = (*narrow.clauses, Order.round > 0)
    deploy.accepted()
    old, new = deploy.old.worker(), deploy.new.worker()
    deploy.old.orders(40)
    until(lambda: deploy.old.count(Order.status == "paid") == 40)
    old.stop()
    new.quiet()
    new.stop()
    _once_each(gateway, 40)


def test_a_call_that_has_another_policy_now_keeps_its_key(deploy: Deploy) -> None:
    gateway = charging(deploy.old, SAME_KEY)
    charging(deploy.new, ASK, gateway=gateway)
    deploy.accepted()
    old = _with_a_call_in_the_air(deploy, gateway, "done_hang")
    old.kill()
    new = deploy.new.worker()
    until(lambda: deploy.old.order().status == "paid")
    new.stop()
    gateway.gate.set()
    assert len({key for _, key in gateway.ledger}) == 1  # the provider has seen one


def test_a_doubt_whose_key_nothing_was_promised_of_is_held_where_the_policy_is_same_key_now(deploy: Deploy) -> None:
    gateway = charging(deploy.old, ASK)
    charging(deploy.new, SAME_KEY, gateway=gateway)
    deploy.accepted()
    old = _with_a_call_in_the_air(deploy, gateway, "done_hang")
    old.kill()
    new = deploy.new.worker()
    until(lambda: deploy.old.states() == ["held"])
    new.stop()
    gateway.gate.set()
    assert (gateway.called(1), "promises nothing of its key" in (deploy.old.attempt().why or "")) == (1, True)


def test_a_removed_reaction_with_open_attempts_keeps_the_new_code_from_starting_and_the_old_goes_on(deploy: Deploy) -> None:
    gateway = charging(deploy.old, ASK)
    _step(deploy.new, "packed", "paid", "packed")
    deploy.old.there()
    old = _with_a_call_in_the_air(deploy, gateway, "hang")
    with pytest.raises(StoreRefusedError, match=r"does not declare: paid \(1\)"):
        deploy.new.worker()
    gateway.gate.set()
    until(lambda: deploy.old.order().status == "paid")
    old.stop()
    deploy.new.app.init(accept=True)
    deploy.new.settled()
    assert deploy.old.order().status == "packed"
    _once_each(gateway, 1)


def test_new_code_that_already_runs_lists_what_the_old_left_of_a_removed_reaction(deploy: Deploy) -> None:
    gateway = charging(deploy.old, ASK)
    _step(deploy.new, "packed", "packing", "packed")
    deploy.accepted()
    new = deploy.new.worker()
    old = _with_a_call_in_the_air(deploy, gateway, "done_hang")
    old.kill()
    until(lambda: deploy.old.states() == ["doubt"])
    new.quiet()
    assert deploy.old.attempt().reaction == "paid"  # neither called again nor forgotten
    new.stop()
    gateway.gate.set()
    deploy.old.settled()  # code that knows it settles it
    assert deploy.old.order().status == "paid"
    _once_each(gateway, 1)


def test_a_rename_waits_for_the_old_code_to_end_and_keeps_the_keys(deploy: Deploy) -> None:
    gateway = charging(deploy.old, SAME_KEY)
    charging(deploy.new, SAME_KEY, gateway=gateway)
    renamed = deploy.new.app.reactions.pop("paid")
    renamed.name = "charged"
    deploy.new.app.reactions["charged"] = renamed
    deploy.old.there()
    old = _with_a_call_in_the_air(deploy, gateway, "done_hang")
    rename = partial(_as_person, deploy.old, lambda person: renaming.rename(person, "paid", "charged"))
    with pytest.raises(ConflictError):
        rename()
    old.kill()
    rename()
    assert deploy.old.attempt().reaction == "charged"
    deploy.new.settled()
    gateway.gate.set()
    assert deploy.old.order().status == "paid"
    assert len({key for _, key in gateway.ledger}) == 1


def _as_person(world: World, act: Callable[[Person], object]) -> None:
    database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
    database.connect()
    try:
        life = Incarnation(world.app.name, database, make_lives(), None)
        act(Person(life, {}, "the test"))
    finally:
        database.close()


def test_an_attempt_that_failed_under_old_code_is_tried_again_by_either(deploy: Deploy) -> None:
    gateway = charging(deploy.old, ASK)
    charging(deploy.new, ASK, gateway=gateway)
    deploy.accepted()
    for number in range(1, 11):
        gateway.plan(number, "refuse", "refuse")
    deploy.old.orders(10)
    old, new = deploy.old.worker(), deploy.new.worker()
    until(lambda: deploy.old.count(Order.status == "paid") == 10)
    old.stop()
    new.stop()
    _once_each(gateway, 10)
    assert State.FAILED.value not in deploy.old.states()


# ---- rolled back -----------------------------------------------------------------------------------------------------------------
def test_a_baseline_of_a_new_reaction_keeps_no_old_code_from_starting_and_stands_for_the_new(deploy: Deploy) -> None:
    for world in (deploy.old, deploy.new):
        _step(world, "packed", "placed", "packed")
    _step(deploy.new, "swept", "archived", "swept")
    deploy.old.there()
    deploy.old.orders(3, status="archived")
    deploy.new.app.init(baseline=["swept"])
    deploy.old.orders_from(4, 4)
    deploy.old.settled()
    assert deploy.old.order(4).status == "packed"
    deploy.new.settled()
    assert deploy.old.count(Order.status == "archived") == 3
    assert deploy.old.states() == ["held"] * 3


class Left:
    """New code died with two calls of its own reaction in the air, which were made. Old code has work of its own, on one of these too."""

    def __init__(self, deploy: Deploy) -> None:
        self.old, self.new = deploy.old, deploy.new
        for world in (self.old, self.new):
            _step(world, "packed", "packing", "packed")
        self.old.app.on(Order, Order.note == "urgent", name="urgent")(_hurried)
        self.gateway = charging(self.new, ASK)
        deploy.accepted()
        self.gateway.plan(1, "done_hang")
        self.gateway.plan(2, "done_hang")
        self.old.orders(2)
        dying = self.new.worker()
        until(lambda: self.gateway.waiting == 2)
        dying.kill()
        self.old.set(1, note="urgent")

    def goes_on(self, worker: kit.Life) -> None:
        """Old code does its own work, and nothing on what is in doubt."""
        self.old.add(Order(id=3, status="packing"), Order(id=4, status="resting", note="urgent"))
        until(lambda: self.old.order(3).status == "packed" and self.old.order(4).note == "hurried")
        worker.quiet()
        worker.sweep()
        assert [(one.reaction, one.record, one.state) for one in self.old.attempts()] == [
            ("paid", "1", State.DOUBT),
            ("paid", "2", State.DOUBT),
        ]
        assert (self.old.order(1).status, self.old.order(1).note) == ("placed", "urgent")

    def settled(self) -> None:
        """Code that declares them settles them: each was called once."""
        self.gateway.gate.set()
        new = self.new.worker()
        until(lambda: self.old.count(Order.status == "paid") == 2)
        new.quiet()
        new.stop()
        _once_each(self.gateway, 2)
        assert [self.gateway.called(record) for record in (1, 2)] == [1, 1]


def _hurried(order: Order) -> None:
    order.note = "hurried"


@pytest.fixture
def left(deploy: Deploy) -> Left:
    return Left(deploy)


def test_old_code_leaves_the_doubts_of_a_new_reaction_alone_and_they_are_settled_when_it_is_there_again(
    left: Left, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StoreRefusedError, match=r"paid \(2\).*groundstate run --leave-undeclared"):
        left.old.worker()
    old = left.old.worker(leave_undeclared=True)
    left.goes_on(old)
    told = [record for record in caplog.records if vars(record).get("event") == "undeclared_left"]
    assert [(record.levelname, vars(record)["reactions"], vars(record)["count"]) for record in told] == [("WARNING", ["paid"], 2)]
    old.stop()
    left.settled()
    left.old.settled()
    assert (left.old.order(1).note, left.old.attempts()) == ("hurried", [])


def test_after_a_restore_under_old_code_nothing_that_the_new_code_may_have_called_is_called_again(deploy: Deploy) -> None:
    gateway = charging(deploy.new, ASK, retry=Retry(times=9, first=timedelta(hours=1)))
    deploy.accepted()
    gateway.plan(1, "refuse")
    deploy.old.orders(1)
    new = deploy.new.worker()
    until(lambda: deploy.old.states() == ["failed"])
    new.stop()
    old = deploy.old.worker(leave_undeclared=True, after_restore=True)  # put back, and in the lost time both were done
    deploy.old.orders_from(2, 2)
    old.quiet()
    old.stop()
    failed = deploy.old.attempt()
    assert (failed.reaction, failed.state, failed.unsure) == ("paid", State.DOUBT, True)
    gateway.finds = {1: ["r8"], 2: ["r9"]}
    new = deploy.new.worker()
    until(lambda: deploy.old.count(Order.status == "paid") == 2)
    new.quiet()
    assert gateway.ledger == []  # both were asked for
    assert [deploy.old.order(number).receipt for number in (1, 2)] == ["r8", "r9"]


def test_doubts_that_living_old_code_cannot_settle_are_settled_beside_it_by_code_that_can(left: Left) -> None:
    old = left.old.worker(leave_undeclared=True)
    left.goes_on(old)
    left.settled()
    until(lambda: left.old.order(1).note == "hurried")
    old.stop()
    assert left.old.attempts() == []
