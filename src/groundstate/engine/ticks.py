"""Schedules of one worker: each tick is carried out in one transaction with the mark that says so, and the next one is slept for.

A tick whose handler fails is a failed attempt with an empty record and the tick as occurrence; the mark moves on over it, and it is tried
again beside the ticks that follow. Whoever has the lock of the schedule's row is at work on it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, and_, or_, select, union_all

from groundstate.engine import attempts, beside, careful, handling, marks, plain, trouble
from groundstate.engine.attempt_log import say_tick_failed, which_try
from groundstate.engine.guarded import describe, place_of, user_code
from groundstate.engine.handling import HandlerFailed
from groundstate.engine.illegible import WITHOUT_TIME
from groundstate.engine.marks import Mark
from groundstate.engine.shift import Shift
from groundstate.engine.transaction import Transaction
from groundstate.engine.trouble import Illegible, Row, reading_ours
from groundstate.rules import schedule
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.schedule import LeftOut, ScheduleSpec
from groundstate.store.tables import attempt as table
from groundstate.values import keys

log = logging.getLogger("groundstate")
RECORD = ""  # of a tick's attempt: it is on no record
BUSY_S = 0.2  # how soon it is looked again after another worker had the schedule's row
AHEAD = timedelta(seconds=1)  # a mark further than this in the future is told of


@dataclass
class _Plan:
    """What is known of one schedule since it was last looked at."""

    spec: ScheduleSpec
    mark: Mark | None = None
    queue: deque[datetime] = field(default_factory=deque)  # of missed="all": ticks after the mark that are still to be carried out
    told: str = ""  # what was last said of a mark that keeps it from being carried out
    not_before: float = 0.0
    trouble: int = 0
    left: bool = False  # something was due, and could not be carried out just then

    def busy(self) -> float:
        """Another worker has the row, or has done it: how soon it is looked again."""
        self.left = True
        return BUSY_S

    def tell(self, words: str) -> None:
        """Once, until it is another thing."""
        if words and words != self.told:
            log.error("%s", words, extra={"event": "schedule_stands", "schedule": self.spec.name})
        self.told = words


@dataclass(frozen=True)
class _Seen:
    """One look at the database. next_tries: of each schedule with attempts to be tried, which one comes first, and when."""

    now: datetime
    marks: dict[str, Mark]
    next_tries: dict[str, tuple[str, datetime]]


class Ticks:
    """Of one worker; for its transactions' thread alone. next: when the rows of its schedules are read again."""

    def __init__(self, shift: Shift, specs: Sequence[ScheduleSpec]) -> None:
        self._shift = shift
        self._specs = specs
        shift.schedules = [spec.name for spec in specs]
        self._plans = [_Plan(spec) for spec in specs]
        self.next = 0.0 if specs else float("inf")

    def look_again(self) -> None:
        """Somebody may have changed something: the rows are read at the next turn."""
        if self._specs:
            self.next = 0.0

    @property
    def wants(self) -> bool:
        """Whether something may be due."""
        return self.next <= time.monotonic() or any(plan.left for plan in self._plans)

    def wait_until(self) -> float:
        """When there is something to do, in seconds of the monotonic clock."""
        return self.next if self._shift.stopping is None else float("inf")

    def turn(self) -> None:
        """One tick, and one that failed before, of each schedule that has some to carry out."""
        if self.next > time.monotonic():
            return
        if not self._shift.enrolled:
            marks.enrol(self._shift.life, self._specs)
            self._shift.enrolled = True
        seen = self._look()
        began = time.monotonic()
        self.next = min(self._at(plan, seen, began) for plan in self._plans)

    def _at(self, plan: _Plan, seen: _Seen, began: float) -> float:
        """Carries out what is due of one schedule, and says when to look again; what goes wrong in it is no other one's concern."""
        if plan.not_before > time.monotonic():
            return plan.not_before
        plan.left = False
        try:
            wait = self._carry_out(plan, seen)
        except Exception as error:
            self._postpone(plan, error)
            return plan.not_before
        plan.trouble = 0
        return began + wait if wait > 0 else 0.0

    def _postpone(self, plan: _Plan, error: Exception) -> None:
        plan.left = True
        plan.trouble = min(plan.trouble + 1, 8)
        plan.not_before = time.monotonic() + 0.05 * 2**plan.trouble
        if isinstance(error, Illegible):
            raise error
        if trouble.transient(error):
            log.warning(
                "schedule %s waits for the database, and is tried again: %s",
                plan.spec.name,
                trouble.told(error),
                extra={"event": "schedule_waits", "schedule": plan.spec.name},
            )
        else:
            log.error(
                "schedule %s could not be looked at, tried again",
                plan.spec.name,
                exc_info=error,
                extra={"event": "schedule_failed", "schedule": plan.spec.name},
            )

    # ---- what is to be done ------------------------------------------------------------------------------------------------------
    def _look(self) -> _Seen:
        shift = self._shift
        with shift.database.reading() as connection:
            now = connection.execute(select(shift.database.now())).scalar_one()
            seen = marks.read(connection, shift.app, self._specs)
            some = connection.execute(attempts.ANY).first() is not None
            return _Seen(now, seen, self._next_tries(connection, now) if some else {})

    def _next_tries(self, connection: Connection, now: datetime) -> dict[str, tuple[str, datetime]]:
        shift = self._shift
        names = [spec.name for spec in self._specs]
        mine = (table.c.app == shift.app, table.c.record == RECORD)
        with reading_ours():
            if connection.execute(select(table.c.app).where(*mine, table.c.reaction.in_(names), WITHOUT_TIME).limit(1)).first() is not None:
                raise Illegible("a tick that failed has no time at which it is tried again")
            first = [
                select(table.c.reaction, table.c.occurrence, table.c.next_at)
                .where(*mine, table.c.reaction == name, table.c.state == State.FAILED.value)
                .order_by(table.c.next_at)
                .limit(1)
                .subquery()
                for name in names
            ]
            found = {row[0]: (row[1], row[2]) for row in connection.execute(union_all(*[select(one) for one in first]))}
            left = select(table.c.reaction, table.c.occurrence).where(*mine, table.c.reaction.in_(names), _begun_by_us(shift))
            return found | {row[0]: (row[1], now) for row in connection.execute(left)}

    def _carry_out(self, plan: _Plan, seen: _Seen) -> float:
        """Returns in how many seconds there is something to do next; 0: at once."""
        spec, waits = plan.spec, [float("inf")]
        mark = seen.marks.get(spec.name)
        at_mark = self._sound(plan, mark, seen.now)
        if mark is None:
            self._shift.enrolled = False  # its row was deleted
            waits.append(plan.busy())
        elif at_mark is not None:
            following = spec.timing.following(at_mark)
            due = following <= seen.now
            waits.append(self._tick(plan, mark, at_mark, seen.now) if due else (following - seen.now).total_seconds())
        again = seen.next_tries.get(spec.name)
        if again is not None and not _is_later(again[0], at_mark):
            waits.append(self._try_again(plan, again[0]) if again[1] <= seen.now else (again[1] - seen.now).total_seconds())
        return min(waits)

    def _sound(self, plan: _Plan, mark: Mark | None, now: datetime) -> datetime | None:
        """The mark; None where nothing can be carried out by it, which is said."""
        name, words, at = plan.spec.name, "", None if mark is None else mark.at
        if mark is None:
            return None
        if mark.words != plan.spec.words:
            words = (
                f"schedule {name} is carried out by workers with other code ({mark.words!r}), and not by this one ({plan.spec.words!r}):"
                " stop this worker, or start it again and stop those"
            )
        elif at is None:
            words = mark.illegible(name)
        elif at > now + AHEAD:
            words = (
                f"the mark of schedule {name}, {mark.written}, is ahead of the database's clock, and nothing of it is carried out before"
                f" that: if the clock was wrong, {marks.cure(name)}"
            )
        plan.tell(words)
        return at if mark.words == plan.spec.words else None

    # ---- one tick ----------------------------------------------------------------------------------------------------------------
    def _tick(self, plan: _Plan, mark: Mark, at_mark: datetime, now: datetime) -> float:
        left_out = None
        if plan.mark != mark or not plan.queue:
            decision = schedule.decide(plan.spec, at_mark, now)
            plan.queue, left_out = deque(decision.run), decision.left_out
            if decision.mark is not None:
                return self._move(plan, mark, decision.mark, left_out)
        tick = plan.queue[0]
        is_careful = self._shift.life.care.careful
        moved = (self._begin if is_careful else self._run)(plan, mark, tick)
        if moved is None:
            plan.queue.clear()
            return plan.busy()
        plan.mark = moved
        plan.queue.popleft()
        self._did(plan, left_out)
        return self._try_again(plan, keys.instant(tick)) if is_careful else 0.0

    def _did(self, plan: _Plan, left_out: LeftOut | None) -> None:
        self._shift.took += 1
        if left_out is not None:
            log.warning(
                "schedule %s: %s, by missed=%r",
                plan.spec.name,
                left_out.words,
                plan.spec.missed,
                extra={"event": "ticks_left_out", "schedule": plan.spec.name, "count": left_out.count},
            )

    def _move(self, plan: _Plan, mark: Mark, to: datetime, left_out: LeftOut | None) -> float:
        """None of the ticks is carried out."""
        with self._shift.life.transaction() as tx:
            mine = marks.taken(tx, plan.spec, mark)
            if mine:
                marks.move(tx, plan.spec, to)
        if not mine:
            return plan.busy()
        self._did(plan, left_out)
        return 0.0

    def _run(self, plan: _Plan, mark: Mark, tick: datetime) -> Mark | None:
        """The tick and its mark in one transaction; where the handler fails, its attempt and the mark. None: another worker has it."""

        def run(first: frozenset[Row]) -> Mark | None:
            with self._shift.life.transaction() as tx:
                tx.lock_first(first)
                if not marks.taken(tx, plan.spec, mark):
                    return None
                if not _stands(tx, plan.spec, tick):
                    _handle(plan.spec, tx, tick)
                return marks.move(tx, plan.spec, tick)

        try:
            return beside.redo_lost_updates(run)
        except Exception as error:
            failed = _of_the_tick(error)
        with self._shift.life.transaction() as tx:
            if not marks.taken(tx, plan.spec, mark):
                return None
            attempts.insert(tx, [self._after_failure(plan.spec, self._new(plan.spec, tick, tx), failed, tx)])
            return marks.move(tx, plan.spec, tick)

    def _begin(self, plan: _Plan, mark: Mark, tick: datetime) -> Mark | None:
        """Careful mode: the attempt is written before the handler runs, so that a tick that kills its worker is found (hazard 25)."""
        with self._shift.life.transaction() as tx:
            if not marks.taken(tx, plan.spec, mark):
                return None
            attempts.insert(tx, [self._begun(self._new(plan.spec, tick, tx), tx)])
            return marks.move(tx, plan.spec, tick)

    # ---- one that failed before --------------------------------------------------------------------------------------------------
    def _try_again(self, plan: _Plan, occurrence: str) -> float:
        spec, life = plan.spec, self._shift.life
        if life.care.careful:
            with life.transaction() as tx:
                before = self._standing(tx, spec, occurrence)
                if before is None:
                    return plan.busy()
                if before.state is not State.BEGUN:
                    attempts.save(tx.connection, [(before, self._begun(before, tx))])

        def run(first: frozenset[Row]) -> bool:
            with life.transaction() as tx:
                tx.lock_first(first)
                before = self._standing(tx, spec, occurrence)
                if before is None:
                    return False
                _handle(spec, tx, keys.value_of(occurrence, datetime))
                attempts.remove(tx.database, tx.connection, [before])
                return True

        try:
            if not beside.redo_lost_updates(run):
                return plan.busy()
        except Exception as error:
            self._failed_again(plan, occurrence, _of_the_tick(error))
        self._shift.took += 1
        return 0.0

    def _failed_again(self, plan: _Plan, occurrence: str, error: HandlerFailed) -> None:
        with self._shift.life.transaction() as tx:
            before = self._standing(tx, plan.spec, occurrence)
            if before is not None:
                attempts.save(tx.connection, [(before, self._after_failure(plan.spec, before, error, tx))])

    def _standing(self, tx: Transaction, spec: ScheduleSpec, occurrence: str) -> Attempt | None:
        """The attempt, where it is ours to carry out now, under the schedule's lock."""
        if not marks.locked(tx, spec):
            return None
        mine = (table.c.app == spec.app, table.c.reaction == spec.name, table.c.record == RECORD, table.c.occurrence == occurrence)
        due = or_(and_(table.c.state == State.FAILED.value, table.c.next_at <= tx.now), _begun_by_us(self._shift))
        found = attempts.fetch(tx.connection, attempts.locked(tx.database, attempts.rows(*mine, due)))
        return found[0] if found else None

    def _begun(self, before: Attempt, tx: Transaction) -> Attempt:
        return careful.begun(self._shift.life, before, attempts.new_call(), tx.now, together=1)

    def _new(self, spec: ScheduleSpec, tick: datetime, tx: Transaction) -> Attempt:
        return attempts.new((spec.app, spec.name, RECORD, keys.instant(tick)), self._shift.life.id, tx.now)

    def _after_failure(self, spec: ScheduleSpec, before: Attempt, error: HandlerFailed, tx: Transaction) -> Attempt:
        words = self._shift.life.shorten(error.error)
        after = plain.failed_once_more(self._shift.life, spec.retry, before, words, tx.now)
        said = f"{words}; {which_try(spec.retry, after, tx.now)}"
        say_tick_failed(self._shift.life, spec.name, before.occurrence, said, error.cause)
        return after


