"""What a worker reads before it locks anything: whether a pass that begins has any row to take, and rows written during a long pass.

Most passes find nothing, and must not lock for that. It only reads; a queue whose condition cannot be asked waits, and the others go on.
"""

from __future__ import annotations

import time
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
from groundstate.engine.watch.worker_state import WorkerState, postpone

T = TypeVar("T")
NEWEST_AT_ONCE = 50
TOGETHER_FROM = 4  # from this many conditions on, one statement asks all of them
TOGETHER_S = 1.0  # seconds for which conditions are asked one by one; the others follow in the next loop iteration
TOGETHER_MOST = 128  # the most conditions in one statement, since the database plans all of them at once
APART_S = 60.0  # seconds for which each condition is asked alone, after the common statement failed


class Peek:
    """The reads of one worker before it locks. Only the worker's own thread calls it."""

    def __init__(self, worker_state: WorkerState, leader: SweepLeader, timers: Timers) -> None:
        self._worker_state = worker_state
        self._leader = leader
        self._timers = timers
        self._together: dict[tuple[tuple[WorkQueue, int], ...], Any] = {}
        self._apart_until = 0.0
        self.took_s = 0.0  # seconds spent in `turn` since `Sweeps` last set this to 0

    def turn(self) -> None:
        """Move hints into the work queues, and check whether the backlog passes that a sweep began have any row to take."""
        started = time.monotonic()
        for queue in self._worker_state.parts:
            if queue.listen() and queue.query.timing is not None:
                self._timers.heard()
            if queue.newest and queue.on and queue.lacks is None and queue.barred is None and queue.search is None:
                self._look_at_newest(queue)
        self._look_before_locking()
        self.took_s += time.monotonic() - started

    def _look_before_locking(self) -> None:
        now = time.monotonic()
        beginning = [queue for queue in self._worker_state.parts if queue.passes and not queue.probed and queue.not_before <= now]
        due_lanes = [queue for queue in self._worker_state.queues if queue.due]
        if not beginning and not due_lanes:
            return
        try:
            with self._worker_state.database.reading(wait=locked_tables.WAIT) as connection:
                if due_lanes and connection.execute(attempts.ANY).first() is None:
                    for queue in due_lanes:
                        queue.due, queue.due_cursor = False, None
                self._look_at(connection, beginning)
        except Exception as error:
            its_own = db_errors.is_its_own(error) or db_errors.locked(error) or db_errors.statement_was_cancelled(error)
            if not its_own or now < self._apart_until:
                raise
            # One condition fails or takes long. Asking each alone shows which.
            self._apart_until = now + APART_S

    def _look_at(self, connection: Connection, beginning: list[WorkQueue]) -> None:
        apart = time.monotonic() < self._apart_until
        plain = [] if apart else [queue for queue in beginning if queue.groups is None]
        if len(plain) < TOGETHER_FROM:
            plain = []
        for first in range(0, len(plain), TOGETHER_MOST):
            some = tuple(plain[first : first + TOGETHER_MOST])
            began = time.monotonic()
            with self._worker_state.database.limit(connection, max(map(slow_conditions.limit_s, some))):
                row = connection.execute(self._of_all(some)).one()
            for queue, found in zip(some, row, strict=True):
                queue.asking.took((time.monotonic() - began) / len(some))
                self._looked_at(connection, queue, found=bool(found))
        asked, began = set(plain), time.monotonic()
        for queue in beginning:
            if queue in asked:
                continue
            rows = self._asked(queue, connection, partial(queue.probe, connection))
            if rows is None or time.monotonic() - began > TOGETHER_S:
                return
            self._looked_at(connection, queue, found=bool(rows))

    def _looked_at(self, connection: Connection, queue: WorkQueue, *, found: bool) -> None:
        queue.probed = True
        if not found:
            queue.swept()
        elif queue.elsewhere:
            size = self._leader.size
            self._asked(queue, connection, lambda: queue.begin_elsewhere(connection, self._worker_state.incarnation.dice.randrange(size)))

    def _of_all(self, some: tuple[WorkQueue, ...]) -> Any:
        """Build a statement with one result row: for each work queue, whether there is a row that a backlog pass would take."""
        which = tuple((queue, queue.query.version) for queue in some)
        made = self._together.get(which)
        if made is None:
            if len(self._together) > TOGETHER_MOST:
                self._together.clear()
            one: Any = literal_column("1")
            each = [exists(select(one).select_from(queue.query.entity).where(queue.query.takeable)) for queue in some]
            made = self._together[which] = select(*[found.label(f"found_{number}") for number, found in enumerate(each)])
        return made

    def _asked(self, queue: WorkQueue, connection: Connection, ask: Callable[[], T]) -> T | None:
        """Return the query's result, or None if this queue's condition cannot be asked: this queue waits, and the others go on."""
        try:
            with slow_conditions.limited(self._worker_state, queue, connection):
                return ask()
        except Exception as error:
            if not (isinstance(error, DBAPIError) or db_errors.unmade(error) or db_errors.unloadable(error)):
                raise
            if slow_conditions.move_aside_if_cut(queue, error):
                return None
            if db_errors.locked(error):
                locked_tables.are_barred(self._worker_state, [queue])
                return None
            if db_errors.transient(error):
                raise
            if missing_columns.wait_if_schema_misfit(self._worker_state, queue, error) or raising_conditions.search_if_condition_raised(
                self._worker_state, queue, error
            ):
                return None
            postpone(queue)
            raising_conditions.say_failed(queue, error)
            return None

    def _look_at_newest(self, queue: WorkQueue) -> None:
        """Queue rows that other processes have just written, while a long backlog is gone through in key order: they must not wait for its
        end.
        """
        queue.newest = False
        with self._worker_state.database.reading(wait=locked_tables.WAIT) as connection:
            newest = queue.query.places_after(None, NEWEST_AT_ONCE, crowded=True, newest=True)
            rows = self._asked(queue, connection, lambda: connection.execute(newest).all())
            queue.fresh.update(dict.fromkeys(queue.query.key_in(tuple(row)) for row in rows or ()))
