"""Conditions that take long to ask: each is asked on a connection and a thread of its own, and the other reactions go on meanwhile.

The worker's own thread asks a condition for a short time only. A condition that is cut there is asked in a thread of this module, for keys
only, which are then queued as if they had been hinted. Each further cut doubles its time limit, up to some minutes; then it has none.
Hinted rows are still looked up by their keys in the worker's own thread, fewer at a time after each cut. A single key that is cut waits
until the other thread has found it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection

from groundstate.engine.sql import db_errors
from groundstate.engine.sql.condition_query import Place, PrimaryKey
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.store.statement_timeouts import Limit

log = logging.getLogger("groundstate")
LIMIT_S = 1.0  # seconds: the least limit for one condition in the worker's own thread
LIMIT_TIMES = 20  # a condition's time limit is at least this many times its usual duration
CLAIM_TIMES = 5  # factor on a condition's time limit if the records are locked and loaded as well
LIMIT_MOST_S = 300.0  # seconds: the longest limit in a separate thread; a condition that exceeds it has no limit then
FEWER = 8  # the number of keys in a lookup is divided by this after a cut
REST_TIMES = 4  # after a cut the reaction rests this many times as long as the lookup took, so that others get most of the time
KEYS_AT_ONCE = 1_000
KEYS_FEW = 50  # keys at once for a reaction with a call and `in_order` or `per`; more queued keys would be searched again


def limit_s(queue: WorkQueue) -> float:
    """Return how many seconds the worker's own thread waits for one query of this condition."""
    return max(LIMIT_S, LIMIT_TIMES * queue.asking.seconds)


def claim_s(queue: WorkQueue) -> float:
    """Return how many seconds the worker's own thread waits for a query of this condition that also locks and loads the records."""
    return CLAIM_TIMES * limit_s(queue)


@contextmanager
def limited(worker_state: WorkerState, queue: WorkQueue, connection: Connection) -> Iterator[None]:
    """Limit the duration of one query of a condition in the worker's own thread. A longer query is cut: it raises (`db_errors.cut`)."""
    began = time.monotonic()
    with worker_state.database.limit(connection, limit_s(queue)):
        yield
    queue.asking.took(time.monotonic() - began)


def move_aside_if_cut(queue: WorkQueue, error: BaseException | None) -> bool:
    """Return whether the error is a query that was cut since it took too long. If so, a separate thread asks this queue's condition from
    now on.
    """
    if error is None or not db_errors.statement_was_cancelled(error):
        return False
    if not queue.aside:
        log.warning(
            "%s: its condition takes longer than %.1f s to ask: from now on it is asked beside the others, which go on, and its rows"
            " are found late where no hint tells of them. `groundstate check` says which index it lacks",
            queue.name,
            limit_s(queue),
            extra={"event": "condition_slow", "reaction": queue.name},
        )
    queue.aside, queue.newest = True, False
    return True