def _begun_by_us(shift: Shift) -> ColumnElement[bool]:
    """Written before its handler ran, which then did not: the database was in trouble just between."""
    return and_(table.c.state == State.BEGUN.value, table.c.worker == shift.life.id)


def _handle(spec: ScheduleSpec, tx: Transaction, tick: datetime) -> None:
    """In a savepoint, which SQLAlchemy rolls back where a flush is refused: nobody may roll back our transaction itself.

    Raises HandlerFailed where its flush was refused, and what the handler raises as it is.
    """
    with tx.session.begin_nested():
        with handling.writes_by_its_session(spec, spec.handler, tx), user_code():
            spec.handler(session=tx.session, at=tx.moment(due=tick.astimezone(spec.timing.tzinfo)))
        handling.refuse_what_is_undone(tx)
        handling.flush(spec, tx, spec.handler)


def _of_the_tick(error: Exception) -> HandlerFailed:
    """What its handler did wrong. Raises what says nothing about it."""
    cause = error.cause if isinstance(error, HandlerFailed) else error
    if cause is not None and trouble.transient(cause):
        raise cause
    return error if isinstance(error, HandlerFailed) else HandlerFailed(f"the handler raised {describe(error)}{place_of(error)}", error)


def _stands(tx: Transaction, spec: ScheduleSpec, tick: datetime) -> bool:
    """Whether this tick has an attempt already, as where the mark was set back: that is tried again, or held, and the tick is its own."""
    mine = (table.c.app == spec.app, table.c.reaction == spec.name, table.c.record == RECORD, table.c.occurrence == keys.instant(tick))
    return tx.some_attempts and tx.connection.execute(select(table.c.app).where(*mine)).first() is not None


def _is_later(occurrence: str, mark: datetime | None) -> bool:
    """Whether a tick lies past the mark, which was set back: it is tried again once the mark has come to it."""
    try:
        return mark is not None and bool(keys.value_of(occurrence, datetime) > mark)
    except (ValueError, TypeError):
        return False
