"""Timers for records that become due: a query reads the next due times, and the worker sleeps until then. Timers are kept in memory only.

One statement reads the next few due times of every reaction, with one index for each reaction. It runs at each sweep, when the last known
due time has passed, and soon after a session of this process wrote a column that determines a due time. Due times are times of the
database's clock; only the wait until a due time is measured by the monotonic clock. Each query also returns the records that became due
since the previous query, so that no record is missed between two queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import CompoundSelect, Connection, Integer, bindparam, literal_column, null, select, type_coerce, union_all

from groundstate.engine.sql import db_errors
from groundstate.engine.sql.due_expression import Timing, UtcDateTimeOrNone
from groundstate.engine.watch import locked_tables, missing_columns, raising_conditions, slow_conditions
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.median_cost import UsualDuration
from groundstate.rules.policy import LONG_AGO
from groundstate.store.tables import UtcDateTime

HORIZON = timedelta(hours=1)  # a query returns due times up to this far ahead; later ones are left to a later query
AT_ONCE = 32  # the most due times that one query returns for each reaction; a smaller number would need more queries
AGAIN_S = 0.01  # seconds: the least pause between two queries while due times are written
SHARE = 20  # factor: the pause between two queries is at least this many times the usual duration of a query
AFTER_S = 0.001  # seconds added to each timer, since a database's clock that counts milliseconds may be late by that much


class Timers:
    """The timers of one worker for records that become due. Only the worker's own thread calls it."""

    def __init__(self, worker_state: WorkerState) -> None:
        self._worker_state = worker_state
        self._stale = True
        self._not_before = 0.0
        self._cost = UsualDuration()
        # The queues that the statement queries, each with the version of its condition query, and the statement that was built for them.
        self._asks: tuple[list[tuple[WorkQueue, int]], Any] = ([], None)
        self._rung_until = LONG_AGO  # time of the database's clock; a backlog pass was begun for every record that was due by then
        self._said: list[datetime] = []  # times of the database's clock that the latest query returned

    def mark_stale(self) -> None:
        """Note that due times may have changed in the database, so that a loop iteration soon queries them again."""
        self._stale = True

    def begin_due_passes(self) -> None:
        """Begin a backlog pass for each queue with a record that is due now, and query the next due times if they are not known."""
        now = self._worker_state.clock.monotonic()
        for queue in self._queues_with_due_times():
            if queue.due_work.timers and now >= queue.due_work.timers[0]:
                queue.begin_due_pass(now)
                self._stale |= not queue.due_work.timers
        if self._stale and now >= self._not_before:
            self._query_due_times()

    def next_wake_time(self) -> float | None:
        """Return the monotonic time at which the next record is due or due times are queried again, whichever comes first. Return None if
        neither is expected.
        """
        times = [queue.due_work.timers[0] for queue in self._queues_with_due_times() if queue.due_work.timers]
        if self._stale and self._has_queues_with_timing():
            times.append(self._not_before)
        return min(times, default=None)

    def _queues_with_due_times(self) -> list[WorkQueue]:
        return [
            queue
            for queue in self._worker_state.all_queues
            if queue.query.timing is not None
            and queue.is_enabled
            and not (queue.postponement.cannot_be_queried or queue.rows.aside or queue.postponement.search)
        ]

    def _has_queues_with_timing(self) -> bool:
        return any(queue.query.timing is not None and queue.is_enabled for queue in self._worker_state.queues)

    def _query_due_times(self) -> None:
        queues = self._queues_with_due_times()
        if not queues:
            self._stale = False
            return
        started, since, self._said = self._worker_state.clock.monotonic(), self._rung_until, []
        with self._worker_state.database.reading(wait=locked_tables.WAIT) as connection:
            waits = self._seconds_until_due(connection, queues)
        asked = self._worker_state.clock.monotonic()
        self._rung_until = min(self._said, default=since)
        # If the database's clock went back, the result lacks the due times between its present and its former time, so query again.
        self._stale = self._rung_until < since
        for queue, some in zip(queues, waits, strict=True):
            # The wait counts from the arrival of the answer. If it counted from the query, a timer could fire too early, and would not fire
            # again.
            queue.due_work.set_timers([asked + max(wait_s, 0.0) + AFTER_S for wait_s in some])
        self._not_before = asked + max(AGAIN_S, self._cost.record(asked - started) * SHARE)

    def _seconds_until_due(self, connection: Connection, queues: list[WorkQueue]) -> list[list[float]]:
        """Return one list per queue: the seconds until each of its next records is due, soonest first; empty if none is known."""
        try:
            allowed_s = max(slow_conditions.LIMIT_S, slow_conditions.LIMIT_TIMES * self._cost.seconds)
            with self._worker_state.database.limit_statement(connection, allowed_s), connection.begin_nested():
                return self._run_statement(connection, queues)
        except Exception as error:
            if not (db_errors.is_fault_of_statement(error) or db_errors.is_lock_timeout(error) or db_errors.is_cancelled_statement(error)):
                raise
            if len(queues) == 1 and slow_conditions.move_aside_if_cut(queues[0], error):
                return [[]]
            if len(queues) == 1 and db_errors.is_lock_timeout(error):
                locked_tables.bar_queue(self._worker_state, queues[0])
                return [[]]
            if len(queues) == 1 and (
                missing_columns.wait_if_schema_misfit(self._worker_state, queues[0], error)
                or raising_conditions.search_if_condition_raised(self._worker_state, queues[0], error)
            ):
                return [[]]
            if len(queues) == 1:
                queues[0].postpone_after_error()
                raising_conditions.log_condition_error(queues[0], error, " for its next due time")
                return [[]]
            # One of the queues makes the common statement fail, so each queue gets a statement of its own.
            return [waits for queue in queues for waits in self._seconds_until_due(connection, [queue])]

    def _run_statement(self, connection: Connection, queues: list[WorkQueue]) -> list[list[float]]:
        which = [(queue, queue.query.version) for queue in queues]
        if self._asks[0] != which:
            self._asks = (which, self._build_statement(queues))
        found: list[list[float]] = [[] for _ in queues]
        since = {_parameter_name(number): _timing_of(queue).base_time_for(self._rung_until) for number, queue in enumerate(queues)}
        for number, base, now in connection.execute(self._asks[1], since):
            if number < 0:
                self._said.append(now)
            elif base is not None:  # None: the value in the column is no time
                found[number].append((_timing_of(queues[number]).takeable_from(base) - now).total_seconds())
        return [sorted(some) for some in found]

    def _build_statement(self, queues: Sequence[WorkQueue]) -> CompoundSelect[Any]:
        now = self._worker_state.database.now()
        parts = [
            queue.query.selects.select_next_base_times(HORIZON, AT_ONCE, bindparam(_parameter_name(number), type_=UtcDateTime())).subquery()
            for number, queue in enumerate(queues)
        ]
        asked = select(literal_column("-1", Integer), type_coerce(null(), UtcDateTimeOrNone()), now)
        return union_all(asked, *[select(literal_column(str(n), Integer), part.c.at, now) for n, part in enumerate(parts)])


def _timing_of(queue: WorkQueue) -> Timing:
    timing = queue.query.timing
    assert timing is not None  # noqa: S101  # only queues with a timing are asked
    return timing


def _parameter_name(number: int) -> str:
    return f"rung_until_{number}"
