"""Carries out the schedules of one worker: each tick runs in one transaction with the move of its schedule's cursor, then the worker sleeps
until the next.

A tick whose handler fails gets a failed attempt, with an empty record and the tick as its occurrence. The cursor moves past it, and it is
retried beside the ticks that follow. Only the worker that has locked the schedule's row works on the schedule.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, and_, or_, select, union_all

from groundstate.engine.handle import poison_guard, run_batch, run_handler
from groundstate.engine.handle.run_handler import HandlerFailed
from groundstate.engine.rows import attempts
from groundstate.engine.rows.attempt_log import say_tick_failed, which_try
from groundstate.engine.rows.corrupt_rows import WITHOUT_TIME
from groundstate.engine.schedule import cursors
from groundstate.engine.schedule.cursors import ScheduleCursor
from groundstate.engine.sql import db_errors, related_rows
from groundstate.engine.sql.db_errors import Illegible, Row, reading_ours
from groundstate.engine.sql.safe_text import describe, place_of, user_code
from groundstate.engine.sql.transaction import Transaction
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules import schedule
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.schedule import LeftOut, ScheduleSpec
from groundstate.store.tables import attempt as table
from groundstate.values import keys

log = logging.getLogger("groundstate")
RECORD = ""  # a tick's attempt has no record, so the text of its record is empty
BUSY_S = 0.2  # seconds: the wait after another worker had locked the schedule's row
AHEAD = timedelta(seconds=1)  # a cursor further than this in the future is logged as an error


@dataclass
class _Plan:
    """What this worker knows of one schedule since it last read its row."""

    spec: ScheduleSpec
    mark: ScheduleCursor | None = None
    queue: deque[datetime] = field(default_factory=deque)  # for missed="all": ticks after the cursor that are still to be carried out
    told: str = ""  # the last error logged about this schedule
    not_before: float = 0.0
    trouble: int = 0
    left: bool = False  # something was due, and could not be carried out at that time
    waits_for: str | None = None  # what the database was in trouble with at its last look, in words

    def busy(self) -> float:
        """Note that another worker has locked the row, or has carried out the tick; return the seconds until the next look."""
        self.left = True
        return BUSY_S

    def tell(self, words: str) -> None:
        """Log an error about this schedule, once, until the message changes."""
        if words and words != self.told:
            log.error("%s", words, extra={"event": "schedule_stands", "schedule": self.spec.name})
        self.told = words


@dataclass(frozen=True)
class _Seen:
    """The result of one look at the database. `next_tries` maps each schedule with failed ticks to the one that is retried
    first, and when.
    """

    now: datetime
    marks: dict[str, ScheduleCursor]
    next_tries: dict[str, tuple[str, datetime]]


class Ticks:
    """Carries out the schedules of one worker, in its transactions' thread only. `next` is when their rows are read again (monotonic
    seconds).
    """

    def __init__(self, worker_state: WorkerState, specs: Sequence[ScheduleSpec]) -> None:
        self._worker_state = worker_state
        self._specs = specs
        worker_state.schedules = [spec.name for spec in specs]
        self._plans = [_Plan(spec) for spec in specs]
        self.next = 0.0 if specs else float("inf")

    def look_again(self) -> None:
        """Make the next loop iteration read the schedules' rows again, since something may have changed."""
        if self._specs:
            self.next = 0.0

    @property
    def trouble(self) -> str | None:
        """What the database was in trouble with when a schedule was last looked at, such as a full disk; None where that went well.

        That another transaction holds a lock is no trouble of the database.
        """
        return next((f"schedule {plan.spec.name}: {plan.waits_for}" for plan in self._plans if plan.waits_for is not None), None)

    @property
    def wants(self) -> bool:
        """Whether a tick may be due."""
        return self.next <= time.monotonic() or any(plan.left for plan in self._plans)

    def wait_until(self) -> float:
        """Return when there is something to do, in monotonic seconds."""
        return self.next if self._worker_state.stopping is None else float("inf")

    def turn(self) -> None:
        """Carry out one tick, and one that failed before, of each schedule that has any due."""
        if self.next > time.monotonic():
            return
        if not self._worker_state.enrolled:
            cursors.enrol(self._worker_state.incarnation, self._specs)
            self._worker_state.enrolled = True
        seen = self._look()
        began = time.monotonic()
        self.next = min(self._at(plan, seen, began) for plan in self._plans)

    def _at(self, plan: _Plan, seen: _Seen, began: float) -> float:
        """Carry out what is due of one schedule, and return when to look again. Its errors do not affect other schedules."""
        if plan.not_before > time.monotonic():
            return plan.not_before
        plan.left = False
        try:
            wait = self._carry_out(plan, seen)
        except Exception as error:
            self._postpone(plan, error)
            return plan.not_before
        plan.trouble, plan.waits_for = 0, None
        return began + wait if wait > 0 else 0.0

    def _postpone(self, plan: _Plan, error: Exception) -> None:
        plan.left = True
        plan.trouble = min(plan.trouble + 1, 8)
        plan.not_before = time.monotonic() + 0.05 * 2**plan.trouble
        plan.waits_for = None
        if isinstance(error, Illegible):
            raise error
        if db_errors.of_the_database(error):
            plan.waits_for = db_errors.error_in_one_line(error)
        if db_errors.transient(error):
            log.warning(
                "schedule %s waits for the database, and is tried again: %s",
                plan.spec.name,
                db_errors.error_in_one_line(error),
                extra={"event": "schedule_waits", "schedule": plan.spec.name},
            )
        else:
            log.error(
                "schedule %s could not be looked at, tried again",
                plan.spec.name,
                exc_info=error,
                extra={"event": "schedule_failed", "schedule": plan.spec.name},
            )

    # ---- reading what is due -----------------------------------------------------------------------------------------------------
    def _look(self) -> _Seen:
        worker_state = self._worker_state
        with worker_state.database.reading() as connection:
            now = connection.execute(select(worker_state.database.now())).scalar_one()
            seen = cursors.read(connection, worker_state.app, self._specs)
            some = connection.execute(attempts.ANY).first() is not None
            return _Seen(now, seen, self._next_tries(connection, now) if some else {})

    def _next_tries(self, connection: Connection, now: datetime) -> dict[str, tuple[str, datetime]]:
        worker_state = self._worker_state
        names = [spec.name for spec in self._specs]
        mine = (table.c.app == worker_state.app, table.c.record == RECORD)
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
            left = select(table.c.reaction, table.c.occurrence).where(*mine, table.c.reaction.in_(names), _begun_by_us(worker_state))
            return found | {row[0]: (row[1], now) for row in connection.execute(left)}

    def _carry_out(self, plan: _Plan, seen: _Seen) -> float:
        """Carry out what is due of one schedule, and return the seconds until it has more to do; 0 means at once."""
        spec, waits = plan.spec, [float("inf")]
        mark = seen.marks.get(spec.name)
        at_mark = self._sound(plan, mark, seen.now)
        if mark is None:
            self._worker_state.enrolled = False  # the schedule's row was deleted, so it must be enrolled again
            waits.append(plan.busy())
        elif at_mark is not None:
            following = spec.timing.following(at_mark)
            due = following <= seen.now
            waits.append(self._tick(plan, mark, at_mark, seen.now) if due else (following - seen.now).total_seconds())
        again = seen.next_tries.get(spec.name)
        if again is not None and not _is_later(again[0], at_mark):
            waits.append(self._try_again(plan, again[0]) if again[1] <= seen.now else (again[1] - seen.now).total_seconds())
        return min(waits)

    def _sound(self, plan: _Plan, mark: ScheduleCursor | None, now: datetime) -> datetime | None:
        """Return the time of the schedule's cursor; None if nothing can be carried out by it, which is logged."""
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
                f" that: if the clock was wrong, {cursors.cure(name)}"
            )
        plan.tell(words)
        return at if mark.words == plan.spec.words else None

    # ---- one tick ----------------------------------------------------------------------------------------------------------------
    def _tick(self, plan: _Plan, mark: ScheduleCursor, at_mark: datetime, now: datetime) -> float:
        left_out = None
        if plan.mark != mark or not plan.queue:
            decision = schedule.decide(plan.spec, at_mark, now)
            plan.queue, left_out = deque(decision.run), decision.left_out
            if decision.mark is not None:
                return self._move(plan, mark, decision.mark, left_out)
        tick = plan.queue[0]
        is_careful = self._worker_state.incarnation.care.careful
        moved = (self._begin if is_careful else self._run)(plan, mark, tick)
        if moved is None:
            plan.queue.clear()
            return plan.busy()
        plan.mark = moved
        plan.queue.popleft()
        self._did(plan, left_out)
        return self._try_again(plan, keys.instant(tick)) if is_careful else 0.0

    def _did(self, plan: _Plan, left_out: LeftOut | None) -> None:
        self._worker_state.took += 1
        if left_out is not None:
            log.warning(
                "schedule %s: %s, by missed=%r",
                plan.spec.name,
                left_out.words,
                plan.spec.missed,
                extra={"event": "ticks_left_out", "schedule": plan.spec.name, "count": left_out.count},
            )

    def _move(self, plan: _Plan, mark: ScheduleCursor, to: datetime, left_out: LeftOut | None) -> float:
        """Move the cursor past ticks, none of which is carried out."""
        with self._worker_state.incarnation.transaction() as tx:
            mine = cursors.lock_row_if_unchanged(tx, plan.spec, mark)
            if mine:
                cursors.move(tx, plan.spec, to)
        if not mine:
            return plan.busy()
        self._did(plan, left_out)
        return 0.0

    def _run(self, plan: _Plan, mark: ScheduleCursor, tick: datetime) -> ScheduleCursor | None:
        """Carry out a tick and move the cursor in one transaction; if the handler fails, write its attempt and move the cursor. None:
        another worker has the row.
        """

        def run(first: frozenset[Row]) -> ScheduleCursor | None:
            with self._worker_state.incarnation.transaction() as tx:
                tx.lock_first(first)
                if not cursors.lock_row_if_unchanged(tx, plan.spec, mark):
                    return None
                if not _stands(tx, plan.spec, tick):
                    _handle(plan.spec, tx, tick)
                return cursors.move(tx, plan.spec, tick)

        try:
            return related_rows.redo_lost_updates(run)
        except Exception as error:
            failed = _of_the_tick(error)
        with self._worker_state.incarnation.transaction() as tx:
            if not cursors.lock_row_if_unchanged(tx, plan.spec, mark):
                return None
            attempts.insert(tx, [self._after_failure(plan.spec, self._new(plan.spec, tick, tx), failed, tx)])
            return cursors.move(tx, plan.spec, tick)

    def _begin(self, plan: _Plan, mark: ScheduleCursor, tick: datetime) -> ScheduleCursor | None:
        """Careful mode: write the attempt before the handler runs, so that a tick that kills its worker is found (hazard 25)."""
        with self._worker_state.incarnation.transaction() as tx:
            if not cursors.lock_row_if_unchanged(tx, plan.spec, mark):
                return None
            attempts.insert(tx, [self._begun(self._new(plan.spec, tick, tx), tx)])
            return cursors.move(tx, plan.spec, tick)

    # ---- retrying a tick that failed ---------------------------------------------------------------------------------------------
    def _try_again(self, plan: _Plan, occurrence: str) -> float:
        spec, incarnation = plan.spec, self._worker_state.incarnation
        if incarnation.care.careful:
            with incarnation.transaction() as tx:
                before = self._standing(tx, spec, occurrence)
                if before is None:
                    return plan.busy()
                if before.state is not State.BEGUN:
                    attempts.save(tx.connection, [(before, self._begun(before, tx))])

        def run(first: frozenset[Row]) -> bool:
            with incarnation.transaction() as tx:
                tx.lock_first(first)
                before = self._standing(tx, spec, occurrence)
                if before is None:
                    return False
                _handle(spec, tx, keys.value_of(occurrence, datetime))
                attempts.remove(tx.database, tx.connection, [before])
                return True

        try:
            if not related_rows.redo_lost_updates(run):
                return plan.busy()
        except Exception as error:
            self._failed_again(plan, occurrence, _of_the_tick(error))
        self._worker_state.took += 1
        return 0.0

    def _failed_again(self, plan: _Plan, occurrence: str, error: HandlerFailed) -> None:
        with self._worker_state.incarnation.transaction() as tx:
            before = self._standing(tx, plan.spec, occurrence)
            if before is not None:
                attempts.save(tx.connection, [(before, self._after_failure(plan.spec, before, error, tx))])

    def _standing(self, tx: Transaction, spec: ScheduleSpec, occurrence: str) -> Attempt | None:
        """Return the attempt of a tick if this worker may carry it out now, after locking the schedule's row; else None."""
        if not cursors.locked(tx, spec):
            return None
        mine = (table.c.app == spec.app, table.c.reaction == spec.name, table.c.record == RECORD, table.c.occurrence == occurrence)
        due = or_(and_(table.c.state == State.FAILED.value, table.c.next_at <= tx.now), _begun_by_us(self._worker_state))
        found = attempts.fetch(tx.connection, attempts.locked(tx.database, attempts.select_attempts(*mine, due)))
        return found[0] if found else None

    def _begun(self, before: Attempt, tx: Transaction) -> Attempt:
        return poison_guard.begun(self._worker_state.incarnation, before, attempts.new_call(), tx.now, together=1)

    def _new(self, spec: ScheduleSpec, tick: datetime, tx: Transaction) -> Attempt:
        return attempts.new_attempt((spec.app, spec.name, RECORD, keys.instant(tick)), self._worker_state.incarnation.id, tx.now)

    def _after_failure(self, spec: ScheduleSpec, before: Attempt, error: HandlerFailed, tx: Transaction) -> Attempt:
        words = self._worker_state.incarnation.shorten(error.error)
        after = run_batch.failed_once_more(self._worker_state.incarnation, spec.retry, before, words, tx.now)
        said = f"{words}; {which_try(spec.retry, after, tx.now)}"
        say_tick_failed(self._worker_state.incarnation, spec.name, before.occurrence, said, error.cause)
        return after


