"""Carries out the schedules of one worker. The handler of a tick runs in the transaction that moves the schedule's cursor (the time of its
last tick) to this tick.

If the handler fails, a failed attempt is written, with an empty record and the tick's time as its occurrence. The cursor moves on all the
same, and the failed tick is retried beside later ticks. Only the worker that has locked a schedule's row works on that schedule.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, and_, or_, select, union_all

from groundstate.engine.handle import poison_guard, run_batch, run_handler
from groundstate.engine.handle.run_handler import HandlerFailed
from groundstate.engine.rows import attempts
from groundstate.engine.rows.attempt_log import describe_try, log_tick_failed
from groundstate.engine.rows.corrupt_rows import WITHOUT_TIME
from groundstate.engine.schedule import cursors
from groundstate.engine.schedule.cursors import ScheduleCursor
from groundstate.engine.sql import db_errors, related_rows
from groundstate.engine.sql.db_errors import Illegible, RelatedRow, reading_own_rows
from groundstate.engine.sql.safe_text import describe_exception, running_user_code, where_raised
from groundstate.engine.sql.transaction import Transaction
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules import schedule
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.schedule import LeftOut, ScheduleSpec
from groundstate.store.tables import attempt as table
from groundstate.values import keys

log = logging.getLogger("groundstate")
RECORD = ""  # the attempt of a tick belongs to no record, so its column `record` holds this empty text
BUSY_S = 0.2  # seconds: how long to wait before the next try if another worker has locked the schedule's row
AHEAD = timedelta(seconds=1)  # a cursor that is further in the future than this is logged as an error


@dataclass
class _SchedulePlan:
    """What this worker knows of one schedule since it last read the schedule's row."""

    spec: ScheduleSpec
    mark: ScheduleCursor | None = None
    queue: deque[datetime] = field(default_factory=deque)  # the due ticks after the cursor, oldest first; several only with missed="all"
    told: str = ""  # the text of the last error logged about this schedule; empty if there is none
    not_before: float = 0.0
    trouble: int = 0
    left: bool = False  # whether a due tick or retry could not be carried out at the last try
    waits_for: str | None = None  # the database's error at the last try, as a text; None if there was none

    def note_row_is_busy(self) -> float:
        """Note that work is left to do, since another worker has the schedule's row locked or has just changed it. Return the seconds until
        the next try.
        """
        self.left = True
        return BUSY_S

    def log_error_unless_repeated(self, words: str) -> None:
        """Log this error about the schedule, unless its text is empty or equals the last one logged."""
        if words and words != self.told:
            log.error("%s", words, extra={"event": "schedule_stands", "schedule": self.spec.name})
        self.told = words


@dataclass(frozen=True)
class _StoredState:
    """What was read of all schedules in one transaction.

    Attributes:
        now: The time of the reading, by the database's clock.
        marks: The row of each schedule that has one, by the schedule's name.
        next_tries: For each schedule with a tick to retry: the pair (occurrence text of that tick, time of the retry).
    """

    now: datetime
    marks: dict[str, ScheduleCursor]
    next_tries: dict[str, tuple[str, datetime]]


