"""When the next record becomes due: the database is asked, and the worker sleeps until then. All of it is in memory and may be lost.

One statement asks for the next few due times of all reactions, each by its index. It runs at each sweep, when the last known due time has
passed, and soon after a session of this process wrote columns of a due time. Only the time until then is measured by the monotonic clock.
Records that became due since the previous query are in the result and start a pass at once, so that none is lost between two queries.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import CompoundSelect, Connection, Integer, bindparam, literal_column, null, select, type_coerce, union_all

from groundstate.engine.sql import db_errors
from groundstate.engine.sql.due_expression import Timing, UtcDateTimeIfAny
from groundstate.engine.watch import locked_tables, missing_columns, raising_conditions, slow_conditions
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState, postpone
from groundstate.rules.median_cost import Usual
from groundstate.rules.policy import LONG_AGO
from groundstate.store.tables import UtcDateTime

HORIZON = timedelta(hours=1)  # later due times are left to a later query
AT_ONCE = 32  # due times that one query returns for each reaction, so that close ones need no query between them
AGAIN_S = 0.01  # seconds: least pause between two queries when something was written
SHARE = 20  # the pause between two queries is at least this many times their usual duration
AFTER_S = 0.001  # seconds added to each timer: a clock read in milliseconds may be late by that much


class Timers:
    """The timers of one worker for records that become due. Only the worker's own thread calls it."""

    def __init__(self, worker_state: WorkerState) -> None:
        self._worker_state = worker_state
        self._stale = True
        self._not_before = 0.0
        self._cost = Usual()
        # The queues asked, with the version of each, and the statement for them.
        self._asks: tuple[list[tuple[WorkQueue, int]], Any] = ([], None)
        self._rung_until = LONG_AGO  # by the database's clock: records that became due before this have begun a pass
        self._said: list[datetime] = []  # the values of the database's clock during the query

    def heard(self) -> None:
        """Note that columns of a due time may have been written, so that a loop iteration soon asks the database again."""
        self._stale = True

    def turn(self) -> None:
        """Begin backlog passes for records that are due now, and query the next due times if they are not known."""
        now = time.monotonic()
        for queue in self._timed():
            if queue.timers and now >= queue.timers[0]:
                queue.ring(now)
                self._stale |= not queue.timers
        if self._stale and now >= self._not_before:
            self._ask()

    def wait_until(self) -> float | None:
        """Return the monotonic time at which `turn` has something to do, or None if there is nothing."""
        times = [queue.timers[0] for queue in self._timed() if queue.timers]
        if self._stale and self._asks_any():
            times.append(self._not_before)
        return min(times, default=None)

    def _timed(self) -> list[WorkQueue]:
        return [
            queue
            for queue in self._worker_state.parts
            if queue.query.timing is not None and queue.on and not (queue.barred is not None or queue.lacks or queue.aside or queue.search)
        ]

    def _asks_any(self) -> bool:
        return any(queue.query.timing is not None and queue.on for queue in self._worker_state.queues)

    def _ask(self) -> None:
        queues = self._timed()
        if not queues:
            self._stale = False
            return
        started, since, self._said = time.monotonic(), self._rung_until, []
        with self._worker_state.database.reading(wait=locked_tables.WAIT) as connection:
            waits = self._waits(connection, queues)
        asked = time.monotonic()
        self._rung_until = min(self._said, default=since)
        self._stale = self._rung_until < since  # the database's clock went back: due times in between were not asked for
        for queue, some in zip(queues, waits, strict=True):
            # Counted from the answer, not from the query: a timer that fires too early would not fire again.
            queue.timers = [asked + max(wait_s, 0.0) + AFTER_S for wait_s in some]
        self._not_before = asked + max(AGAIN_S, self._cost.took(asked - started) * SHARE)

    def _waits(self, connection: Connection, queues: list[WorkQueue]) -> list[list[float]]:
        """Return for each queue the seconds until its next records are due; the list of a queue is empty if none is in sight."""
        try:
            allowed_s = max(slow_conditions.LIMIT_S, slow_conditions.LIMIT_TIMES * self._cost.seconds)
            with self._worker_state.database.limit(connection, allowed_s), connection.begin_nested():
                return self._asked(connection, queues)
        except Exception as error:
            if not (db_errors.is_its_own(error) or db_errors.locked(error) or db_errors.statement_was_cancelled(error)):
                raise
            if len(queues) == 1 and slow_conditions.move_aside_if_cut(queues[0], error):
                return [[]]
            if len(queues) == 1 and db_errors.locked(error):
                locked_tables.bar(self._worker_state, queues[0])
                return [[]]
            if len(queues) == 1 and (
                missing_columns.wait_if_schema_misfit(self._worker_state, queues[0], error)
                or raising_conditions.search_if_condition_raised(self._worker_state, queues[0], error)
            ):
                return [[]]
            if len(queues) == 1:
                postpone(queues[0])
                raising_conditions.say_failed(queues[0], error, " when it is due next")
                return [[]]
            # One queue makes the statement fail, so each is asked alone.
            return [waits for queue in queues for waits in self._waits(connection, [queue])]

    def _asked(self, connection: Connection, queues: list[WorkQueue]) -> list[list[float]]:
        which = [(queue, queue.query.version) for queue in queues]
        if self._asks[0] != which:
            self._asks = (which, self._statement(queues))
        found: list[list[float]] = [[] for _ in queues]
        since = {_since(number): _timing(queue).base_of(self._rung_until) for number, queue in enumerate(queues)}
        for number, base, now in connection.execute(self._asks[1], since):
            if number < 0:
                self._said.append(now)
            elif base is not None:  # None: the value in the column is no time
                found[number].append((_timing(queues[number]).begins(base) - now).total_seconds())
        return [sorted(some) for some in found]

    def _statement(self, queues: Sequence[WorkQueue]) -> CompoundSelect[Any]:
        now = self._worker_state.database.now()
        parts = [
            queue.query.next_due(HORIZON, AT_ONCE, bindparam(_since(number), type_=UtcDateTime())).subquery()
            for number, queue in enumerate(queues)
        ]
        asked = select(literal_column("-1", Integer), type_coerce(null(), UtcDateTimeIfAny()), now)
        return union_all(asked, *[select(literal_column(str(n), Integer), part.c.at, now) for n, part in enumerate(parts)])


def _timing(queue: WorkQueue) -> Timing:
    timing = queue.query.timing
    assert timing is not None  # noqa: S101  # only queues with a timing are asked
    return timing


def _since(number: int) -> str:
    return f"rung_until_{number}"
