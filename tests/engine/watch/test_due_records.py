"""Due times: a column and the database's clock, and nothing else. What is carried out when, and what becomes of what is late.

How late a timer rings is measured by `benchmarks/punctual.py`. Here it is seen that one rings by itself, for which time, and not too early.
"""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import DateTime, Integer, TypeDecorator, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import (
    Absent,
    DeclarationError,
    ExternalService,
    IdempotencyKey,
    InDoubt,
    ReactionContext,
    Retry,
    Unknown,
    UtcDateTime,
    after,
)
from groundstate.engine.sql.record_selects import RecordSelects
from groundstate.engine.watch import due_timers
from groundstate.rules.median_cost import UsualDuration
from tests.engine.kit import HANG_S, QUICK, UNKNOWN, Gateway, World, ms, until

DAY = timedelta(days=1)
TIMEOUT = timedelta(minutes=10)  # of a call that waits for the test: longer than that may be held up


class TimedBase(DeclarativeBase):
    pass


class Bill(TimedBase):
    __tablename__ = "bills"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")
    due_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    naive_at: Mapped[datetime | None] = mapped_column(DateTime, default=None)
    round: Mapped[int] = mapped_column(default=1)
    charged: Mapped[int] = mapped_column(default=0)
    note: Mapped[str | None] = mapped_column(default=None)
    late_s: Mapped[float | None] = mapped_column(default=None)


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def timed(database_url: str) -> Any:
    made = World(database_url, TimedBase)
    yield made
    made.close()


def bill(world: World, number: int = 1) -> Any:
    return world.get(Bill, number)


def noted(world: World, **options: Any) -> None:
    @world.app.on(Bill, Bill.status == "open", due=options.pop("due", Bill.due_at), name="noted", **options)
    def handler(one: Bill, ctx: ReactionContext) -> None:
        one.status, one.late_s = "noted", ctx.late_by.total_seconds()
        one.note = ctx.due.isoformat()


def test_a_record_is_carried_out_when_its_time_has_come_and_not_before(timed: World) -> None:
    noted(timed)
    timed.add(Bill(id=1, due_at=now() + timedelta(hours=1)), Bill(id=2, due_at=now() - DAY), Bill(id=3, due_at=None))
    life = timed.worker()
    life.quiet()
    assert [bill(timed, n).status for n in (1, 2, 3)] == ["open", "noted", "open"]
    assert 86_000 < bill(timed, 2).late_s < 87_000
    assert life.worker.count_remaining().timers == 1
    timed.forward(3601)
    life.quiet()
    assert bill(timed).status == "noted"
    assert timed.attempts() == []


def test_a_worker_sleeps_until_the_next_is_due(timed: World) -> None:
    noted(timed)
    first = now() + timedelta(hours=1)
    timed.add(Bill(id=1, due_at=first), Bill(id=2, due_at=first + ms(60_000)))
    life = timed.worker()
    life.quiet()
    wanted = time.monotonic() + (first - now()).total_seconds()

    def sleeps() -> bool:
        rings = life.worker.components.timers.next_wake_time()  # soon, where it is about to ask the database once more
        return rings is not None and wanted - 1 < rings < wanted + HANG_S  # the second: one clock is read after the other

    until(sleeps)


def test_what_becomes_due_is_carried_out_though_nothing_is_swept(timed: World) -> None:
    noted(timed)
    timed.add(Bill(id=1, due_at=now() + ms(600)))
    life = timed.worker()
    life.quiet()
    life.hints_alone()
    until(lambda: bill(timed).status == "noted")
    assert bill(timed).late_s >= 0


def test_the_oldest_is_carried_out_first(timed: World) -> None:
    seen: list[int] = []

    @timed.app.on(Bill, Bill.status == "open", due=Bill.due_at)
    def handler(one: Bill) -> None:
        seen.append(one.id)
        one.status = "noted"

    timed.add(*[Bill(id=number, due_at=now() - number * DAY) for number in range(1, 8)])
    timed.settled()
    assert seen == [7, 6, 5, 4, 3, 2, 1]