class TickRunner:
    """Carries out the schedules of one worker. Only the thread that runs the worker's transactions may use it. `next` is the time at which
    the schedules' rows are to be read again, in monotonic seconds.
    """

    def __init__(self, worker_state: WorkerState, specs: Sequence[ScheduleSpec]) -> None:
        self._worker_state = worker_state
        self._specs = specs
        self._plans = [_SchedulePlan(spec) for spec in specs]
        self.next = 0.0 if specs else float("inf")
        self._enrolled = False  # whether the database's rows of schedules agree with the schedules that the application declares

    def reread_rows(self) -> None:
        """Make the next `run_due_ticks` read the schedules' rows again. Call it when the rows may have changed."""
        if self._specs:
            self.next = 0.0

    def forget_enrolment(self) -> None:
        """Make the next `run_due_ticks` insert the schedules' rows that are missing. Call it when rows may have been lost."""
        self._enrolled = False

    @property
    def last_error_text(self) -> str | None:
        """The database's error at the last try of a schedule, such as a full disk, with the schedule's name; None if no schedule has one.

        If another transaction has locked a row, this does not count as an error.
        """
        return next((f"schedule {plan.spec.name}: {plan.waits_for}" for plan in self._plans if plan.waits_for is not None), None)

    @property
    def has_due_tick(self) -> bool:
        """Whether a tick or a retry may be due, or was due and could not be carried out."""
        return self.next <= self._worker_state.clock.monotonic() or any(plan.left for plan in self._plans)

    def time_of_next_work(self) -> float:
        """Return when `run_due_ticks` is to be called next, in monotonic seconds; infinity while the worker is stopping."""
        return self.next if self._worker_state.stopping is None else float("inf")

    def run_due_ticks(self) -> None:
        """For each schedule, carry out at most one due tick, and retry at most one failed tick whose retry is due."""
        if self.next > self._worker_state.clock.monotonic():
            return
        if not self._enrolled:
            cursors.enrol_schedules(self._worker_state.incarnation, self._specs)
            self._enrolled = True
        seen = self._read_stored_state()
        began = self._worker_state.clock.monotonic()
        self.next = min(self._run_schedule(plan, seen, began) for plan in self._plans)

    def _run_schedule(self, plan: _SchedulePlan, seen: _StoredState, began: float) -> float:
        """Carry out what is due of one schedule, and return when to try this schedule again, in monotonic seconds. An error is caught, so
        that other schedules are carried out all the same; only Illegible is raised.
        """
        if plan.not_before > self._worker_state.clock.monotonic():
            return plan.not_before
        plan.left = False
        try:
            wait = self._carry_out(plan, seen)
        except Exception as error:
            self._postpone(plan, error)
            return plan.not_before
        plan.trouble, plan.waits_for = 0, None
        return began + wait if wait > 0 else 0.0

    def _postpone(self, plan: _SchedulePlan, error: Exception) -> None:
        """Log the error, and postpone the next try of the schedule. With each further error, the wait becomes longer."""
        plan.left = True
        plan.trouble = min(plan.trouble + 1, 8)
        plan.not_before = self._worker_state.clock.monotonic() + 0.05 * 2**plan.trouble
        plan.waits_for = None
        if isinstance(error, Illegible):
            raise error
        if db_errors.is_database_trouble(error):
            plan.waits_for = db_errors.error_in_one_line(error)
        if db_errors.is_no_fault_of_record(error):
            log.warning(
                "schedule %s waits for the database, and is tried again: %s",
                plan.spec.name,
                db_errors.error_in_one_line(error),
                extra={"event": "schedule_waits", "schedule": plan.spec.name},
            )
        else:
            log.error(
                "schedule %s failed, and is tried again",
                plan.spec.name,
                exc_info=error,
                extra={"event": "schedule_failed", "schedule": plan.spec.name},
            )

    # ---- reading which ticks and retries are due ---------------------------------------------------------------------------------
    def _read_stored_state(self) -> _StoredState:
        worker_state = self._worker_state
        with worker_state.database.reading() as connection:
            now = connection.execute(select(worker_state.database.now())).scalar_one()
            seen = cursors.read_cursors(connection, worker_state.app, self._specs)
            some = connection.execute(attempts.ANY).first() is not None
            return _StoredState(now, seen, self._next_retry_of_each_schedule(connection, now) if some else {})

    def _next_retry_of_each_schedule(self, connection: Connection, now: datetime) -> dict[str, tuple[str, datetime]]:
        """Return for each schedule with a tick to retry the pair (occurrence text of that tick, time of the retry)."""
        worker_state = self._worker_state
        names = [spec.name for spec in self._specs]
        mine = (table.c.app == worker_state.app, table.c.record == RECORD)
        with reading_own_rows():
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
            left = select(table.c.reaction, table.c.occurrence).where(*mine, table.c.reaction.in_(names), _is_begun_by_us(worker_state))
            return found | {row[0]: (row[1], now) for row in connection.execute(left)}

    def _carry_out(self, plan: _SchedulePlan, seen: _StoredState) -> float:
        """Carry out the due tick and the due retry of one schedule. Return the seconds until its next tick or retry; 0 means at once."""
        spec, waits = plan.spec, [float("inf")]
        mark = seen.marks.get(spec.name)
        at_mark = self._checked_cursor_time(plan, mark, seen.now)
        if mark is None:
            self._enrolled = False  # the schedule's row was deleted, so it must be inserted again
            waits.append(plan.note_row_is_busy())
        elif at_mark is not None:
            following = spec.timing.first_tick_after(at_mark)
            due = following <= seen.now
            waits.append(self._run_next_tick(plan, mark, at_mark, seen.now) if due else (following - seen.now).total_seconds())
        again = seen.next_tries.get(spec.name)
        if again is not None and not _is_after_cursor(again[0], at_mark):
            waits.append(self._retry_tick(plan, again[0]) if again[1] <= seen.now else (again[1] - seen.now).total_seconds())
        return min(waits)

    def _checked_cursor_time(self, plan: _SchedulePlan, mark: ScheduleCursor | None, now: datetime) -> datetime | None:
        """Return the time of the schedule's cursor, and log an error if the cursor is wrong. Return None if the row is missing, the cursor
        is no time, or other workers have enrolled another definition of the schedule.
        """
        name, words, at = plan.spec.name, "", None if mark is None else mark.moment
        if mark is None:
            return None
        if mark.words != plan.spec.as_text:
            words = (
                f"schedule {name} is carried out by workers with other code ({mark.words!r}), and not by this one ({plan.spec.as_text!r}):"
                " stop this worker, or start it again and stop those"
            )
        elif at is None:
            words = mark.illegible_message(name)
        elif at > now + AHEAD:
            words = (
                f"the mark of schedule {name}, {mark.written}, is ahead of the database's clock, and none of its ticks is carried out"
                f" before that time: if the clock was wrong, {cursors.cure_for_cursor(name)}"
            )
        plan.log_error_unless_repeated(words)
        return at if mark.words == plan.spec.as_text else None

    # ---- one tick ----------------------------------------------------------------------------------------------------------------
    def _run_next_tick(self, plan: _SchedulePlan, mark: ScheduleCursor, at_mark: datetime, now: datetime) -> float:
        """Carry out the schedule's next due tick, or skip missed ticks by its `missed=`. Return the seconds until the next try."""
        left_out = None
        if plan.mark != mark or not plan.queue:
            decision = schedule.decide_ticks(plan.spec, at_mark, now)
            plan.queue, left_out = deque(decision.run), decision.left_out
            if decision.mark is not None:
                return self._skip_ticks(plan, mark, decision.mark, left_out)
        tick = plan.queue[0]
        is_careful = self._worker_state.incarnation.care.careful
        moved = (self._begin_tick if is_careful else self._run_tick)(plan, mark, tick)
        if moved is None:
            plan.queue.clear()
            return plan.note_row_is_busy()
        plan.mark = moved
        plan.queue.popleft()
        self._note_progress(plan, left_out)
        return self._retry_tick(plan, keys.datetime_text(tick)) if is_careful else 0.0

    def _note_progress(self, plan: _SchedulePlan, left_out: LeftOut | None) -> None:
        """Count that the schedule's cursor was moved, and log the ticks that were left out, if any."""
        self._worker_state.progress.count_done(1)
        if left_out is not None:
            log.warning(
                "schedule %s: %s, by missed=%r",
                plan.spec.name,
                left_out.as_text,
                plan.spec.missed,
                extra={"event": "ticks_left_out", "schedule": plan.spec.name, "count": left_out.count},
            )

    def _skip_ticks(self, plan: _SchedulePlan, mark: ScheduleCursor, to: datetime, left_out: LeftOut | None) -> float:
        """Move the cursor to the time `to`, past ticks that are not carried out. Return the seconds until the next try."""
        with self._worker_state.incarnation.open_transaction() as tx:
            mine = cursors.lock_row_if_unchanged(tx, plan.spec, mark)
            if mine:
                cursors.move_cursor(tx, plan.spec, to)
        if not mine:
            return plan.note_row_is_busy()
        self._note_progress(plan, left_out)
        return 0.0

    def _run_tick(self, plan: _SchedulePlan, mark: ScheduleCursor, tick: datetime) -> ScheduleCursor | None:
        """Run the handler for a tick and move the cursor, in one transaction. If the handler fails, write a failed attempt and move the
        cursor, in another transaction.

        Return the schedule's row as it is then; None if another worker has locked or changed the row, so that nothing was done.
        """

        def run(first: frozenset[RelatedRow]) -> ScheduleCursor | None:
            with self._worker_state.incarnation.open_transaction() as tx:
                tx.lock_first(first)
                if not cursors.lock_row_if_unchanged(tx, plan.spec, mark):
                    return None
                if not _has_attempt(tx, plan.spec, tick):
                    _run_handler(plan.spec, tx, tick)
                return cursors.move_cursor(tx, plan.spec, tick)

        try:
            return related_rows.redo_lost_updates(run)
        except Exception as error:
            failed = _as_handler_failure(error)
        with self._worker_state.incarnation.open_transaction() as tx:
            if not cursors.lock_row_if_unchanged(tx, plan.spec, mark):
                return None
            attempts.insert_attempts(tx, [self._attempt_after_failure(plan.spec, self._new_attempt(plan.spec, tick, tx), failed, tx)])
            return cursors.move_cursor(tx, plan.spec, tick)

    def _begin_tick(self, plan: _SchedulePlan, mark: ScheduleCursor, tick: datetime) -> ScheduleCursor | None:
        """In careful mode, write an attempt for a tick before its handler runs, so that a tick that kills its worker is found (hazard 25).

        Return the schedule's row with the moved cursor; None if another worker has locked or changed the row, so that nothing was done.
        """
        with self._worker_state.incarnation.open_transaction() as tx:
            if not cursors.lock_row_if_unchanged(tx, plan.spec, mark):
                return None
            attempts.insert_attempts(tx, [self._begun_attempt(self._new_attempt(plan.spec, tick, tx), tx)])
            return cursors.move_cursor(tx, plan.spec, tick)

    # ---- retrying a tick that failed ---------------------------------------------------------------------------------------------
    def _retry_tick(self, plan: _SchedulePlan, occurrence: str) -> float:
        """Run the handler for a tick that has an attempt: a failed tick, or one begun in careful mode. Return the seconds until the next
        try.
        """
        spec, incarnation = plan.spec, self._worker_state.incarnation
        if incarnation.care.careful:
            with incarnation.open_transaction() as tx:
                before = self._lock_and_read_attempt(tx, spec, occurrence)
                if before is None:
                    return plan.note_row_is_busy()
                if before.state is not State.BEGUN:
                    attempts.update_attempts(tx.connection, [(before, self._begun_attempt(before, tx))])

        def run(first: frozenset[RelatedRow]) -> bool:
            with incarnation.open_transaction() as tx:
                tx.lock_first(first)
                before = self._lock_and_read_attempt(tx, spec, occurrence)
                if before is None:
                    return False
                _run_handler(spec, tx, keys.parse_value(occurrence, datetime))
                attempts.delete_attempts(tx.database, tx.connection, [before])
                return True

        try:
            if not related_rows.redo_lost_updates(run):
                return plan.note_row_is_busy()
        except Exception as error:
            self._note_failed_retry(plan, occurrence, _as_handler_failure(error))
        self._worker_state.progress.count_done(1)
        return 0.0

    def _note_failed_retry(self, plan: _SchedulePlan, occurrence: str, error: HandlerFailed) -> None:
        with self._worker_state.incarnation.open_transaction() as tx:
            before = self._lock_and_read_attempt(tx, plan.spec, occurrence)
            if before is not None:
                attempts.update_attempts(tx.connection, [(before, self._attempt_after_failure(plan.spec, before, error, tx))])

    def _lock_and_read_attempt(self, tx: Transaction, spec: ScheduleSpec, occurrence: str) -> Attempt | None:
        """Lock the schedule's row, and return the attempt of this tick. Return None if another worker has locked the row, or if this worker
        may not carry out the tick now.
        """
        if not cursors.lock_row(tx, spec):
            return None
        mine = (table.c.app == spec.app, table.c.reaction == spec.name, table.c.record == RECORD, table.c.occurrence == occurrence)
        due = or_(and_(table.c.state == State.FAILED.value, table.c.next_at <= tx.now), _is_begun_by_us(self._worker_state))
        found = attempts.fetch_attempts(tx.connection, attempts.lock_selected_rows(tx.database, attempts.select_attempts(*mine, due)))
        return found[0] if found else None

    def _begun_attempt(self, before: Attempt, tx: Transaction) -> Attempt:
        return poison_guard.begun_attempt(
            self._worker_state.incarnation, before, attempts.new_call_number(tx.database.dice), tx.now, together=1
        )

    def _new_attempt(self, spec: ScheduleSpec, tick: datetime, tx: Transaction) -> Attempt:
        identity = (spec.app, spec.name, RECORD, keys.datetime_text(tick))
        return attempts.new_attempt(identity, self._worker_state.incarnation.id, tx.now, dice=tx.database.dice)

    def _attempt_after_failure(self, spec: ScheduleSpec, before: Attempt, error: HandlerFailed, tx: Transaction) -> Attempt:
        """Log that the tick's handler failed, and return the attempt to be written: failed, or held after the last try."""
        words = self._worker_state.incarnation.shorten(error.error)
        after = run_batch.attempt_after_failed_try(self._worker_state.incarnation, spec.retry, before, words, tx.now)
        said = f"{words}; {describe_try(spec.retry, after, tx.now)}"
        log_tick_failed(self._worker_state.incarnation, spec.name, before.occurrence, said, error.cause)
        return after