def cut_by_keys(queue: WorkQueue, keys: Sequence[PrimaryKey], took_s: float) -> None:
    """Take fewer keys next time, after a lookup by these keys was cut. A single key waits until a separate thread has found it."""
    queue.batch = max(len(keys) // FEWER, 1)
    if len(keys) > 1:
        queue.fresh = dict.fromkeys(keys) | queue.fresh
    else:
        queue.sweep()
    queue.not_before = max(queue.not_before, time.monotonic() + REST_TIMES * took_s)


@dataclass
class _Look:
    """One query in a separate thread. That thread writes it; the worker's own thread reads it once `ended` is True."""

    allowed_s: float
    limit: Limit | None = None
    ended: bool = False
    took_s: float = 0.0
    keys: Sequence[PrimaryKey] = ()
    cursor: Place | None = None  # where the pass goes on; None: it has ended
    error: BaseException | None = None


@dataclass
class _Of:
    """What is known of one work queue whose condition a separate thread asks."""

    allowed_s: float = 2 * LIMIT_S
    look: _Look | None = None
    not_before: float = 0.0


@dataclass
class Aside:
    """The queries of one worker that run in separate threads. wake: a separate thread calls it when it has a result. Only the worker's own
    thread calls the methods.
    """

    worker_state: WorkerState
    wake: Callable[[], None]
    _queues: dict[WorkQueue, _Of] = field(default_factory=dict)

    def turn(self) -> None:
        """Take over the results of separate threads, and start the next ones."""
        for queue in self.worker_state.parts:
            if not queue.aside:
                continue
            of = self._queues.setdefault(queue, _Of())
            if of.look is not None and of.look.ended:
                self._take(queue, of, of.look)
            if of.look is None and self._may_begin(queue) and time.monotonic() >= of.not_before:
                self._begin(queue, of)

    def wait_until(self) -> float | None:
        """Return the monotonic time at which the next separate thread may start; None if only running ones are awaited."""
        return min((of.not_before for queue, of in self._queues.items() if of.look is None and self._may_begin(queue)), default=None)

    def stop(self) -> None:
        """Cut the queries of all separate threads, since nothing waits for their results any more."""
        for of in self._queues.values():
            if of.look is not None and of.look.limit is not None:
                of.look.limit.until_s = 0.0

    def _may_begin(self, queue: WorkQueue) -> bool:
        """Return whether a separate thread may query this queue's condition. Keys that it found before are carried out first, or it would
        find them again.
        """
        waits = bool(queue.fresh) or queue.barred is not None or queue.lacks is not None or queue.left_to_others or queue.search is not None
        return not waits and queue.aside and queue.on and queue.backlog and self.worker_state.stopping is None

    def _begin(self, queue: WorkQueue, of: _Of) -> None:
        of.look = _Look(of.allowed_s)
        ask = threading.Thread(target=self._ask, args=(queue, queue.cursor, of.look), name=f"groundstate-aside-{queue.name}", daemon=True)
        ask.start()

    def _ask(self, queue: WorkQueue, cursor: Place | None, look: _Look) -> None:
        began = time.monotonic()
        try:
            with (
                self.worker_state.database.reading() as connection,
                self.worker_state.database.limit(connection, look.allowed_s) as look.limit,
            ):
                self._find(queue, cursor, look, connection)
        except BaseException as error:
            look.error = error
        look.took_s = time.monotonic() - began
        look.ended = True
        self.wake()

    def _find(self, queue: WorkQueue, cursor: Place | None, look: _Look, connection: Connection) -> None:
        if queue.groups is not None:
            most = KEYS_FEW if queue.query.spec.call is not None else KEYS_AT_ONCE
            page = queue.groups.page(connection, cursor, most, lambda _value: True)
            look.keys, look.cursor = page.keys[:most], page.cursor
            return
        rows = [tuple(row) for row in connection.execute(queue.query.places_after(cursor, KEYS_AT_ONCE, crowded=True))]
        look.keys = [queue.query.key_in(row) for row in rows]
        look.cursor = rows[-1] if len(rows) == KEYS_AT_ONCE else None

    def _take(self, queue: WorkQueue, of: _Of, look: _Look) -> None:
        of.look, of.not_before = None, time.monotonic() + look.took_s
        error = look.error
        if error is not None and db_errors.statement_was_cancelled(error):
            of.allowed_s = 2 * of.allowed_s if 2 * of.allowed_s <= LIMIT_MOST_S else math.inf
            log.debug("%s was cut after %.0f s", queue.name, look.took_s, extra={"event": "condition_cut", "reaction": queue.name})
            return
        if error is not None:
            queue.aside = db_errors.transient(error)  # any other error is left to the worker's own thread, which handles it as in any queue
            return
        usual_s = queue.asking.took(look.took_s)
        queue.fresh.update(dict.fromkeys(look.keys))
        queue.cursor = look.cursor
        if look.cursor is None:
            queue.swept()
        if max(usual_s, look.took_s) < LIMIT_S / 2:
            queue.aside = False
            del self._queues[queue]
