"""Queries that run before a worker locks anything: whether a new backlog pass (a walk over all rows that match) has any row to carry out,
and which rows were written during a long pass.

Most passes find no row, so it would be wrong to lock anything for them. The queries only read. If a condition cannot be queried, only its
queue waits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, exists, literal_column, select
from sqlalchemy.exc import DBAPIError

from groundstate.engine.rows import attempts
from groundstate.engine.sql import db_errors
from groundstate.engine.watch import locked_tables, missing_columns, raising_conditions, slow_conditions
from groundstate.engine.watch.due_timers import Timers
from groundstate.engine.watch.sweep_leader import SweepLeader
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState

T = TypeVar("T")
NEWEST_AT_ONCE = 50  # number of newest rows that are queued at once during a long pass
TOGETHER_FROM = 4  # if at least this many conditions have to be queried, one statement queries all of them
# Seconds for which one loop iteration may query conditions one by one; the other conditions wait for the next iteration.
TOGETHER_S = 1.0
TOGETHER_MOST = 128  # the most conditions in one statement, since the database has to plan all of them at once
APART_S = 60.0  # seconds: after a common statement failed, each condition has a statement of its own for this long


class BacklogProbe:
    """Runs the queries that one worker sends before it locks anything. Only the worker's own thread calls it."""

    def __init__(self, worker_state: WorkerState, leader: SweepLeader, timers: Timers) -> None:
        self._worker_state = worker_state
        self._leader = leader
        self._timers = timers
        self._together: dict[tuple[tuple[WorkQueue, int], ...], Any] = {}
        self._apart_until = 0.0
        self.took_s = 0.0  # seconds spent in `probe_new_passes` since `Sweeps` last set this to 0

    def probe_new_passes(self) -> None:
        """Move hints into the work queues, and end each new backlog pass for which a query finds no row to carry out."""
        started = self._worker_state.clock.monotonic()
        for queue in self._worker_state.all_queues:
            if queue.rows.take_over_hints() and queue.query.timing is not None:
                self._timers.mark_stale()
            postponement = queue.postponement
            if queue.rows.newest and queue.is_enabled and not postponement.cannot_be_queried and postponement.search is None:
                self._queue_newest_rows(queue)
        self._probe_before_locking()
        self.took_s += self._worker_state.clock.monotonic() - started

    def _probe_before_locking(self) -> None:
        now = self._worker_state.clock.monotonic()
        beginning = [
            queue
            for queue in self._worker_state.all_queues
            if queue.has_pass and not queue.rows.probed and queue.postponement.not_before <= now
        ]
        due_lanes = [queue for queue in self._worker_state.queues if queue.due_work.has_due_attempts]
        if not beginning and not due_lanes:
            return
        try:
            with self._worker_state.database.reading(wait=locked_tables.WAIT) as connection:
                if due_lanes and connection.execute(attempts.ANY).first() is None:
                    for queue in due_lanes:
                        queue.due_work.note_no_more_attempts()
                self._query_for_rows_to_take(connection, beginning)
        except Exception as error:
            its_own = db_errors.is_fault_of_statement(error) or db_errors.is_lock_timeout(error) or db_errors.is_cancelled_statement(error)
            if not its_own or now < self._apart_until:
                raise
            # One of the conditions fails or takes long. From now on each condition has a statement of its own, to find out which condition
            # it is.
            self._apart_until = now + APART_S

    def _query_for_rows_to_take(self, connection: Connection, beginning: list[WorkQueue]) -> None:
        apart = self._worker_state.clock.monotonic() < self._apart_until
        plain = [] if apart else [queue for queue in beginning if queue.rows.groups is None]
        if len(plain) < TOGETHER_FROM:
            plain = []
        for first in range(0, len(plain), TOGETHER_MOST):
            some = tuple(plain[first : first + TOGETHER_MOST])
            began = self._worker_state.clock.monotonic()
            with self._worker_state.database.limit_statement(connection, max(map(slow_conditions.condition_limit_s, some))):
                row = connection.execute(self._build_common_statement(some)).one()
            for queue, found in zip(some, row, strict=True):
                queue.rows.record_query_duration((self._worker_state.clock.monotonic() - began) / len(some))
                self._note_probe_result(connection, queue, found=bool(found))
        asked, began = set(plain), self._worker_state.clock.monotonic()
        for queue in beginning:
            if queue in asked:
                continue
            rows = self._query_or_postpone_queue(queue, connection, partial(queue.find_row_to_take, connection))
            if rows is None or self._worker_state.clock.monotonic() - began > TOGETHER_S:
                return
            self._note_probe_result(connection, queue, found=bool(rows))

    def _note_probe_result(self, connection: Connection, queue: WorkQueue, *, found: bool) -> None:
        if not found:
            queue.rows.end_pass()
            return
        queue.rows.note_rows_found()
        if queue.rows.elsewhere:
            size = self._leader.worker_count
            self._query_or_postpone_queue(
                queue, connection, lambda: queue.skip_batches(connection, self._worker_state.incarnation.dice.randrange(size))
            )

    def _build_common_statement(self, some: tuple[WorkQueue, ...]) -> Any:
        """Return a statement whose result is one row, with one column per work queue: whether a backlog pass would find a row to take."""
        which = tuple((queue, queue.query.version) for queue in some)
        made = self._together.get(which)
        if made is None:
            if len(self._together) > TOGETHER_MOST:
                self._together.clear()
            one: Any = literal_column("1")
            each = [exists(select(one).select_from(queue.query.entity).where(queue.query.is_takeable)) for queue in some]
            made = self._together[which] = select(*[found.label(f"found_{number}") for number, found in enumerate(each)])
        return made

    def _query_or_postpone_queue(self, queue: WorkQueue, connection: Connection, ask: Callable[[], T]) -> T | None:
        """Call `ask`, which queries this queue's condition, and return its result. If it fails, postpone the queue and return None."""
        try:
            with slow_conditions.limit_query_time(self._worker_state, queue, connection):
                return ask()
        except Exception as error:
            if not (isinstance(error, DBAPIError) or db_errors.is_raised_before_sending(error) or db_errors.is_record_load_error(error)):
                raise
            if slow_conditions.move_aside_if_cut(queue, error):
                return None
            if db_errors.is_lock_timeout(error):
                locked_tables.bar_queues_on_locked_tables(self._worker_state, [queue])
                return None
            if db_errors.is_no_fault_of_record(error):
                raise
            if missing_columns.wait_if_schema_misfit(self._worker_state, queue, error) or raising_conditions.search_if_condition_raised(
                self._worker_state, queue, error
            ):
                return None
            queue.postpone_after_error()
            raising_conditions.log_condition_error(queue, error)
            return None

    def _queue_newest_rows(self, queue: WorkQueue) -> None:
        """Queue the rows with the highest keys. They were probably written last, and a long backlog pass, which goes in key order, would
        reach them last.
        """
        queue.rows.note_newest_queried()
        with self._worker_state.database.reading(wait=locked_tables.WAIT) as connection:
            newest = queue.query.selects.select_cursors_after(None, NEWEST_AT_ONCE, crowded=True, newest=True)
            rows = self._query_or_postpone_queue(queue, connection, lambda: connection.execute(newest).all())
            queue.rows.add_fresh_keys(queue.query.cursors.key_in_cursor(tuple(row)) for row in rows or ())
