"""Rows that a person said to leave are carried out by nobody, whichever versions of the code run after or beside the one that left them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import ForeignKey, or_, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate.engine.operate import action
from groundstate.engine.operate.action import ActionResult, Person
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules import begun_kind
from groundstate.rules.attempt import Attempt
from groundstate.store import connect
from tests.engine.kit import HANG_S, Base, Life, Order, World, until

WAITS_FOR_A_LOCK = text("SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
NARROW = (Order.status == "archived",)
WIDE = (or_(Order.status == "archived", Order.status == "closed"),)


def sweeping(world: World, condition: Any, **options: Any) -> World:
    """Sweeps orders; says of each who did, in its note."""

    @world.app.on(Order, *condition, name="swept", **options)
    def swept(order: Order) -> None:
        order.status, order.note = "swept", f"{order.note or ''}+"

    return world


class Versions:
    """Worlds of one database, each with code of its own."""

    def __init__(self, first: World) -> None:
        self.first, self.made = first, [first]

    def code(self, condition: Any, **options: Any) -> World:
        new = World(self.first.url)
        new._there = True
        self.made.append(new)
        return sweeping(new, condition, **options)


@pytest.fixture
def versions(world: World) -> Iterator[Versions]:
    found = Versions(world)
    yield found
    for one in found.made[1:]:
        one.close()


def left_alone(world: World, *lives: Life, closed: int = 5) -> None:
    """Each of these workers looked at all there is, and the closed orders are as they were."""
    for _ in range(2):
        for life in lives:
            life.sweep()
            life.quiet()
    assert world.count(Order.status == "closed") == closed
    assert len([one for one in world.attempts() if one.why == "baseline"]) == closed


def widened(versions: Versions) -> tuple[World, World]:
    """Old code whose condition is narrow; new code whose condition is wide; and five closed orders that a person said to leave."""
    old = sweeping(versions.first, NARROW)
    old.orders(5, status="closed")
    new = versions.code(WIDE)
    new.app.init(baseline=["swept"])
    return old, new


def test_a_baseline_of_a_widened_condition_stands_while_a_worker_of_the_old_code_runs(versions: Versions) -> None:
    old, new = widened(versions)
    before, after = old.worker(), new.worker()
    left_alone(old, before, after)
    old.add(Order(id=6, status="archived"), Order(id=7, status="closed"))
    until(lambda: old.count(Order.status == "swept") == 2)  # both go on with what comes new
    assert [old.order(number).note for number in (6, 7)] == ["+", "+"]
    left_alone(old, before, after)


def test_a_baseline_stands_through_a_rollback_and_when_the_new_code_is_there_again(versions: Versions) -> None:
    old, new = widened(versions)
    forward = new.worker()
    left_alone(old, forward)
    forward.stop()
    back = old.worker()
    left_alone(old, back)
    back.stop()
    again = new.worker()
    left_alone(old, again)
    assert again.worker.refused_reactions == []  # nothing is new in what it would start on
    old.add(Order(id=6, status="closed"))
    until(lambda: old.order(6).status == "swept")


def test_a_baseline_goes_when_its_condition_does_whichever_code_looks(versions: Versions) -> None:
    old, new = widened(versions)
    before = old.worker()
    old.set(1, status="placed")
    until(lambda: sorted(one.record for one in old.attempts()) == ["2", "3", "4", "5"])
    before.stop()
    after = new.worker()
    until(lambda: all(lane.is_enabled for lane in after.worker.components.worker_state.queues))
    old.set(1, status="closed")
    until(lambda: old.order(1).note == "+")  # it is a new one now
    left_alone(old, after, closed=4)


def test_rows_that_were_left_under_the_old_condition_are_left_under_a_narrower_one_until_that_goes_too(versions: Versions) -> None:
    wide = sweeping(versions.first, WIDE).there()
    wide.orders(3, status="closed")
    wide.app.init(baseline=["swept"])
    narrow = versions.code((Order.status == "closed", Order.round > 1))
    narrow.app.init()
    after = narrow.worker()
    wide.set(1, round=2)  # it comes under the narrow one, and was left under the wide one all the time
    left_alone(wide, after, closed=3)
    wide.set(1, status="placed")
    until(lambda: len(wide.attempts()) == 2)
    wide.set(1, status="closed")
    until(lambda: wide.order(1).status == "swept")
    left_alone(wide, after, closed=2)


def test_what_is_left_once_more_under_another_condition_goes_when_neither_holds(versions: Versions) -> None:
    first = sweeping(versions.first, (Order.status == "closed",)).there()
    first.orders(1, status="closed", round=2)
    first.app.init(baseline=["swept"])
    second = versions.code((Order.round == 2,))
    second.app.init(baseline=["swept"])
    said = begun_kind.parse_baseline(first.attempt().begun_with)
    assert said is not None
    assert len(said.conditions) == 2
    second.app.init(baseline=["swept"])  # twice is once
    assert begun_kind.parse_baseline(first.attempt().begun_with) == said
    life = second.worker()
    first.set(1, status="placed")
    life.sweep()
    life.quiet()
    assert len(first.attempts()) == 1
    first.set(1, round=1)
    until(lambda: first.attempts() == [])


@pytest.mark.parametrize(("was", "now"), [([], [Order.round]), ([Order.round], []), ([Order.round], [Order.round, Order.note])])
def test_a_baseline_stands_when_the_occurrence_is_made_of_other_columns(versions: Versions, was: Any, now: Any) -> None:
    old = sweeping(versions.first, WIDE, occurrence=was).there()
    old.orders(5, status="closed", note="n")
    old.app.init(baseline=["swept"])
    new = versions.code(WIDE, occurrence=now)
    life = new.worker()
    left_alone(old, life)
    old.add(*[Order(id=number, status="closed", note="n") for number in range(6, 8)])
    until(lambda: old.count(Order.status == "swept") == 2)
    left_alone(old, life)
    old.set(1, status="placed")
    until(lambda: len(old.attempts()) == 4)


def test_a_baseline_of_older_code_which_says_no_condition_goes_by_that_of_who_looks(versions: Versions) -> None:
    old, _ = widened(versions)
    old.run("update groundstate_attempt set begun_with = null")
    old.worker()
    until(lambda: old.attempts() == [])


def test_a_condition_that_cannot_be_asked_any_more_leaves_its_rows_as_they_are_and_says_so_once(
    versions: Versions, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = widened(versions)
    old.run("update groundstate_attempt set begun_with = replace(begun_with, 'closed', 'x'' or orders.gone = ''y')")
    life = new.worker()
    until(lambda: any(vars(record).get("event") == "baseline_unaskable" for record in caplog.records))
    left_alone(old, life)
    assert [vars(record)["reaction"] for record in caplog.records if vars(record).get("event") == "baseline_unaskable"] == ["swept"]


# ---- a person ----------------------------------------------------------------------------------------------------------------------
def as_person(world: World, deed: Callable[[Person], Any]) -> ActionResult:
    database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
    database.connect()
    try:
        questions = {spec.name: ConditionQuery(spec, database) for spec in world.app.reactions.values()}
        person = Person(Incarnation(world.app.name, database, make_lives(), None), questions, "the test")
        one: Attempt = world.attempts()[0]
        return action.run_action_on_attempts(person, one.reaction, [one.identity], deed(person))[0]
    finally:
        database.close()


def test_old_code_forgets_no_row_that_new_code_would_carry_out_then(versions: Versions) -> None:
    old, new = widened(versions)
    did = as_person(old, lambda person: partial(action.decide_forget, person))
    assert did.became == "refused"
    assert "a condition under which it was left holds" in did.words
    assert as_person(new, lambda person: partial(action.decide_forget, person)).became == "refused"
    old.set(1, status="placed")
    assert as_person(old, lambda person: partial(action.decide_forget, person)).became == "deleted"


def test_a_person_who_retries_a_baseline_has_it_carried_out(versions: Versions) -> None:
    old, new = widened(versions)
    assert as_person(new, lambda person: partial(action.decide_retry, person)).became == "failed"
    life = new.worker()
    until(lambda: old.order(1).status == "swept")
    left_alone(old, life, closed=4)


# ---- keys and tables of other shapes ---------------------------------------------------------------------------------------------------
class Things(DeclarativeBase):
    pass


class Part(Things):
    """Its key is of two columns, whose text cannot be said in SQL."""

    __tablename__ = "parts"
    a: Mapped[int] = mapped_column(primary_key=True)
    b: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


class Paper(Things):
    __tablename__ = "papers"
    id: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column()
    status: Mapped[str] = mapped_column(default="new")
    __mapper_args__ = {"polymorphic_on": "type", "polymorphic_identity": "paper"}  # noqa: RUF012  # as SQLAlchemy wants it


class Bill(Paper):
    __tablename__ = "bills"
    id: Mapped[int] = mapped_column(ForeignKey("papers.id"), primary_key=True)
    due: Mapped[int] = mapped_column(default=1)
    __mapper_args__ = {"polymorphic_identity": "bill"}  # noqa: RUF012  # as above


@pytest.mark.parametrize("record", [Part, Bill])
def test_a_baseline_stands_and_goes_for_keys_and_tables_of_any_shape(database_url: str, record: Any) -> None:
    def code(condition: Any) -> World:
        made = World(database_url, Things)

        @made.app.on(record, condition, name="swept")
        def swept(one: Any) -> None:
            one.status = "swept"

        return made

    own = Bill.due == 1 if record is Bill else Part.b == "x"
    old, new = code(record.status == "archived"), code(or_(record.status == "closed", own))
    one, two = (Part(a=1, b="x"), Part(a=2, b="y", status="closed")) if record is Part else (Bill(id=1), Bill(id=2, due=2, status="closed"))
    try:
        old.there()
        new._there = True
        old.add(one, two)
        new.app.init(baseline=["swept"])
        lives = [old.worker(), new.worker()]
        for _ in range(2):
            for life in lives:
                life.sweep()
                life.quiet()
        assert len(old.attempts()) == 2
        name = "bills" if record is Bill else "parts"
        old.run(f"update {'papers' if record is Bill else 'parts'} set status = 'placed'")
        until(lambda: len(old.attempts()) == 1)
        assert old.attempts()[0].record in ("1", '[1,"x"]'), name
    finally:
        for world in (old, new):
            world.close()


def _somebody_waits(world: World) -> bool:
    with world.engine.connect() as connection:  # of its own: a transaction sees one state of it all along
        return bool(connection.execute(WAITS_FOR_A_LOCK).scalar_one())


def test_a_record_that_moves_on_while_the_rows_that_are_there_are_left_is_none_of_them(postgres_world: World) -> None:
    world = sweeping(postgres_world, NARROW)
    Base.metadata.create_all(world.engine)
    world._there = True
    world.orders(2, status="archived")
    with world.engine.connect() as other, ThreadPoolExecutor(1) as pool:
        other.execute(text("UPDATE orders SET status = 'swept' WHERE id = 1"))  # as a call that is concluded just now
        leaving = pool.submit(world.app.init, tables=True, baseline=["swept"])
        until(lambda: leaving.done() or _somebody_waits(world))
        other.commit()
        leaving.result(HANG_S)
    assert [(one.record, one.why) for one in world.attempts()] == [("2", "baseline")]
