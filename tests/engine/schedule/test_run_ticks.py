"""Schedules: each tick once, whatever dies; what was missed by policy; and what keeps a schedule from going on keeps nothing else."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from groundstate import DeclarationError, ReactionContext, Retry, StoppedError, StoreRefusedError
from groundstate.engine.operate import actions, renaming
from groundstate.engine.schedule import report
from groundstate.engine.schedule.report import ScheduleReport
from groundstate.store import connect
from tests.engine.kit import HANG_S, QUICK, Killed, Life, Order, World, ms, until
from tests.engine.sql.test_transaction_kept_open import ways

HOUR = timedelta(hours=1)
HOUR_S = 3600


class Clock:
    """The schedule `hourly` of a world, whose handler writes an order for each tick. acts: called before it, with the tick."""

    def __init__(self, world: World, cron: Any = HOUR, **options: Any) -> None:
        self.world = world
        self.moments: list[ReactionContext] = []
        self.acts: Any = lambda _at: None

        @world.app.every(cron, **{"name": "hourly", **options})
        def hourly(session: Session, ctx: ReactionContext) -> None:
            self.moments.append(ctx)
            self.acts(ctx)
            session.add(Order(status="ticked", note=ctx.due.astimezone(UTC).isoformat()))

    @property
    def done(self) -> list[datetime]:
        """The ticks of which the database has an order, as they were carried out."""
        with self.world.session() as session:
            rows = session.query(Order).filter(Order.status == "ticked").order_by(Order.id)
            return [datetime.fromisoformat(row.note or "") for row in rows]

    def gone(self, hours: float) -> None:
        """So much later a worker runs until all is quiet."""
        self.world.forward(hours * HOUR_S)
        self.world.settled()


def mark_of(world: World, name: str = "hourly") -> str | None:
    with world.engine.connect() as connection:
        found: str | None = connection.exec_driver_sql(f"select mark from groundstate_reaction where name = '{name}'").scalar_one()
        return found


def set_mark(world: World, mark: Any, name: str = "hourly") -> None:
    world.run("update groundstate_reaction set mark = :mark where name = :name", mark=mark, name=name)


def said_of(world: World, at: datetime | None = None) -> ScheduleReport:
    database = connect.open_store(world.app.stores[0].settings())[0]
    database.connect()
    world.clock_of(database)
    try:
        with database.reading() as connection:
            return report.report_schedules(world.app.name, database, connection, list(world.app.schedules.values()), at)[0]
    finally:
        database.close()


def died(life: Life) -> bool:
    """Starts it, and waits until it died, or all is quiet."""
    try:
        life.worker.start()
        life.quiet()
    except (Killed, StoppedError):
        until(lambda: life.ended)
        return True
    return False


def person_of(world: World) -> actions.Person:
    database, lives, _ = connect.open_store(world.app.stores[0].settings())
    specs: list[Any] = [*world.app.reactions.values(), *world.app.schedules.values()]
    return actions.build_person(world.app.name, specs, database, lives(), by="ann")


# ---- ticks -------------------------------------------------------------------------------------------------------------------------
def test_what_lies_before_the_first_start_is_not_carried_out_and_each_tick_after_it_is_once(world: World) -> None:
    clock = Clock(world)
    world.there()
    world.settled()
    assert clock.done == []
    started = datetime.fromisoformat(mark_of(world) or "")
    clock.gone(1.01)
    clock.gone(0.5)
    clock.gone(0.5)
    assert clock.done == [started + HOUR, started + 2 * HOUR], "ticks lie on the first start and so many hours after it"
    assert world.attempts() == []


def test_at_due_is_the_tick_in_the_schedules_zone_and_late_by_says_how_late_it_is(world: World) -> None:
    clock = Clock(world, "30 6 * * *", zone="Asia/Kathmandu")
    world.there()
    world.settled()
    clock.gone(24)
    at = clock.moments[0]
    assert (at.due.hour, at.due.minute, at.due.second, str(at.due.tzinfo)) == (6, 30, 0, "Asia/Kathmandu")
    assert at.due + at.late_by == at.now
    assert at.due.astimezone(UTC).hour == 0
    assert (at.call_no, at.restarted) == (0, False)


def test_rows_of_a_tick_are_carried_out_by_reactions_at_once(world: World) -> None:
    clock = Clock(world)

    @world.app.on(Order, Order.status == "ticked", Order.receipt.is_(None))
    def sent(order: Order) -> None:
        order.receipt = "sent"

    world.there()
    world.settled()
    clock.gone(1.5)
    assert world.count(Order.receipt == "sent") == 1


TWICE = ("UNIQUE constraint failed", "duplicate key value")


def taken_key(session: Session) -> None:
    session.add(Order(id=1))


def flushed(session: Session) -> None:
    taken_key(session)
    session.flush()


def asked(session: Session) -> None:
    taken_key(session)
    session.query(Order).count()


def caught(session: Session) -> None:
    session.add(Order(id=500, status="beside"))
    session.flush()
    with suppress(IntegrityError):
        flushed(session)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (taken_key, "its flush was refused: ("),
        (flushed, "the handler raised IntegrityError: ("),
        (asked, "the handler raised IntegrityError: ("),
        (caught, "its flush was refused, and it went on ("),
    ],
    ids=["at_the_end", "in_the_handler", "by_a_question", "and_was_caught"],
)
def test_a_tick_whose_flush_is_refused_says_what_the_database_said(
    world: World, caplog: pytest.LogCaptureFixture, act: Callable[[Session], None], said: str
) -> None:
    @world.app.every(HOUR, name="hourly", retry=Retry(times=2, first=ms(5)))
    def hourly(session: Session) -> None:
        act(session)

    world.orders(1)
    world.settled()
    world.forward(1.5 * HOUR_S)
    life = world.worker()
    until(lambda: world.states() == ["held"], world.attempts)
    life.stop()
    error = world.attempt().error or ""
    assert error.startswith(said), error
    assert any(words in error for words in TWICE), error
    assert "StateRefusedError" not in error
    lines = [line.getMessage() for line in caplog.records if getattr(line, "event", None) == "tick_failed"]
    assert len(lines) == 2
    assert all(error in line for line in lines)
    assert world.count(Order.status == "beside") == 0


def test_a_tick_whose_handler_ends_our_transaction_is_refused_in_each_way(world: World) -> None:
    some = list(ways(world))

    @world.app.every(HOUR, missed="all", name="hourly", retry=Retry(times=1))
    def hourly(session: Session) -> None:
        session.add(Order(status="beside"))
        session.flush()
        some.pop()(session)

    world.there()
    world.settled()
    world.forward((len(some) + 0.5) * HOUR_S)
    number = len(some)
    world.settled()
    errors = [one.error or "" for one in world.attempts()]
    assert len(errors) == number
    assert [error for error in errors if "StateRefusedError" not in error] == []
    assert world.count(Order.status == "beside") == 0


def test_a_living_worker_sleeps_until_the_next_tick(world: World) -> None:
    Clock(world)
    world.there()
    life = world.worker()
    life.quiet()
    wakes = life.worker.components.ticks.time_of_next_work()
    tick = datetime.fromisoformat(mark_of(world) or "") + HOUR
    wanted = time.monotonic() + (tick - datetime.now(UTC)).total_seconds()
    assert wanted - 1 < wakes < wanted + HANG_S  # the second, for clocks of which one is read after the other


def test_ticks_are_carried_out_one_after_another_though_nothing_is_swept(world: World) -> None:
    clock = Clock(world, timedelta(seconds=1))
    world.there()
    life = world.worker()
    life.quiet()
    life.hints_alone()
    before = len(clock.done)
    until(lambda: len(clock.done) >= before + 2)
    life.stop()
    assert sorted(set(clock.done)) == clock.done
    assert all(at.late_by >= ms(0) for at in clock.moments)


@pytest.mark.parametrize(("missed", "hours"), [("none", 400.0001), ("none", 400.5), ("latest", 400.5), ("all", 400.5)])
def test_an_outage_of_400_ticks_does_what_the_policy_says(
    world: World, missed: Any, hours: float, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(world, missed=missed, max_missed=50)
    world.there()
    world.settled()
    start = datetime.fromisoformat(mark_of(world) or "")
    world.forward(hours * HOUR_S)
    said = said_of(world)
    assert said.missed == 400
    clock.gone(0)
    on_time = missed != "none" or hours < 400.1
    wanted = {"none": [400] if on_time else [], "latest": [400], "all": list(range(351, 401))}[missed]
    assert clock.done == [start + number * HOUR for number in wanted]
    assert datetime.fromisoformat(mark_of(world) or "") == start + 400 * HOUR
    assert f"{400 - len(wanted)} ticks are left out" in caplog.text
    assert {
        ("none", True): "the latest is carried out, if that is within 60 s of its time, 399 are left out",
        ("none", False): "400 are left out: the latest is too late, and missed='none'",
        ("latest", True): "the latest is carried out, 399 are left out",
        ("all", True): "50 are carried out, oldest first, 350 are left out",
    }[(missed, on_time)] == said.fate
    clock.gone(1)
    assert len(clock.done) == len(wanted) + (missed != "none" or on_time), "the next one is carried out as always"


def test_more_missed_ticks_than_are_counted_are_told_as_at_least_so_many(world: World) -> None:
    Clock(world, timedelta(seconds=1))
    world.there()
    world.settled()
    world.forward(40 * HOUR_S)
    said = said_of(world)
    assert (said.missed, said.at_least) == (10_001, True)
    assert said.fate == "the latest is carried out, at least 10,000 are left out"


# ---- deaths ------------------------------------------------------------------------------------------------------------------------
def test_hazard_43_a_tick_is_carried_out_once_wherever_its_worker_dies(world: World) -> None:
    clock = Clock(world, missed="all")
    world.there()
    world.settled()
    start = datetime.fromisoformat(mark_of(world) or "")
    for dies_at in range(1, 8):
        world.forward(2 * HOUR_S)
        life = world.worker(start=False)
        life.dies_at = dies_at + 1  # in the first one it begins its life
        died(life)
        life.kill()
    world.run("delete from groundstate_worker")  # or it would be careful
    clock.gone(0)
    assert clock.done == [start + number * HOUR for number in range(1, 15)]
    assert world.attempts() == []


def test_a_commit_whose_word_was_lost_is_no_reason_to_do_it_twice(world: World) -> None:
    clock = Clock(world)
    world.there()
    life = world.worker()
    life.quiet()
    life.lose_word_of = "insert into orders"
    world.forward(1.2 * HOUR_S)
    life.sweep()
    until(lambda: life.lost == 1)
    life.quiet()
    assert len(clock.done) == 1


def test_one_worker_of_two_carries_out_a_tick_and_the_other_one_waits_for_nothing(world: World) -> None:
    clock = Clock(world)
    gate, entered = threading.Event(), threading.Event()

    @world.app.on(Order, Order.status == "placed")
    def paid(order: Order) -> None:
        order.status = "paid"

    world.there()
    first, second = world.worker(), world.worker()
    first.quiet()
    second.quiet()

    def wait(_at: ReactionContext) -> None:
        entered.set()
        assert gate.wait(HANG_S)

    clock.acts = wait
    world.forward(1.2 * HOUR_S)
    for life in (first, second):
        life.worker.components.sweeps.next = 0.0
        life.worker.components.signals.wake.set()
    assert entered.wait(HANG_S)
    if world.postgres:  # on SQLite the handler has the only write lock
        world.add(Order(id=999))
        until(lambda: world.order(999).status == "paid")
    gate.set()
    first.quiet()
    second.quiet()
    assert len(clock.done) == len(clock.moments) == 1
    clock.acts = lambda _at: None
    for _ in range(5):
        world.forward(HOUR_S)
        first.sweep()
        second.sweep()
        first.quiet()
        second.quiet()
    assert len(clock.done) == 6


def test_hazard_25_a_tick_that_kills_its_worker_is_found_and_held_and_the_others_go_on(world: World) -> None:
    clock = Clock(world)
    healthy: list[datetime] = []

    @world.app.every(HOUR)
    def beside(ctx: ReactionContext) -> None:
        healthy.append(ctx.due)

    world.there()
    world.settled()
    clock.acts = lambda _at: world.die()
    world.forward(1.2 * HOUR_S)
    for _ in range(8):
        life = world.worker(start=False)
        if not died(life):
            break
        life.kill()
    else:
        raise AssertionError("no worker lives with this tick")
    attempt = world.attempt()
    assert (attempt.state, attempt.record, attempt.reaction) == ("held", "", "hourly")
    assert "its worker ended" in (attempt.error or "")
    assert len(healthy) == 1
    clock.acts = lambda _at: None
    world.forward(HOUR_S)
    life.sweep()
    life.quiet()
    assert len(clock.done) == 1, "the tick after it"
    assert len(healthy) == 2
    assert actions.retry(person_of(world), "hourly", attempt.occurrence).became == "failed"
    life.sweep()
    until(lambda: len(clock.done) == 2)
    life.quiet()
    assert world.attempts() == []


# ---- failures ----------------------------------------------------------------------------------------------------------------------
def failing(_at: ReactionContext) -> None:
    raise ValueError("not today")


def test_a_tick_whose_handler_raises_is_tried_again_beside_those_that_follow(world: World) -> None:
    clock = Clock(world, retry=Retry(times=5, first=timedelta(minutes=10), longest=timedelta(minutes=10)))
    world.there()
    world.settled()
    clock.acts = failing
    clock.gone(1.001)
    attempt = world.attempt()
    assert (attempt.state, attempt.record, attempt.failures, attempt.blocks, attempt.unsure) == ("failed", "", 1, None, False)
    assert "ValueError: not today" in (attempt.error or "")
    assert mark_of(world) == attempt.occurrence, "the mark moved on over it"
    assert clock.done == []
    clock.gone(0.05)
    assert len(clock.moments) == 1, "it was tried before its time"
    clock.gone(0.15)
    assert world.attempt().failures == 2
    clock.acts = lambda _at: None
    clock.gone(1)
    assert world.attempts() == []
    assert len(clock.done) == 2
    assert min(clock.done) == datetime.fromisoformat(attempt.occurrence)
    assert clock.moments[-1].late_by > ms(0)


def test_after_the_last_try_a_tick_is_held_and_a_person_retries_or_forgets_it(world: World) -> None:
    clock = Clock(world, retry=Retry(times=1))
    world.there()
    world.settled()
    clock.acts = failing
    clock.gone(1.1)
    clock.gone(1)
    first, second = world.attempts()
    assert [first.state, second.state] == ["held", "held"]
    clock.acts = lambda _at: None
    person = person_of(world)
    with pytest.raises(Exception, match="say which, with --occurrence"):
        actions.retry(person, "hourly", "")
    shown = datetime.fromisoformat(first.occurrence).astimezone(ZoneInfo("Europe/Berlin")).isoformat()
    assert actions.retry(person, "hourly", shown).became == "failed"
    assert actions.forget(person, "hourly", second.occurrence).became == "deleted"
    world.settled()
    assert clock.done == [datetime.fromisoformat(first.occurrence)]
    assert world.attempts() == []


def test_a_schedule_that_is_gone_from_the_code_is_refused_while_ticks_of_it_are_open_and_rename_carries_them(world: World) -> None:
    clock = Clock(world, retry=Retry(times=1))
    world.there()
    world.settled()
    clock.acts = failing
    clock.gone(1.1)
    mark = mark_of(world)
    spec = world.app.schedules.pop("hourly")
    with pytest.raises(StoreRefusedError, match="hourly"):
        world.worker()
    renaming.rename(person_of(world), "hourly", "each_hour")
    world.app.schedules["each_hour"] = spec
    spec.__dict__["name"] = "each_hour"
    assert mark_of(world, "each_hour") == mark
    clock.acts = lambda _at: None
    clock.gone(1)
    assert len(clock.done) == 1
    assert [one.reaction for one in world.attempts()] == ["each_hour"]


def test_a_reaction_that_became_a_schedule_of_its_name_leaves_no_attempt_behind(world: World) -> None:
    @world.app.on(Order, Order.status == "placed", name="hourly", retry=Retry(times=1))
    def paid(order: Order) -> None:
        raise ValueError("never")

    world.orders(1)
    world.settled()
    world.app.reactions.clear()
    Clock(world)
    with pytest.raises(StoreRefusedError, match="hourly"):
        world.worker()


# ---- changes, edits, clocks --------------------------------------------------------------------------------------------------------
def test_a_changed_schedule_does_not_replay_the_past(world: World, caplog: pytest.LogCaptureFixture) -> None:
    Clock(world, "0 * * * *", missed="all")
    world.there()
    world.settled()
    clock = None
    for cron, zone in [("30 * * * *", "UTC"), ("30 * * * *", "Asia/Tokyo"), (HOUR, "UTC"), (2 * HOUR, "UTC"), ("0 */2 * * *", "UTC")]:
        world.app.schedules.clear()
        clock = Clock(world, cron, zone=zone, missed="all")
        caplog.clear()
        world.forward(50 * HOUR_S)
        assert "starts anew" in said_of(world).fate
        world.settled()
        assert clock.moments == []
        assert "starts anew with now" in caplog.text
    assert clock is not None
    clock.gone(4.1)
    assert len(clock.moments) in {2, 3}


def test_other_policies_are_no_other_schedule(world: World) -> None:
    Clock(world, "0 * * * *", zone="Europe/Berlin")
    world.there()
    world.settled()
    world.app.schedules.clear()
    clock = Clock(world, "0 * * * *", zone="Europe/Berlin", missed="all", gap="skip", fold="both")
    clock.gone(3)
    assert len(clock.done) == 3


def test_a_worker_with_older_code_leaves_a_schedule_to_those_with_newer_code(world: World, caplog: pytest.LogCaptureFixture) -> None:
    older = Clock(world)
    world.there()
    old = world.worker()
    old.quiet()
    world.app.schedules.clear()
    newer = Clock(world, 2 * HOUR)
    new = world.worker()
    new.quiet()
    world.forward(2.2 * HOUR_S)
    old.sweep()
    new.sweep()
    old.quiet()
    new.quiet()
    assert (len(older.moments), len(newer.moments)) == (0, 1)
    assert "carried out by workers with other code" in caplog.text


NONSENSE = ["tomorrow", "", "99999-01-01", "9999-12-31T23:59:59Z", "\x1b[2J", None]
NO_TEXT = [b"\xff", b"\xff\x00", 12.5]  # SQLite keeps what it is given


def test_a_mark_that_somebody_edited_to_nonsense_is_said_with_the_cure_and_the_others_go_on(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(world)
    others: list[datetime] = []

    @world.app.every(HOUR)
    def beside(ctx: ReactionContext) -> None:
        others.append(ctx.due)

    world.there()
    world.settled()
    life = world.worker()
    for number, nonsense in enumerate(NONSENSE if world.postgres else NONSENSE + NO_TEXT, start=1):
        caplog.clear()
        set_mark(world, nonsense)
        world.forward(HOUR_S)
        life.sweep()
        life.quiet()
        assert (clock.done, len(others)) == ([], number)
        assert "groundstate init --baseline hourly" in caplog.text
        assert "groundstate init --baseline hourly" in said_of(world).fate
    life.stop()
    set_mark(world, "tomorrow" if world.postgres else b"\xff")
    world.app.init(baseline=["hourly"])
    clock.gone(1)
    assert len(clock.done) == 1


def test_hazard_42_a_clock_that_goes_back_fires_nothing_twice_and_a_mark_ahead_of_it_is_said_with_the_cure(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(world)
    world.there()
    world.settled()
    clock.gone(24.2)  # the clock was a day ahead
    assert len(clock.done) == 1
    clock.gone(-22)
    assert len(clock.done) == 1
    assert "is ahead of the database's clock" in caplog.text
    assert "its mark lies in the future" in said_of(world).fate
    assert "groundstate init --baseline hourly" in said_of(world).fate
    with pytest.raises(DeclarationError, match="no schedule of that name"):
        world.app.init(baseline=["daily"])
    life = world.worker()
    world.run("delete from groundstate_reaction where name = 'hourly'")  # as if it were new
    life.sweep()
    life.quiet()
    world.forward(1.2 * HOUR_S)
    life.sweep()
    life.quiet()
    assert len(clock.done) == 2


def test_hazard_46_after_a_restore_the_ticks_since_then_were_missed(world: World) -> None:
    clock = Clock(world, missed="all")
    world.there()
    world.settled()
    clock.gone(2.1)
    kept, mark = clock.done, mark_of(world) or ""
    clock.gone(3)
    assert len(clock.done) == 5
    set_mark(world, mark)
    world.run("delete from orders where note > :last", last=kept[-1].isoformat())
    assert clock.done == kept
    world.worker(after_restore=True).quiet()
    assert len(clock.done) == len(set(clock.done)) == 5


def test_a_failed_tick_that_is_due_again_after_a_restore_is_carried_out_once(world: World) -> None:
    clock = Clock(world, retry=QUICK)
    world.there()
    world.settled()
    before = mark_of(world) or ""
    clock.acts = failing
    world.forward(1.2 * HOUR_S)
    life = world.worker()
    until(lambda: world.states() == ["failed"])
    life.stop()
    clock.acts = lambda _at: None
    set_mark(world, before)
    world.settled()
    assert len(clock.done) == 1
    assert world.attempts() == []


def test_a_tick_whose_time_somebody_edited_is_tried_and_then_held_and_the_next_ones_are_carried_out(world: World) -> None:
    clock = Clock(world, retry=Retry(times=2, first=ms(1)))
    world.there()
    world.settled()
    clock.acts = failing
    clock.gone(1.1)
    clock.acts = lambda _at: None
    world.force("update groundstate_attempt set occurrence = 'tomorrow', state = 'failed', failures = 0")
    clock.gone(1)
    clock.gone(1)
    assert world.attempt().state == "held"
    assert len(clock.done) == 2


def test_pending_says_what_would_be_missed_at_a_moment(world: World) -> None:
    Clock(world, "0 7 * * MON", zone="Europe/Berlin", missed="all")
    world.there()
    assert said_of(world).fate == "it is new here, and starts when a worker does"
    set_words = "insert into groundstate_reaction (app, name, key_name, condition, suspect, seen_at, mark)"
    world.run(
        f"{set_words} values ('shop', 'hourly', 'hourly', 'every 0 7 * * MON in Europe/Berlin', :no, '2026-11-02 06:00:00.000000', :mark)",
        no=False,
        mark="2026-11-02T06:00:00.000000Z",
    )
    said = said_of(world, datetime(2026, 11, 24, tzinfo=UTC))
    assert (said.missed, said.fate) == (3, "3 are carried out, oldest first")
    assert said.words == "every 0 7 * * MON in Europe/Berlin"
    assert (str(said.last), str(said.next)) == ("2026-11-02 07:00:00+01:00", "2026-11-30 07:00:00+01:00")


@pytest.mark.parametrize("trouble", ["full", "locked"])
def test_a_disk_that_is_full_for_a_schedule_alone_is_trouble_of_the_store_and_a_lock_is_none(world: World, trouble: str) -> None:
    clock = Clock(world)
    bad = [True]
    met: list[int] = []
    full = (psycopg.errors.DiskFull if world.postgres else sqlite3.OperationalError)("No space left: database or disk is full")
    locked = psycopg.errors.LockNotAvailable("lock timeout") if world.postgres else sqlite3.OperationalError("database is locked")

    def act(_ctx: ReactionContext) -> None:
        if bad[0]:
            met.append(1)
            raise OperationalError("INSERT", None, full if trouble == "full" else locked)

    clock.acts = act
    life = world.there().worker()
    life.quiet()
    world.forward(HOUR_S + 1)
    until(lambda: len(met) > 1)
    if trouble == "full":
        until(lambda: life.worker.worker_health().trouble is not None)
        assert "schedule hourly" in str(life.worker.worker_health().trouble)
        assert "free some space" in str(life.worker.worker_health().trouble)
    else:
        life.turn()
        assert life.worker.worker_health().trouble is None
    bad[0] = False
    until(lambda: len(clock.done) == 1)
    until(lambda: life.worker.worker_health().trouble is None)