def _begun_by_us(worker_state: WorkerState) -> ColumnElement[bool]:
    """Return the condition for begun attempts of this worker whose handler did not run, because the database failed in between."""
    return and_(table.c.state == State.BEGUN.value, table.c.worker == worker_state.incarnation.id)


def _handle(spec: ScheduleSpec, tx: Transaction, tick: datetime) -> None:
    """Run a schedule's handler in a savepoint. If a flush is refused, SQLAlchemy rolls back that savepoint, and not our transaction.

    Raises HandlerFailed if its flush was refused; an exception of the handler is raised as it is.
    """
    with tx.session.begin_nested():
        with run_handler.writes_by_its_session(spec, spec.handler, tx), user_code():
            try:
                returned = spec.handler(session=tx.session, ctx=tx.moment(due=tick.astimezone(spec.timing.tzinfo)))
            except Exception as error:
                run_handler.refuse_what_came_after(tx, error)
                raise
        run_handler.refuse_what_is_undone(tx)
        run_handler.refuse_what_was_swallowed(tx)
        run_handler.refuse_unawaited(returned)
        run_handler.flush(spec, tx, spec.handler)


def _of_the_tick(error: Exception) -> HandlerFailed:
    """Return what the tick's handler did wrong, as HandlerFailed. An error of the database is not the handler's fault, and
    is raised again.
    """
    cause = error.cause if isinstance(error, HandlerFailed) else error
    if cause is not None and db_errors.transient(cause):
        raise cause
    return error if isinstance(error, HandlerFailed) else HandlerFailed(f"the handler raised {describe(error)}{place_of(error)}", error)


def _stands(tx: Transaction, spec: ScheduleSpec, tick: datetime) -> bool:
    """Whether this tick has an attempt already, as after the cursor was set back. Then that attempt is retried or held, and the tick is not
    run again here.
    """
    mine = (table.c.app == spec.app, table.c.reaction == spec.name, table.c.record == RECORD, table.c.occurrence == keys.instant(tick))
    return tx.some_attempts and tx.connection.execute(select(table.c.app).where(*mine)).first() is not None


def _is_later(occurrence: str, mark: datetime | None) -> bool:
    """Whether this tick lies after the cursor, as after the cursor was set back. Such a tick is retried once the cursor has reached it."""
    try:
        return mark is not None and bool(keys.value_of(occurrence, datetime) > mark)
    except (ValueError, TypeError):
        return False
