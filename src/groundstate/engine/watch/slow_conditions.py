"""Uses separate threads and connections to query conditions that take long, so that the other reactions go on meanwhile.

In the worker's own thread, the query of a condition is cancelled after a short time limit. From then on a separate thread queries this
condition for keys only, and the keys are queued like keys from hints. Each cancellation in the separate thread doubles the time limit; once
the limit would exceed some minutes, there is no limit. Keys from hints are still looked up in the worker's own thread, fewer at a time
after each cancellation. If the lookup of a single key is cancelled, this key waits until the separate thread finds it.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection

from groundstate.engine.sql import db_errors
from groundstate.engine.sql.pass_cursors import PassCursor
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.store.statement_timeouts import Limit

log = logging.getLogger("groundstate")
LIMIT_S = 1.0  # seconds: the least time limit for one query of a condition in the worker's own thread
LIMIT_TIMES = 20  # factor: a condition's time limit is at least this many times the usual duration of its query
CLAIM_TIMES = 5  # factor on a condition's time limit for a query that also locks and loads the records
LIMIT_MOST_S = 300.0  # seconds: the longest time limit in a separate thread; after that, a condition has no time limit
FEWER = 8  # divisor: after a lookup of keys was cancelled, the number of keys in the next lookup is divided by this
# Factor: after a cancelled lookup, the reaction waits this many times the duration of the lookup, so that others get most of the time.
REST_TIMES = 4
KEYS_AT_ONCE = 1_000
# The most keys per query for a reaction with a call and `in_order` or `per`, since keys that have to wait are queried again later.
KEYS_FEW = 50


def condition_limit_s(queue: WorkQueue) -> float:
    """Return how many seconds one query of this condition may take in the worker's own thread."""
    return max(LIMIT_S, LIMIT_TIMES * queue.rows.usual_query_s)


def claim_limit_s(queue: WorkQueue) -> float:
    """Return how many seconds a query of this condition that also locks and loads the records may take in the worker's own thread."""
    return CLAIM_TIMES * condition_limit_s(queue)


@contextmanager
def limit_query_time(worker_state: WorkerState, queue: WorkQueue, connection: Connection) -> Iterator[None]:
    """Limit how long one query of a condition may take in the `with` block, and record how long it took. A query that takes longer is
    cancelled, and raises an error for which `db_errors.is_cancelled_statement` is True.
    """
    began = worker_state.clock.monotonic()
    with worker_state.database.limit_statement(connection, condition_limit_s(queue)):
        yield
    queue.rows.record_query_duration(worker_state.clock.monotonic() - began)


def move_aside_if_cut(queue: WorkQueue, error: BaseException | None) -> bool:
    """Return whether the error says that a query was cancelled since it took too long. If so, let a separate thread query this queue's
    condition from now on.
    """
    if error is None or not db_errors.is_cancelled_statement(error):
        return False
    if not queue.rows.aside:
        log.warning(
            "%s: the query of its condition takes longer than %.1f s: from now on it runs beside the others, which go on, and its rows"
            " are found late where no hint tells of them. `groundstate check` says which index it lacks",
            queue.name,
            condition_limit_s(queue),
            extra={"event": "condition_slow", "reaction": queue.name},
        )
    queue.rows.move_query_aside()
    return True


