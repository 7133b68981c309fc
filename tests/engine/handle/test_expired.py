"""What is too late: answered by `expired` and never called; and what was called in time, or may have been, is settled first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import Absent, ExternalService, IdempotencyKey, InDoubt, ReactionContext, Retry, Unknown, UtcDateTime, after
from groundstate.engine.operate import actions
from groundstate.engine.operate.action import Person
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules.attempt import EXPIRED_HANDLER_FAILED
from groundstate.rules.poison_suspects import worker_ends_in_why
from groundstate.store import connect
from groundstate.values import keys
from tests.engine.charging import ASK
from tests.engine.kit import CALL_LIMIT, QUICK, Gateway, Life, World, ms, until

HOUR = timedelta(hours=1)
SLOW = Retry(times=10, first=timedelta(hours=3), longest=timedelta(hours=9))
TOO_LATE_S = 3601.0
PAST = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEYED = InDoubt.same_key(kept_for=timedelta(hours=24))


class TimedBase(DeclarativeBase):
    pass


class Bill(TimedBase):
    __tablename__ = "bills"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")
    due_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    receipt: Mapped[str | None] = mapped_column(default=None)
    mailed: Mapped[str | None] = mapped_column(default=None)
    late_s: Mapped[float | None] = mapped_column(default=None)


@pytest.fixture
def timed(database_url: str) -> Iterator[World]:
    made = World(database_url, TimedBase)
    yield made
    made.close()


def now() -> datetime:
    return datetime.now(UTC)


def bill(world: World, number: int = 1) -> Any:
    return world.get(Bill, number)


def statuses(world: World) -> dict[str, int]:
    with world.session() as session:
        rows = session.execute(select(Bill.status, func.count()).group_by(Bill.status))
        return {row[0]: row[1] for row in rows}


class Charged(Gateway):
    """A gateway whose reaction is too late an hour after it is due; `breaks` makes its expired handler fail."""

    def __init__(self) -> None:
        super().__init__()
        self.breaks = ""
        self.kills: Callable[[int], None] = lambda _record: None  # ends its worker where it is that record's expired handler
        self.expired: list[int] = []

    def answer_late(self, one: Bill, ctx: ReactionContext) -> None:
        self.expired.append(one.id)
        self.kills(one.id)
        if self.breaks == "raises":
            raise ValueError("the printer is on fire")
        if not self.breaks:
            one.status, one.late_s = "expired", ctx.late_by.total_seconds()


def charged(world: World, in_doubt: InDoubt, *, retry: Retry = QUICK, find: bool = False, gave_up: bool = False, **options: Any) -> Charged:
    gateway = Charged()
    world.gateways.append(gateway)
    bank = ExternalService("bank")

    @bank.call(in_doubt=in_doubt, timeout=CALL_LIMIT, retry=retry)
    async def charge(one: Bill, key: IdempotencyKey) -> str:
        return await gateway.act(one.id, key)

    if find or in_doubt.kind == "lookup":

        @charge.lookup
        def _(one: Bill, key: IdempotencyKey) -> str | Absent | Unknown:
            answer: str | Absent | Unknown = gateway.find(one.id, key)
            return answer

    due = after(Bill.due_at, valid_for=HOUR)

    @world.app.on(Bill, Bill.status == "open", due=due, call=charge, name="charged", **options)
    def handler(one: Bill, receipt: str) -> None:
        one.status, one.receipt = "paid", receipt

    handler.expired(gateway.answer_late)
    if gave_up:

        @handler.gave_up
        def _(one: Bill, _failure: Any) -> None:
            one.status = "gave up"

    return gateway


def noted(world: World, retry: Retry = QUICK) -> Charged:
    """The same without a call."""
    gateway = Charged()

    @world.app.on(Bill, Bill.status == "open", due=after(Bill.due_at, valid_for=HOUR), name="noted", retry=retry)
    def handler(one: Bill) -> None:
        if gateway.breaks == "in time":
            raise ValueError("not now")
        one.status = "noted"

    handler.expired(gateway.answer_late)
    return gateway


def settled(world: World, life: Life | None = None) -> Life:
    life = life or world.worker()
    life.quiet()
    return life


# ---- nothing stale is sent -----------------------------------------------------------------------------------------------------------
def test_what_is_too_late_is_answered_by_expired_and_not_called(timed: World, caplog: pytest.LogCaptureFixture) -> None:
    gateway = charged(timed, ASK)
    timed.add(Bill(id=1, due_at=now() - timedelta(days=3)), Bill(id=2, due_at=now()), Bill(id=3, due_at=now() + HOUR))
    with caplog.at_level(logging.INFO, logger="groundstate"):
        life = settled(timed)
    assert [bill(timed, number).status for number in (1, 2, 3)] == ["expired", "paid", "open"]
    assert [record for record, _ in gateway.calls] == [2]
    assert 259_000 < bill(timed).late_s < 260_000
    assert life.worker.counts_of_expired == {"charged": 1}
    assert "charged: 1 expired, the last of them due at" in caplog.text
    assert timed.attempts() == []


@pytest.mark.usefixtures("whole_batches")
def test_a_thousand_that_are_too_late_go_in_batches_and_nothing_of_ours_is_written(timed: World, caplog: pytest.LogCaptureFixture) -> None:
    gateway = charged(timed, ASK)
    timed.add(*[Bill(id=number, due_at=now() - timedelta(days=3)) for number in range(1, 1001)])
    life = timed.worker(start=False)
    before = life.transactions
    with caplog.at_level(logging.INFO, logger="groundstate"):
        life.worker.start()
        life.quiet()
    assert statuses(timed) == {"expired": 1000}
    assert life.worker.counts_of_expired == {"charged": 1000}
    assert gateway.calls == []
    assert timed.attempts() == []
    assert life.transactions - before < 60
    assert 2 <= sum("expired, the last" in record.getMessage() for record in caplog.records) < 30


def test_just_before_the_bound_it_is_called_and_at_the_bound_it_is_not(timed: World) -> None:
    charged(timed, ASK)
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    timed.add(Bill(id=1, due_at=at))
    spec = timed.app.reactions["charged"]
    database = timed.worker(start=False).database
    database.connect()
    for moment, ready, late in ((at + HOUR - ms(1), [1], []), (at + HOUR, [], [1])):
        question = ConditionQuery(spec, database, moment)
        assert question.query_for_expired is not None
        with timed.session() as session:
            for part, expected in ((question, ready), (question.query_for_expired, late)):
                found = session.execute(part.selects.select_cursors_after(None, 9, crowded=False)).all()
                assert [part.cursors.key_in_cursor(tuple(row))[0] for row in found] == expected
        assert spec.due is not None
        assert spec.due.is_expired(at, moment) is bool(late)


def test_a_worker_that_sleeps_wakes_for_what_becomes_too_late(timed: World) -> None:
    gateway = charged(timed, ASK, retry=SLOW)
    gateway.plan(1, "refuse")
    due_at = now()
    timed.add(Bill(id=1, due_at=due_at))
    life = timed.worker()
    until(lambda: timed.states() == ["failed"])
    timed.forward((due_at + HOUR - ms(700) - now()).total_seconds())
    life.sweep()
    life.worker.components.sweeps.next = float("inf")  # no sweep helps
    until(lambda: bill(timed).status == "expired")
    assert gateway.called(1) == 1
    until(lambda: timed.attempts() == [])


# ---- a failed attempt ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("starts_anew", [False, True])
def test_a_failed_attempt_expires_though_its_next_try_is_far_away(timed: World, starts_anew: bool) -> None:
    gateway = charged(timed, ASK, retry=SLOW)
    gateway.plan(1, "refuse")
    timed.add(Bill(id=1, due_at=now()))
    life = settled(timed)
    assert timed.states() == ["failed"]
    if starts_anew:
        life.stop()
    timed.forward(TOO_LATE_S)
    assert settled(timed, None if starts_anew else life).worker.counts_of_expired == {"charged": 1}
    assert bill(timed).status == "expired"
    assert gateway.called(1) == 1
    assert timed.attempts() == []


def test_a_failed_attempt_of_a_reaction_without_a_call_expires_as_well(timed: World) -> None:
    gateway = noted(timed, SLOW)
    gateway.breaks = "in time"
    timed.add(Bill(id=1, due_at=now()))
    life = settled(timed)
    assert timed.states() == ["failed"]
    timed.forward(TOO_LATE_S)
    gateway.breaks = ""
    life.quiet()
    assert (bill(timed).status, timed.attempts()) == ("expired", [])


def test_where_the_last_try_was_used_and_it_is_too_late_expired_answers_and_not_gave_up(timed: World) -> None:
    gateway = charged(
        timed, ASK, retry=Retry(times=None, first=timedelta(hours=3), longest=timedelta(hours=9), give_up_after=HOUR), gave_up=True
    )
    gateway.plan(1, "refuse")
    timed.add(Bill(id=1, due_at=now()))
    settled(timed).stop()
    timed.forward(72 * 3600)
    settled(timed)
    assert (bill(timed).status, timed.attempts()) == ("expired", [])


def test_a_failed_attempt_does_not_expire_beside_a_call_in_the_air_on_its_record(timed: World) -> None:
    gateway = charged(timed, ASK, retry=SLOW)
    gateway.plan(1, "refuse")
    timed.add(Bill(id=1, due_at=now()))
    settled(timed).stop()
    mail = timed.gateway()
    mail.plan(1, "hang")
    post = ExternalService("post")

    @post.call(in_doubt=InDoubt.hold())
    async def send(one: Bill) -> str:
        return await mail.act(one.id)

    @timed.app.on(Bill, Bill.mailed.is_(None), call=send, name="mailed")
    def mailed(one: Bill, receipt: str) -> None:
        one.mailed = receipt

    timed.app.init(accept=["mailed=call"])
    life = timed.worker()
    until(lambda: mail.waiting == 1)
    timed.forward(TOO_LATE_S)
    life.sweep()
    life.sweep()
    assert bill(timed).status == "open"
    mail.gate.set()
    life.quiet()
    assert (bill(timed).status, bill(timed).mailed) == ("expired", "r1")


# ---- one in doubt is settled first -----------------------------------------------------------------------------------------------------
def in_doubt(world: World, gateway: Charged, step: str) -> None:
    """Record 1 is called in time; its doubt is looked at when it is too late."""
    gateway.plan(1, step)
    world.add(Bill(id=1, due_at=now()))
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    life.kill()
    world.forward(TOO_LATE_S)


def test_a_doubt_whose_call_was_done_is_found_and_concluded_though_it_is_too_late(timed: World) -> None:
    gateway = charged(timed, ASK)
    in_doubt(timed, gateway, "done_hang")
    settled(timed)
    assert (bill(timed).status, bill(timed).receipt, gateway.expired) == ("paid", "r1", [])
    assert timed.attempts() == []


def test_a_doubt_whose_call_was_not_done_expires_once_its_find_said_so(timed: World) -> None:
    gateway = charged(timed, ASK)
    in_doubt(timed, gateway, "hang")
    life = timed.worker()
    until(lambda: bill(timed).status == "expired")  # Absent is not believed at once
    life.quiet()
    assert gateway.asked
    assert (bill(timed).status, gateway.called(1), life.worker.counts_of_expired) == ("expired", 1, {"charged": 1})
    assert timed.attempts() == []


@pytest.mark.parametrize(("step", "status"), [("done_hang", "paid"), ("hang", "expired")])
def test_a_doubt_under_a_key_with_a_find_is_asked_about_and_not_called_again(timed: World, step: str, status: str) -> None:
    gateway = charged(timed, InDoubt.same_key(kept_for=timedelta(hours=24), settle_after=ms(100)), find=True)
    in_doubt(timed, gateway, step)
    life = timed.worker()
    until(lambda: bill(timed).status == status)
    life.quiet()
    assert gateway.called(1) == 1
    assert timed.attempts() == []


def test_a_doubt_under_a_key_that_nobody_can_be_asked_about_is_held_and_says_why(timed: World) -> None:
    gateway = charged(timed, KEYED)
    in_doubt(timed, gateway, "hang")
    settled(timed)
    one = timed.attempt()
    assert (one.state, one.unsure, one.why) == ("held", True, "in doubt, and it is too late to call again")
    assert (bill(timed).status, gateway.called(1), gateway.expired) == ("open", 1, [])


def test_a_doubt_under_again_expires(timed: World) -> None:
    gateway = charged(timed, InDoubt.repeat())
    in_doubt(timed, gateway, "hang")
    settled(timed)
    assert (bill(timed).status, gateway.called(1), timed.attempts()) == ("expired", 1, [])


def test_a_call_that_was_begun_in_time_is_concluded_however_late_it_answers(timed: World) -> None:
    gateway = charged(timed, ASK)
    gateway.plan(1, "hang")
    timed.add(Bill(id=1, due_at=now()))
    life = timed.worker()
    until(lambda: gateway.waiting == 1)
    timed.forward(TOO_LATE_S)
    life.sweep()
    gateway.gate.set()
    life.quiet()
    assert (bill(timed).status, gateway.expired, timed.attempts()) == ("paid", [], [])


# ---- an expired handler that fails -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("with_call", [False, True])
@pytest.mark.parametrize("how", ["raises", "does nothing"])
def test_an_expired_handler_that_fails_is_tried_again_and_held_after_the_last_try(
    timed: World, how: str, with_call: bool, caplog: pytest.LogCaptureFixture
) -> None:
    retry = Retry(times=3, first=ms(5), longest=ms(20))
    gateway = charged(timed, ASK, retry=retry) if with_call else noted(timed, retry)
    gateway.breaks = how
    timed.add(Bill(id=1, due_at=now() - timedelta(days=3)), Bill(id=2, due_at=now()))
    life = settled(timed)
    until(lambda: timed.states() == ["held"])
    one = timed.attempt()
    assert one.why is not None
    assert one.why.startswith(EXPIRED_HANDLER_FAILED)
    assert ("on fire" if how == "raises" else "made no progress") in one.why
    assert (one.unsure, one.failures) == (False, 3)
    assert bill(timed, 2).status in ("paid", "noted")
    assert life.worker.counts_of_expired == {}
    assert [one.levelname for one in caplog.records if "is held now, and waits for a person" in one.getMessage()] == ["ERROR"]


@contextmanager
def acting(world: World) -> Iterator[Person]:
    database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
    world.clock_of(database)
    try:
        yield actions.build_person(world.app.name, list(world.app.reactions.values()), database, make_lives(), by="ada")
    finally:
        database.close()


def test_what_is_held_since_its_expired_handler_failed_a_person_gives_back_and_it_expires(timed: World) -> None:
    gateway = charged(timed, ASK, retry=Retry(times=1))
    gateway.breaks = "raises"
    timed.add(Bill(id=1, due_at=now() - timedelta(days=3)))
    life = settled(timed)
    assert timed.states() == ["held"]
    gateway.breaks = ""
    with acting(timed) as person:
        actions.retry(person, "charged", "1")
    life.quiet()
    assert (bill(timed).status, timed.attempts(), gateway.calls) == ("expired", [], [])


def test_an_expired_handler_that_failed_under_again_leaves_the_doubt_in_doubt(timed: World) -> None:
    gateway = charged(timed, InDoubt.repeat(), retry=SLOW)
    gateway.breaks = "raises"
    in_doubt(timed, gateway, "hang")
    life = settled(timed)
    one = timed.attempt()
    assert (one.state, one.unsure, one.why) == ("doubt", True, EXPIRED_HANDLER_FAILED)
    gateway.breaks = ""
    timed.forward(10 * 3600)
    life.quiet()
    assert (bill(timed).status, timed.attempts()) == ("expired", [])


def test_a_failed_expired_handler_waits_for_its_next_try_and_not_for_the_next_sweep(timed: World) -> None:
    gateway = charged(timed, ASK, retry=SLOW)
    gateway.breaks = "raises"
    timed.add(Bill(id=1, due_at=now() - timedelta(days=3)))
    life = settled(timed)
    for _ in range(3):
        life.sweep()
    life.quiet()
    assert (timed.attempt().state, timed.attempt().failures) == ("failed", 1)
    gateway.breaks = ""
    timed.forward(4 * 3600)
    life.quiet()
    assert (bill(timed).status, timed.attempts()) == ("expired", [])


def test_the_expired_handler_of_a_fact_writes_that_column_alone(timed: World) -> None:
    gateway = charged(timed, ASK)
    gateway.plan(1, "hang")
    writes = "status"

    @timed.app.on(
        Bill, Bill.mailed.is_(None), due=after(Bill.due_at, valid_for=HOUR), done_column=Bill.mailed, name="mailed", retry=Retry(times=1)
    )
    def mailed(one: Bill) -> None:
        one.mailed = "in time"

    @mailed.expired
    def _(one: Bill) -> None:
        one.mailed = "not mailed"
        if writes:
            one.status = "mailed"

    timed.add(Bill(id=1, due_at=now() - timedelta(days=3)))
    life = settled(timed)
    one = timed.attempt()
    assert (one.reaction, one.state) == ("mailed", "held")
    assert "that column only" in (one.why or "")
    writes = ""
    with acting(timed) as person:
        actions.retry(person, "mailed", "1")
    life.quiet()
    assert (bill(timed).mailed, bill(timed).status) == ("not mailed", "expired")


# ---- careful mode --------------------------------------------------------------------------------------------------------------------
def test_a_record_whose_expired_handler_kills_is_found_and_held_and_the_others_expire(timed: World) -> None:
    gateway = charged(timed, InDoubt.hold())
    gateway.kills = lambda record: timed.die() if record == 4 else None
    timed.add(*[Bill(id=number, due_at=PAST) for number in range(1, 7)])

    def lives() -> bool:
        """Whether one more life found the record that kills, and did not die of it."""
        life = timed.worker()
        until(lambda: life.ended or timed.states() == ["held"])
        return not life.ended

    assert any(lives() for _ in range(5))
    settled(timed, timed.lives[-1])
    one = timed.attempt()
    assert (one.record, one.state, one.unsure, len(worker_ends_in_why(one.why))) == ("4", "held", False, 2)
    assert statuses(timed) == {"expired": 5, "open": 1}
    assert gateway.calls == []


# ---- a database that went back in time -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("step", "status"), [("done", "paid"), ("not done", "expired")])
def test_hazard_46_what_is_too_late_while_suspect_is_a_doubt_first(timed: World, step: str, status: str) -> None:
    gateway = charged(timed, ASK)
    timed.there()
    life = timed.worker(after_restore=True)
    spec = timed.app.reactions["charged"]
    if step == "done":  # in the lost time, under the key of then
        text = ConditionQuery(spec, life.database).occurrences.occurrence_text(Bill(id=1, due_at=PAST))
        gateway.ledger.append((1, keys.call_key("shop", "charged", "1", text)))
    timed.add(Bill(id=1, due_at=PAST))
    if step == "not done":  # else it is found at once
        until(lambda: timed.states() == ["doubt"])
        assert timed.attempt().unsure
        assert timed.attempt().deadline > timed.attempt().since
        assert (bill(timed).status, gateway.expired) == ("open", [])
        timed.forward(60)
    until(lambda: bill(timed).status == status)
    life.quiet()
    assert (gateway.calls, timed.attempts()) == ([], [])


def test_hazard_46_while_suspect_a_failed_attempt_expires_though_its_next_try_is_far_away(timed: World) -> None:
    gateway = charged(timed, ASK, retry=SLOW)
    gateway.plan(1, "refuse")
    timed.there()
    life = timed.worker(after_restore=True)
    timed.add(Bill(id=1, due_at=now()))
    until(lambda: timed.states() == ["doubt"])
    timed.forward(60)
    until(lambda: gateway.called(1) == 1 and timed.states() == ["failed"])
    timed.forward(TOO_LATE_S)
    until(lambda: bill(timed).status == "expired")
    life.quiet()
    assert (gateway.called(1), timed.attempts()) == (1, [])


def test_what_is_accepted_as_a_doubt_is_one_first_where_it_is_too_late_as_well(timed: World) -> None:
    gateway = charged(timed, ASK)
    reaction = timed.app.reactions.pop("charged")
    timed.add(Bill(id=1, due_at=PAST))
    timed.app.reactions["charged"] = reaction
    gateway.ledger.append((1, "as another system called it"))
    timed.app.init(accept=["charged=doubt"])
    assert timed.attempt().unsure
    life = timed.worker()
    assert (bill(timed).status, gateway.expired) == ("open", [])
    timed.forward(60)
    until(lambda: bill(timed).status == "expired")
    life.quiet()
    assert gateway.calls == []


def test_hazard_46_what_was_too_late_already_is_a_doubt_first(timed: World) -> None:
    gateway = charged(timed, InDoubt.hold())
    timed.add(Bill(id=1, due_at=PAST))
    life = timed.worker(after_restore=True)
    life.quiet()
    assert (timed.states(), bill(timed).status, gateway.expired) == (["held"], "open", [])


def test_hazard_46_a_reaction_without_a_call_expires_as_ever(timed: World) -> None:
    noted(timed)
    timed.add(Bill(id=1, due_at=PAST))
    timed.worker(after_restore=True).quiet()
    assert (bill(timed).status, timed.attempts()) == ("expired", [])