def test_a_row_written_by_others_and_one_that_was_moved_are_found_by_the_sweep(timed: World) -> None:
    noted(timed)
    timed.add(Bill(id=1, due_at=now() + DAY))
    life = timed.worker()
    life.quiet()
    timed.run("UPDATE bills SET due_at = :at WHERE id = 1", at=written(timed, now() + ms(700)))
    timed.run("INSERT INTO bills (id, status, due_at, round, charged) VALUES (2, 'open', :at, 1, 0)", at=written(timed, now() + ms(700)))
    life.sweep()
    life.hints_alone()  # from here on it sleeps until then
    until(lambda: [bill(timed, n).status for n in (1, 2)] == ["noted", "noted"])
    assert all(bill(timed, n).late_s >= 0 for n in (1, 2))


def test_what_a_session_of_this_process_writes_is_asked_for_at_once(timed: World) -> None:
    noted(timed)
    timed.there()
    life = timed.worker()
    life.quiet()
    life.hints_alone()
    timed.add(Bill(id=1, due_at=now() + ms(200)))
    until(lambda: bill(timed).status == "noted")
    assert bill(timed).late_s >= 0


def test_one_look_that_stalled_does_not_put_off_what_is_due(timed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    noted(timed)
    timed.there()
    life = timed.worker()
    life.quiet()
    life.hints_alone()
    asked, stalls = due_timers.Timers._run_statement, [0.5]

    def stall(self: due_timers.Timers, *given: Any) -> Any:
        time.sleep(stalls.pop() if stalls else 0)  # as a disk does, or a machine that others keep busy
        return asked(self, *given)

    monkeypatch.setattr(due_timers.Timers, "_run_statement", stall)
    asks = life.worker.components.timers
    asks._cost = UsualDuration()  # what it cost until now says nothing here
    asks.mark_stale()
    life.worker.components.signals.wake.set()
    until(lambda: not stalls)
    life.turn()  # the one that stalled is over
    assert asks._not_before < time.monotonic() + due_timers.AGAIN_S, "the stall was taken for the cost of a look"
    timed.add(Bill(id=1, due_at=now() + ms(200)))
    until(lambda: bill(timed).status == "noted")
    assert bill(timed).late_s >= 0


def test_a_due_time_before_a_column_and_one_of_an_expression(timed: World) -> None:
    @timed.app.on(Bill, Bill.status == "open", due=after(Bill.due_at, -3 * DAY))
    def three_days_before(one: Bill, ctx: ReactionContext) -> None:
        one.status, one.note = "warned", ctx.due.isoformat()

    @timed.app.on(Bill, Bill.status == "warned", due=func.coalesce(Bill.naive_at, Bill.due_at))
    def then(one: Bill, ctx: ReactionContext) -> None:
        one.status, one.note = "due", ctx.due.isoformat()

    base = now().replace(microsecond=0)
    timed.add(Bill(id=1, due_at=base + 2 * DAY), Bill(id=2, due_at=base + 4 * DAY))
    timed.add(Bill(id=3, due_at=base + 2 * DAY, naive_at=(base - timedelta(hours=1)).replace(tzinfo=None)))
    life = timed.worker()
    life.quiet()
    assert [bill(timed, n).status for n in (1, 2, 3)] == ["warned", "open", "due"]
    assert bill(timed, 1).note == (base - DAY).isoformat()
    assert bill(timed, 3).note == (base - timedelta(hours=1)).isoformat()
    timed.forward(4 * 86_400 + 1)
    life.quiet()
    assert [bill(timed, n).status for n in (1, 2, 3)] == ["due", "due", "due"]
    assert timed.attempts() == []


def test_a_naive_column_means_utc_and_a_date_its_midnight(database_url: str) -> None:
    class Kinds(DeclarativeBase):
        pass

    class Visit(Kinds):
        __tablename__ = "visits"
        id: Mapped[int] = mapped_column(primary_key=True)
        naive: Mapped[datetime] = mapped_column(DateTime)
        day: Mapped[date]
        seen: Mapped[str] = mapped_column(default="")

    world = World(database_url, Kinds)
    try:

        @world.app.on(Visit, Visit.seen == "", due=Visit.naive)
        def by_time(one: Visit, ctx: ReactionContext) -> None:
            one.seen = ctx.due.isoformat()

        @world.app.on(Visit, Visit.seen != "", Visit.seen.not_like("%,%"), due=Visit.day)
        def by_day(one: Visit, ctx: ReactionContext) -> None:
            one.seen += f",{ctx.due.isoformat()}"

        just, soon = datetime.now(UTC).replace(tzinfo=None), datetime.now(UTC).replace(tzinfo=None) + timedelta(minutes=30)
        today, tomorrow = just.date(), just.date() + DAY
        world.add(Visit(id=1, naive=just - ms(50), day=today), Visit(id=2, naive=soon, day=today), Visit(id=3, naive=just, day=tomorrow))
        world.settled()
        midnight = datetime.combine(today, datetime.min.time(), UTC).isoformat()
        assert world.get(Visit, 1).seen == f"{(just - ms(50)).replace(tzinfo=UTC).isoformat()},{midnight}"
        assert world.get(Visit, 2).seen == ""
        assert "," not in world.get(Visit, 3).seen
    finally:
        world.close()


def test_numbers_are_refused_and_right_once_they_are_made_times(database_url: str) -> None:
    class Numbers(DeclarativeBase):
        pass

    class Seconds(TypeDecorator[datetime]):
        impl = Integer
        cache_ok = True

        def process_bind_param(self, value: datetime | None, dialect: Any) -> int | None:  # noqa: ARG002  # SQLAlchemy's
            return None if value is None else int(value.timestamp())

        def process_result_value(self, value: int | None, dialect: Any) -> datetime | None:  # noqa: ARG002  # likewise
            return None if value is None else datetime.fromtimestamp(value, UTC)

    class Ping(Numbers):
        __tablename__ = "pings"
        id: Mapped[int] = mapped_column(primary_key=True)
        epoch: Mapped[int]
        hidden: Mapped[datetime] = mapped_column(Seconds)
        seen: Mapped[bool] = mapped_column(default=False)

    world = World(database_url, Numbers)
    try:
        with pytest.raises(DeclarationError, match="holds numbers"):
            world.app.on(Ping, due=Ping.epoch, name="pinged")(lambda _one: None)

        @world.app.on(Ping, Ping.seen.is_(False), due=Ping.hidden, name="hidden")
        def hidden(one: Ping) -> None:
            one.seen = True

        with pytest.raises(DeclarationError, match="stores a time as 981173106"):
            world.there()
        del world.app.reactions["hidden"]
        made = func.datetime(Ping.epoch, "unixepoch") if not world.postgres else func.to_timestamp(Ping.epoch)

        @world.app.on(Ping, Ping.seen.is_(False), due=made, name="right")
        def right(one: Ping) -> None:
            one.seen = True

        there = int(now().timestamp())
        world.add(Ping(id=1, epoch=there - 5, hidden=now()), Ping(id=2, epoch=there + 3600, hidden=now()))
        world.settled()
        assert [world.get(Ping, n).seen for n in (1, 2)] == [True, False]
    finally:
        world.close()


def test_a_column_that_drops_the_zone_is_refused_on_sqlite_and_right_on_postgresql(database_url: str) -> None:
    class Zoned(DeclarativeBase):
        pass

    class Alarm(Zoned):
        __tablename__ = "alarms"
        id: Mapped[int] = mapped_column(primary_key=True)
        at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
        rang: Mapped[bool] = mapped_column(default=False)

    world = World(database_url, Zoned)
    try:

        @world.app.on(Alarm, Alarm.rang.is_(False), due=Alarm.at)
        def ring(one: Alarm) -> None:
            one.rang = True

        if not world.postgres:
            with pytest.raises(DeclarationError, match="SQLite drops the zone"):
                world.there()
            return
        berlin = timezone(timedelta(hours=2))
        world.add(Alarm(id=1, at=(now() - ms(100)).astimezone(berlin)), Alarm(id=2, at=(now() + timedelta(hours=1)).astimezone(berlin)))
        world.settled()
        assert [world.get(Alarm, n).rang for n in (1, 2)] == [True, False]
    finally:
        world.close()


def test_adding_to_a_time_is_refused_on_sqlite_and_right_on_postgresql(timed: World) -> None:
    if not timed.postgres:
        with pytest.raises(DeclarationError, match=r"reaction noted: due=.* on SQLite .* write due=after\(column"):
            noted(timed, due=Bill.due_at + timedelta(hours=1))
        return
    noted(timed, due=Bill.due_at + timedelta(hours=1))
    timed.add(Bill(id=1, due_at=now() - timedelta(minutes=59)), Bill(id=2, due_at=now() - timedelta(minutes=61)))
    timed.settled()
    assert [bill(timed, n).status for n in (1, 2)] == ["open", "noted"]


def test_a_time_beyond_every_calendar_stops_nobody(timed: World) -> None:
    noted(timed)
    timed.add(Bill(id=1, due_at=now() - DAY), Bill(id=2, due_at=now() + DAY))
    far = "'infinity'" if timed.postgres else "'zzz'"
    timed.run(f"UPDATE bills SET due_at = {far} WHERE id = 2")
    timed.settled()
    assert bill(timed).status == "noted"


def test_two_workers_carry_each_out_once(timed: World) -> None:
    @timed.app.on(Bill, Bill.status == "open", due=Bill.due_at)
    def handler(one: Bill) -> None:
        one.charged += 1
        one.status = "noted"

    timed.add(*[Bill(id=number, due_at=now() + ms(5 * number)) for number in range(1, 201)])
    lives = [timed.worker(), timed.worker()]
    until(lambda: all(bill(timed, n).status == "noted" for n in (1, 100, 200)))
    for life in lives:
        life.quiet()
    with timed.session() as session:
        assert session.execute(select(Bill.status, Bill.charged).distinct()).all() == [("noted", 1)]


# ---- rounds ----------------------------------------------------------------------------------------------------------------------
def charging(world: World, policy: Any, **options: Any) -> Gateway:
    gateway = world.gateway()
    bank = ExternalService("bank")

    @bank.call(in_doubt=policy, timeout=TIMEOUT, retry=options.pop("retry", QUICK))
    async def charge(one: Bill, key: IdempotencyKey) -> str:
        return await gateway.act(one.id, key)

    if policy.kind == "lookup":

        @charge.lookup
        def _(one: Bill, key: IdempotencyKey, ctx: ReactionContext) -> str | Absent | Unknown:
            return gateway.find(one.id, key)  # type: ignore[no-any-return]

    @world.app.on(Bill, Bill.status == "open", due=Bill.due_at, call=charge, **options)
    def charged(one: Bill, receipt: str, ctx: ReactionContext) -> None:
        one.charged += 1
        one.round += 1
        one.due_at = ctx.due + 30 * DAY

    gateway.reaction = charged
    return gateway


def test_a_monthly_charge_is_made_once_for_each_month_that_was_missed(timed: World) -> None:
    gateway = charging(timed, InDoubt.same_key(kept_for=DAY))
    first = now().replace(microsecond=0) - 65 * DAY
    timed.add(Bill(id=1, due_at=first))
    timed.settled()
    assert (bill(timed).charged, bill(timed).due_at) == (3, first + 90 * DAY)
    assert len({key for _, key in gateway.ledger}) == 3  # a key for each round
    assert timed.attempts() == []


def test_hazard_57_a_round_in_doubt_lets_no_other_begin_though_support_moved_the_date(timed: World) -> None:
    gateway = charging(timed, InDoubt.lookup(settle_after=timedelta(seconds=60)))
    gateway.plan(1, "raise")
    gateway.finds[1] = [UNKNOWN, UNKNOWN, UNKNOWN]
    timed.add(Bill(id=1, due_at=now() - DAY))
    life = timed.worker()
    until(lambda: timed.states() == ["doubt"])
    timed.run("UPDATE bills SET due_at = :at", at=written(timed, now() - 2 * DAY))
    life.sweep()
    life.sweep()
    assert gateway.called(1) == 1
    timed.forward(TIMEOUT.total_seconds() + 70)
    until(lambda: bill(timed).charged == 1)  # the first was not made: absent and moved on, it is let go, and the new round is charged
    assert gateway.done(1) == 1
    assert timed.attempts() == []


def test_a_clock_that_steps_back_while_a_call_is_in_the_air_changes_nothing(timed: World) -> None:
    gateway = charging(timed, InDoubt.same_key(kept_for=DAY))
    gateway.plan(1, "hang")
    timed.add(Bill(id=1, due_at=now() - ms(200)))
    life = timed.worker()
    until(lambda: gateway.waiting == 1)
    timed.forward(-3600)
    gateway.gate.set()
    until(lambda: bill(timed).charged == 1)
    life.quiet()
    assert (gateway.done(1), timed.attempts()) == (1, [])
    timed.forward(3600)
    life.quiet()
    assert gateway.done(1) == 1  # its due time is a month ahead


def test_a_failed_round_whose_time_was_moved_waits_for_it(timed: World) -> None:
    gateway = charging(timed, InDoubt.repeat(), occurrence=[Bill.round], retry=Retry(times=None, first=ms(5), longest=ms(10)))
    gateway.plan(1, *["refuse"] * 10_000)  # for as long as it takes
    timed.add(Bill(id=1, due_at=now() - DAY))
    life = timed.worker()
    until(lambda: gateway.called(1) == 1)
    timed.run("UPDATE bills SET due_at = :at", at=written(timed, now() + DAY))
    life.quiet()
    called = gateway.called(1)
    life.sweep()
    life.sweep()
    assert gateway.called(1) == called
    assert timed.attempt().state.value == "failed"
    gateway.plan(1)
    timed.forward(86_400)
    until(lambda: bill(timed).charged == 1)


def test_the_call_and_its_find_are_told_when_it_was_due(timed: World) -> None:
    told: list[tuple[str, datetime]] = []
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.lookup(settle_after=ms(10)), timeout=timedelta(seconds=5), retry=QUICK)
    def charge(one: Bill, ctx: ReactionContext) -> str:
        told.append(("call", ctx.due))
        raise RuntimeError("the line went dead")

    @charge.lookup
    def _(one: Bill, ctx: ReactionContext) -> str | Absent | Unknown:
        told.append(("find", ctx.due))
        return "r1"

    @timed.app.on(Bill, Bill.charged == 0, due=after(Bill.due_at, timedelta(minutes=5)), call=charge)
    def charged(one: Bill, receipt: str, ctx: ReactionContext) -> None:
        told.append(("handler", ctx.due))
        one.charged = 1

    then = now().replace(microsecond=0) - DAY
    timed.add(Bill(id=1, due_at=then))
    timed.settled()
    assert told == [(who, then + timedelta(minutes=5)) for who in ("call", "find", "handler")]