def take_fewer_keys(queue: WorkQueue, keys: Sequence[PrimaryKey], took_s: float) -> None:
    """Queue these keys again after their lookup was cancelled, and make the next lookups smaller. If there was a single key, it is dropped:
    a backlog pass in a separate thread finds its record.

    took_s: seconds that the lookup took.
    """
    queue.rows.limit_next_batch(len(keys) // FEWER)
    if len(keys) > 1:
        queue.rows.put_keys_first(keys)
    else:
        queue.rows.request_pass()
    queue.postponement.postpone_until(queue.query.database.clock.monotonic() + REST_TIMES * took_s)


@dataclass
class _SeparateQuery:
    """One query in a separate thread, with its result. The separate thread writes the result; the worker's own thread reads it once `ended`
    is True.
    """

    allowed_s: float  # seconds after which the query is cancelled
    limit: Limit | None = None  # cancels the query; None before it begins
    ended: bool = False
    took_s: float = 0.0  # seconds that the query took
    keys: Sequence[PrimaryKey] = ()  # keys that it found
    cursor: PassCursor | None = None  # the row after which the backlog pass goes on; None: the pass has ended
    error: BaseException | None = None  # the error that ended the query; None if there was none


@dataclass
class _QueueProgress:
    """The state of one work queue whose condition is queried in separate threads."""

    allowed_s: float = 2 * LIMIT_S  # seconds that the next query may take
    look: _SeparateQuery | None = None  # the query that runs, or whose result was not taken over yet; None if there is none
    not_before: float = 0.0  # monotonic time before which no further query begins


@dataclass
class SeparateQueries:
    """Runs the slow queries of one worker in separate threads. Only the worker's own thread calls the methods. wake: a separate thread
    calls this function when its query has ended.
    """

    worker_state: WorkerState
    wake: Callable[[], None]
    _queues: dict[WorkQueue, _QueueProgress] = field(default_factory=dict)

    def run_separate_queries(self) -> None:
        """Take over the results of separate threads that have ended, and start further threads."""
        for queue in self.worker_state.all_queues:
            if not queue.rows.aside:
                continue
            of = self._queues.setdefault(queue, _QueueProgress())
            if of.look is not None and of.look.ended:
                self._take_result(queue, of, of.look)
            if of.look is None and self._may_start_query(queue) and self.worker_state.clock.monotonic() >= of.not_before:
                self._start_query_thread(queue, of)

    def next_wake_time(self) -> float | None:
        """Return the earliest monotonic time at which another slow query may start in its own thread; None if no queue can start one
        now.
        """
        return min((of.not_before for queue, of in self._queues.items() if of.look is None and self._may_start_query(queue)), default=None)

    def stop(self) -> None:
        """Cancel the queries of all separate threads. Call it when nothing waits for their results any more."""
        for of in self._queues.values():
            if of.look is not None and of.look.limit is not None:
                of.look.limit.until_s = 0.0

    def _may_start_query(self, queue: WorkQueue) -> bool:
        """Return whether a separate thread may query this queue's condition now.

        It must wait until the keys that the last query found are carried out, since the next query would find the same keys again.
        """
        postponement = queue.postponement
        waits = bool(queue.rows.fresh) or queue.rows.left_to_others or postponement.cannot_be_queried or postponement.search is not None
        return not waits and queue.rows.aside and queue.is_enabled and queue.rows.backlog and self.worker_state.stopping is None

    def _start_query_thread(self, queue: WorkQueue, of: _QueueProgress) -> None:
        of.look = _SeparateQuery(of.allowed_s)
        ask = threading.Thread(
            target=self._run_query_in_thread, args=(queue, queue.rows.cursor, of.look), name=f"groundstate-aside-{queue.name}", daemon=True
        )
        ask.start()

    def _run_query_in_thread(self, queue: WorkQueue, cursor: PassCursor | None, look: _SeparateQuery) -> None:
        began = self.worker_state.clock.monotonic()
        try:
            with (
                self.worker_state.database.reading() as connection,
                self.worker_state.database.limit_statement(connection, look.allowed_s) as look.limit,
            ):
                self._find_keys(queue, cursor, look, connection)
        except BaseException as error:
            look.error = error
        look.took_s = self.worker_state.clock.monotonic() - began
        look.ended = True
        self.wake()

    def _find_keys(self, queue: WorkQueue, cursor: PassCursor | None, look: _SeparateQuery, connection: Connection) -> None:
        if queue.rows.groups is not None:
            most = KEYS_FEW if queue.query.spec.call is not None else KEYS_AT_ONCE
            page = queue.rows.groups.next_page(connection, cursor, most, lambda _value: True)
            look.keys, look.cursor = page.keys[:most], page.cursor
            return
        rows = [tuple(row) for row in connection.execute(queue.query.selects.select_cursors_after(cursor, KEYS_AT_ONCE, crowded=True))]
        look.keys = [queue.query.cursors.key_in_cursor(row) for row in rows]
        look.cursor = rows[-1] if len(rows) == KEYS_AT_ONCE else None

    def _take_result(self, queue: WorkQueue, of: _QueueProgress, look: _SeparateQuery) -> None:
        of.look, of.not_before = None, self.worker_state.clock.monotonic() + look.took_s
        error = look.error
        if error is not None and db_errors.is_cancelled_statement(error):
            of.allowed_s = 2 * of.allowed_s if 2 * of.allowed_s <= LIMIT_MOST_S else math.inf
            log.debug("%s was cut after %.0f s", queue.name, look.took_s, extra={"event": "condition_cut", "reaction": queue.name})
            return
        if error is not None:
            if not db_errors.is_no_fault_of_record(error):
                queue.rows.return_query_to_own_thread()  # the worker's own thread queries next, and handles the error
            return
        usual_s = queue.rows.record_query_duration(look.took_s)
        queue.rows.add_fresh_keys(look.keys)
        queue.rows.move_cursor(look.cursor)
        if look.cursor is None:
            queue.rows.end_pass()
        if max(usual_s, look.took_s) < LIMIT_S / 2:
            queue.rows.return_query_to_own_thread()
            del self._queues[queue]