def _is_begun_by_us(worker_state: WorkerState) -> ColumnElement[bool]:
    """Return the SQL condition for attempts that this worker has begun. If the database fails before a tick's handler runs, the tick's
    attempt is left in the state begun.
    """
    return and_(table.c.state == State.BEGUN.value, table.c.worker == worker_state.incarnation.id)


def _run_handler(spec: ScheduleSpec, tx: Transaction, tick: datetime) -> None:
    """Run a schedule's handler and flush its changes, in a savepoint. If the flush is refused, SQLAlchemy rolls back only the savepoint.

    Raises HandlerFailed if the flush was refused, or if the handler hid an error; an exception of the handler is raised unchanged.
    """
    with tx.session.begin_nested():
        with run_handler.allow_writes_by_session_only(spec, spec.handler, tx), running_user_code():
            try:
                returned = spec.handler(session=tx.session, ctx=tx.context_for(due=tick.astimezone(spec.timing.tzinfo)))
            except Exception as error:
                run_handler.raise_if_caused_by_swallowed_error(tx, error)
                raise
        run_handler.raise_if_refused_flush_was_caught(tx)
        run_handler.raise_if_error_was_swallowed(tx)
        run_handler.raise_if_result_is_unawaited(returned)
        run_handler.flush_changes(spec, tx, spec.handler)


