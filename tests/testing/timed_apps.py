"""Small apps with due times, and others on which the clock leaps. Each is right; faults are planted elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import (
    Absent,
    App,
    Cron,
    ExternalService,
    IdempotencyKey,
    InDoubt,
    ReactionContext,
    Retry,
    Store,
    Unknown,
    UtcDateTime,
    after,
)
from groundstate.testing import Clock
from tests.testing import apps
from tests.testing.apps import RETRY, TIMEOUT, Case

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR, DAY, MONTH, YEAR = timedelta(hours=1), timedelta(days=1), timedelta(days=30), timedelta(days=365)


class Base(DeclarativeBase): ...


class Bill(Base):
    __tablename__ = "bills"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")
    due_at: Mapped[datetime] = mapped_column(UtcDateTime)
    note: Mapped[str | None] = mapped_column(default=None)


@dataclass(frozen=True)
class Message:
    """What is sent of a bill, and how late it was when that was decided."""

    id: int
    late_by: timedelta


class Done(Base):
    """What was carried out, a row each time: written in the transaction of what it tells of."""

    __tablename__ = "done"
    id: Mapped[int] = mapped_column(primary_key=True)
    bill: Mapped[int]
    due_at: Mapped[datetime] = mapped_column(UtcDateTime)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


def bill(session: Session) -> Bill:
    return session.get_one(Bill, 1)


def done(session: Session) -> list[Done]:
    return list(session.scalars(select(Done).order_by(Done.id)))


def leaping(
    *by: timedelta, starts: datetime = NOON, ends: datetime | None = None, suspends: timedelta | None = None
) -> Callable[[Clock], None]:
    def tell(clock: Clock) -> None:
        clock.starts(starts)
        clock.leaps(*by)
        if ends is not None:
            clock.ends(ends)
        if suspends is not None:
            clock.suspends(suspends)

    return tell


# ---- the clock alone -----------------------------------------------------------------------------------------------------------
def within_hours(name: str, in_doubt: InDoubt) -> Case:
    """A charge on which the clock leaps by a year, and back: it waits no longer for that than a try may wait at most, thrice."""
    app, charge, _ = apps.charging(name, in_doubt)
    shown: list[Clock] = []

    def tell(clock: Clock) -> None:
        shown[:] = [clock]
        clock.leaps(YEAR, -YEAR)

    def not_long(_session: Session, _effects: list[Any]) -> None:
        assert shown[0].passed < 3 * HOUR + DAY, f"it waited for {shown[0].passed}"

    return Case(app, [charge], at_the_end=not_long, clock=tell)


ASKED = within_hours("asked-in-time", apps.ASK)
KEYED = within_hours("keyed-in-time", apps.SAME_KEY)
HELD = within_hours("held-in-time", InDoubt.hold())
FINDS = replace(apps.ASKED, clock=leaping(-HOUR))


# ---- reminders: without a call, not before their time, once, and not too late ------------------------------------------------------
def _reminders() -> Case:
    app = App("timed-reminders", Store("sqlite:///timed.db", Base))

    @app.on(Bill, Bill.status == "open", due=after(Bill.due_at, timedelta(minutes=10), valid_for=6 * HOUR))
    def reminded(one: Bill, session: Session, ctx: ReactionContext) -> None:
        session.add(Done(bill=one.id, due_at=ctx.due, at=ctx.now))
        one.status = "reminded"

    @reminded.expired
    def _(one: Bill, ctx: ReactionContext) -> None:
        one.status, one.note = "expired", str(ctx.late_by >= 6 * HOUR)

    def in_its_time(session: Session, _effects: list[Any]) -> None:
        for one in done(session):
            assert one.at >= one.due_at, f"reminded {one.due_at - one.at} too early"
            assert one.at < one.due_at + 6 * HOUR, f"reminded {one.at - one.due_at} too late"
        assert bill(session).note != "False", "told that it is too late, too early"
        assert len(done(session)) == (bill(session).status == "reminded"), "reminded twice, or not at all"

    def answered(session: Session, _effects: list[Any]) -> None:
        assert bill(session).status in ("reminded", "expired")

    # Three days of downtime, and a clock that is set by an hour: across the night on which Berlin's clocks change.
    clock = leaping(3 * DAY, HOUR, -HOUR, starts=datetime(2027, 10, 31, 2, 30, tzinfo=BERLIN))
    return Case(
        app,
        rows=lambda: [Bill(id=1, due_at=datetime(2027, 10, 31, 1, 0, tzinfo=UTC))],
        always=in_its_time,
        at_the_end=answered,
        clock=clock,
    )


REMINDERS = _reminders()


# ---- a charge each month, by its due column -----------------------------------------------------------------------------------------
def renewing(name: str, in_doubt: InDoubt, *clock: timedelta, months: int = 3) -> Case:
    """A subscription that is charged for each month, once, whatever happens; somebody moves its due time by some days meanwhile."""
    app = App(f"timed-{name}", Store("sqlite:///timed.db", Base))

    @ExternalService("bank").call(in_doubt=in_doubt, timeout=TIMEOUT, retry=RETRY)
    def charge(one: Bill, key: IdempotencyKey) -> int:
        raise AssertionError("the lab's fake is called instead")

    if in_doubt.kind == "lookup":

        @charge.lookup
        def find(one: Bill, key: IdempotencyKey) -> int | Absent | Unknown:
            raise AssertionError("the lab's fake is asked instead")

    def write_down(one: Bill, session: Session, ctx: ReactionContext) -> None:
        session.add(Done(bill=one.id, due_at=ctx.due, at=ctx.now))
        one.due_at = max(one.due_at, ctx.due + MONTH)
        if len(done(session)) >= months:
            one.status = "over"

    @app.on(Bill, Bill.status == "open", due=Bill.due_at, call=charge)
    def renewed(one: Bill, month: int, session: Session, ctx: ReactionContext) -> None:
        write_down(one, session, ctx)

    @renewed.overtaken
    def _(one: Bill, month: int, session: Session, ctx: ReactionContext) -> None:
        if ctx.due not in [paid.due_at for paid in done(session)]:
            write_down(one, session, ctx)

    def is_moved(session: Session) -> None:
        bill(session).due_at -= 3 * DAY

    def each_month_once(session: Session, effects: list[Any]) -> None:
        known = [one.due_at for one in done(session)]
        assert len(set(known)) == len(known), "a month is written down twice"
        charged = [one.due_at for one in effects]
        assert len(set(charged)) == len(charged), "a month was charged twice"

    return Case(
        app,
        [charge],
        rows=lambda: [Bill(id=1, due_at=NOON)],
        meanwhile=[is_moved],
        always=each_month_once,
        answer=lambda one: one.due_at.toordinal(),
        clock=leaping(*clock),
    )


RENEWED = renewing("renewed", InDoubt.same_key(kept_for=YEAR, settle_after=timedelta(seconds=40)), 40 * DAY, -DAY)
RENEWED_ASKED = renewing("renewed-asked", InDoubt.lookup(settle_after=timedelta(seconds=40)), 40 * DAY, -DAY)
RENEWED_HELD = renewing("renewed-held", InDoubt.hold(), 40 * DAY, -DAY)


# ---- a message that is worth sending for six hours -----------------------------------------------------------------------------------
def _messages() -> Case:
    """Its service fails for longer than it is worth sending: then no further try is made, and it is told so."""
    app = App("timed-messages", Store("sqlite:///timed.db", Base))

    @ExternalService("smtp").call(
        in_doubt=InDoubt.same_key(kept_for=DAY), timeout=TIMEOUT, retry=Retry(first=4 * HOUR, longest=4 * HOUR, times=20)
    )
    def send(message: Message, key: IdempotencyKey) -> str:
        raise AssertionError("the lab's fake is called instead")

    def message(one: Bill, ctx: ReactionContext) -> Message:
        return Message(one.id, ctx.late_by)

    @app.on(Bill, Bill.note.is_(None), due=after(Bill.due_at, valid_for=6 * HOUR), call=send, prepare=message)
    def sent(one: Bill, answer: str) -> None:
        one.note = answer

    @sent.expired
    def _(one: Bill) -> None:
        one.note = "expired"

    def nothing_stale(_session: Session, effects: list[Any]) -> None:
        assert all(one.late_by < 6 * HOUR for one in effects), f"it was sent {max(one.late_by for one in effects)} late"

    return Case(
        app,
        [send],
        rows=lambda: [Bill(id=1, due_at=NOON + HOUR)],
        always=nothing_stale,
        at_the_end=nothing_stale,
        answer=lambda one: f"sent {one.id}",
        clock=leaping(3 * DAY, -HOUR),
    )


MESSAGES = _messages()


# ---- schedules, over the nights on which clocks change --------------------------------------------------------------------------------
def nightly(name: str, cron: Cron, starts: datetime, ticks: int) -> Case:
    """Each tick writes a row, once, from its start on; a step back repeats none, and the clock's own changes count as `cron` says."""
    app = App(f"timed-{name}", Store("sqlite:///timed.db", Base))

    @app.every(cron.expression, zone=cron.zone, missed="all", gap=cron.gap, fold=cron.fold)
    def counted(session: Session, ctx: ReactionContext) -> None:
        session.add(Done(bill=1, due_at=ctx.due, at=ctx.now))

    wanted = [starts]
    while len(wanted) <= ticks:
        wanted.append(cron.next(wanted[-1]))

    def once_each(session: Session, _effects: list[Any]) -> None:
        found = [one.due_at for one in done(session)]
        assert len(set(found)) == len(found), "a tick was carried out twice"

    def all_ticks(session: Session, _effects: list[Any]) -> None:
        found = [one.due_at for one in done(session)]
        assert found == [tick.astimezone(UTC) for tick in wanted[1:]], f"ticks {found}"

    clock = leaping(2 * HOUR, -HOUR, starts=starts, ends=wanted[-1].astimezone(UTC) + HOUR)
    return Case(app, rows=lambda: [Bill(id=1, status="kept", due_at=NOON)], always=once_each, at_the_end=all_ticks, clock=clock)