# ---- new code --------------------------------------------------------------------------------------------------------------------
def test_a_shorter_time_is_reported_with_the_rows_that_it_newly_takes(timed: World) -> None:
    noted(timed, due=after(Bill.due_at, 30 * DAY))
    timed.add(*[Bill(id=number, due_at=now() - 20 * DAY) for number in (1, 2)])
    timed.settled()
    del timed.app.reactions["noted"]
    noted(timed, due=after(Bill.due_at, 14 * DAY))
    life = timed.worker()
    until(lambda: bool(life.worker.refused_reactions))
    assert [(one.name, one.rows, one.changed) for one in life.worker.refused_reactions] == [("noted", 2, True)]
    assert bill(timed).status == "open"


def test_a_lane_that_cannot_be_asked_leaves_the_other_timers_alone(
    timed: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    noted(timed)
    asked = RecordSelects.select_next_base_times

    def next_due(question: RecordSelects, *given: Any) -> Any:
        fails = "select current_setting('no.such') as at" if timed.postgres else "select abs('x', 1) as at"
        return text(fails).columns(at=UtcDateTime()) if question.spec.name == "other" else asked(question, *given)

    monkeypatch.setattr(RecordSelects, "select_next_base_times", next_due)

    @timed.app.on(Bill, Bill.status == "never", due=after(Bill.due_at, DAY))
    def other(one: Bill) -> None:
        one.status = "gone"

    timed.there()
    timed.worker()
    timed.add(Bill(id=1, due_at=now() + ms(300)))
    until(lambda: bill(timed).status == "noted")
    until(lambda: "the condition of other could not be queried for its next due time" in caplog.text)


def written(world: World, moment: datetime) -> Any:
    """As the column keeps it, for statements of others."""
    return moment if world.postgres else moment.replace(tzinfo=None).isoformat(" ", timespec="microseconds")


def test_what_others_wrote_in_other_ways_is_passed_in_one_go(timed: World) -> None:
    noted(timed)
    timed.there()
    if timed.postgres:
        timed.run("INSERT INTO bills (id, status, due_at, round, charged) SELECT n, 'open', '-infinity', 1, 0 FROM generate_series(1, 3) n")
        timed.run(
            "INSERT INTO bills (id, status, due_at, round, charged) SELECT n, 'open', '2020-01-01', 1, 0 FROM generate_series(4, 900) n"
        )
    else:
        numbers = "WITH RECURSIVE s(n) AS (SELECT {0} UNION ALL SELECT n + 1 FROM s WHERE n < {1}) "
        insert = "INSERT INTO bills (id, status, due_at, round, charged) SELECT n, 'open', {0}, 1, 0 FROM s"
        timed.run(numbers.format(1, 3) + insert.format("'!'"))
        timed.run(numbers.format(4, 900) + insert.format("'2020-01-01 00:00:00'"))
    life = timed.worker()
    life.quiet()
    with timed.engine.connect() as connection:
        assert connection.execute(text("SELECT status, count(*) FROM bills GROUP BY status ORDER BY status")).all() == [
            ("noted", 897),
            ("open", 3),
        ]
    assert timed.states() == ["failed"] * 3  # nobody can read their time
    assert life.worker.queues[0].postponement.trouble == 0


def test_what_becomes_due_before_the_next_look_rings_all_the_same(timed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    noted(timed)
    monkeypatch.setattr(due_timers, "AT_ONCE", 1)
    monkeypatch.setattr(due_timers, "AGAIN_S", 0.2)  # the second rings before it is asked again, and the third becomes due meanwhile
    first = now() + ms(500)
    timed.add(*[Bill(id=n + 1, due_at=first + ms(40 * n)) for n in range(3)])
    life = timed.worker()
    life.quiet()
    life.hints_alone()
    until(lambda: bill(timed, 3).status == "noted")
    assert bill(timed, 3).late_s >= 0


def test_what_asking_for_the_next_costs_does_not_make_sweeps_rarer(timed: World) -> None:
    noted(timed)
    timed.add(Bill(id=1, due_at=now() + DAY))
    life = timed.worker()
    life.quiet()
    life.worker.components.sweeps.next = life.worker.components.sweeps.next_look = float("inf")
    until(lambda: not any(lane.has_work for lane in life.worker.queues))
    life.turn()  # what the last sweep cost is counted when its turn ends
    spent_s, asked = life.worker.components.sweeps.idle_s, 0
    while asked < 3:
        life.worker.components.timers.mark_stale()
        life.worker.components.signals.wake.set()
        until(lambda: not life.worker.components.timers._stale)
        asked += 1
    assert life.worker.components.sweeps.idle_s == spent_s


def test_a_look_that_took_long_rings_too_late_and_never_too_early(timed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = due_timers.Timers._run_statement

    def slow(self: due_timers.Timers, *given: Any) -> Any:
        time.sleep(0.1)  # between the worker's look at its own clock and the database's answer
        return asked(self, *given)

    monkeypatch.setattr(due_timers.Timers, "_run_statement", slow)
    monkeypatch.setattr(due_timers, "SHARE", 1)
    noted(timed)
    timed.there()
    life = timed.worker()
    life.quiet()
    first = now() + ms(600)
    life.hints_alone()
    timed.add(Bill(id=1, due_at=first), Bill(id=2, due_at=first + timedelta(minutes=30)))  # the second is known, and none is asked for
    until(lambda: bill(timed).status == "noted")
    assert bill(timed).late_s >= 0