def _as_handler_failure(error: Exception) -> HandlerFailed:
    """Return this exception of a tick's handler as a HandlerFailed. If the database's state caused it, such as a lost connection, raise
    that error again, since the handler did not fail.
    """
    cause = error.cause if isinstance(error, HandlerFailed) else error
    if cause is not None and db_errors.is_no_fault_of_record(cause):
        raise cause
    return (
        error
        if isinstance(error, HandlerFailed)
        else HandlerFailed(f"the handler raised {describe_exception(error)}{where_raised(error)}", error)
    )


def _has_attempt(tx: Transaction, spec: ScheduleSpec, tick: datetime) -> bool:
    """Return whether this tick already has an attempt, for example because a person set the cursor back. If so, the caller does not run the
    tick, since the attempt is retried or held anyway.
    """
    mine = (
        table.c.app == spec.app,
        table.c.reaction == spec.name,
        table.c.record == RECORD,
        table.c.occurrence == keys.datetime_text(tick),
    )
    return tx.some_attempts and tx.connection.execute(select(table.c.app).where(*mine)).first() is not None


def _is_after_cursor(occurrence: str, mark: datetime | None) -> bool:
    """Return whether the tick with this occurrence text lies after the cursor, for example because a person set the cursor back. The caller
    retries such a tick only once the cursor has reached it.
    """
    try:
        return mark is not None and bool(keys.parse_value(occurrence, datetime) > mark)
    except (ValueError, TypeError):
        return False