SANTIAGO = ZoneInfo("America/Santiago")
BERLIN_GAP = nightly("berlin-gap", Cron("30 2 * * *", zone="Europe/Berlin", gap="shift"), datetime(2027, 3, 27, 12, tzinfo=BERLIN), ticks=2)
BERLIN_OVERLAP = nightly(
    "berlin-overlap", Cron("30 2 * * *", zone="Europe/Berlin", fold="both"), datetime(2027, 10, 31, 1, tzinfo=BERLIN), ticks=3
)
SANTIAGO_GAP = nightly(
    "santiago-gap", Cron("30 0 * * *", zone="America/Santiago", gap="skip"), datetime(2027, 9, 4, 12, tzinfo=SANTIAGO), ticks=2
)
SANTIAGO_OVERLAP = nightly(
    "santiago-overlap", Cron("30 23 * * *", zone="America/Santiago", fold="first"), datetime(2027, 4, 3, 12, tzinfo=SANTIAGO), ticks=2
)
NIGHTS = [BERLIN_GAP, BERLIN_OVERLAP, SANTIAGO_GAP, SANTIAGO_OVERLAP]


# ---- a due time that somebody moves while the call of it is on its way -------------------------------------------------------------
def moved_while_it_goes_out(name: str, *, wrong: bool) -> Case:
    """A reminder that is to go out once more where it was put off meanwhile. Right where the author says that each time is a round."""
    app = App(name, Store("sqlite:///timed.db", Base))

    @ExternalService("mail").call(in_doubt=InDoubt.hold(), timeout=TIMEOUT, retry=RETRY)
    def remind(one: Bill) -> str:
        raise AssertionError("the lab's fake is called instead")

    said: dict[str, Any] = {} if wrong else {"occurrence": [Bill.due_at]}

    @app.on(Bill, Bill.status == "open", due=after(Bill.due_at), call=remind, overtaken="same", **said)
    def reminded(one: Bill, message: str, ctx: ReactionContext) -> None:
        one.note = message
        if one.due_at == ctx.due:
            one.status = "reminded"

    def put_off(session: Session) -> None:
        one = bill(session)
        if one.status == "open":
            one.due_at += DAY

    return Case(
        app,
        [remind],
        rows=lambda: [Bill(id=1, due_at=NOON - HOUR)],
        meanwhile=[put_off],
        answer=lambda one: f"reminded of {one.due_at}",
        clock=leaping(),
    )
