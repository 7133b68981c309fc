"""Work queues whose condition raises for some rows, as by a division by zero: a search finds those rows, each of them fails by itself, and
the other rows go on meanwhile.

Records that the search finds are carried out by their keys, failing ones too: these fail like a record that cannot be read. After the
search the condition is asked of all rows except the failing ones. Some of those are tried again now and then, until none raises.
"""

from __future__ import annotations

import logging
import time

from sqlalchemy.exc import DBAPIError

from groundstate.engine.rows import limited_logging
from groundstate.engine.sql import db_errors
from groundstate.engine.sql.raising_rows import Search
from groundstate.engine.watch import locked_tables, missing_columns
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState, postpone

log = logging.getLogger("groundstate")
STEP_S = 0.02  # seconds of one loop iteration for one search, so that the other reactions go on
FOUND_MOST = 2_000  # keys found and not yet carried out, at which a search pauses
FEW = 50  # keys queued at once for a reaction with `in_order` or `per`; more would be looked up by their groups
AGAIN_S = 5.0  # seconds between two tries of some failing rows
AGAIN_AT_ONCE = 20
WAITS_S = 60.0  # seconds until the condition is asked again after it raised for too many rows
# Seconds from the last error until the condition is asked as a whole again if no failing row is left; doubles with each new error.
PLAIN_S = 10.0
PLAIN_MOST_S = 3600.0


def search_if_condition_raised(worker_state: WorkerState, queue: WorkQueue, error: BaseException | None) -> bool:
    """Return whether the error means that this queue's condition raised for a value in some row. If so, begin a search for such rows."""
    if not isinstance(error, DBAPIError) or not db_errors.of_a_value(error):
        return False
    whole, now = worker_state.queue(queue.name), time.monotonic()
    if whole.search is not None or now < whole.raises_until:  # a query for rows that are not given by key waits until the search ends
        postpone(queue)
        return True
    if worker_state.incarnation.lines.may_tell(whole.name, limited_logging.CONDITION_RAISES, now):
        log.warning(
            "%s: its condition cannot be asked of some record (%s): it is looked for which ones, these fail, and the others go on",
            whole.name,
            db_errors.database_message(error),
            extra={"event": "condition_raises", "reaction": whole.name},
        )
    _begin(whole, now)
    return True


def turn(worker_state: WorkerState) -> None:
    """Go on with each search for failing rows, for a short time each."""
    for queue in worker_state.queues:
        if not queue.query.in_turn or not queue.on or queue.barred is not None or queue.lacks is not None:
            continue
        now = time.monotonic()
        if not queue.plain_s:  # failing rows were found when the rows of a new reaction were counted
            _begin(queue, now)
        if queue.not_before > now:
            continue
        try:
            if queue.search is not None:
                _go_on(worker_state, queue, queue.search)
            elif now >= queue.asked_again + AGAIN_S:
                _ask_again(worker_state, queue, now)
        except Exception as error:
            if db_errors.locked(error):
                locked_tables.are_barred(worker_state, [queue])
                continue
            if not db_errors.is_its_own(error):
                raise
            if missing_columns.wait_if_schema_misfit(worker_state, queue, error):
                continue
            postpone(queue)
            say_failed(queue, error)


def _looks_on(search: Search) -> bool:
    return not search.over and len(search.ready) < FOUND_MOST


def is_waiting(queue: WorkQueue) -> bool:
    """Return whether this queue's search has a step to do in the next loop iteration."""
    search = queue.search
    if search is None or not queue.on or queue.barred is not None or queue.lacks is not None:
        return False
    return not queue.fresh or _looks_on(search)


def _parts(whole: WorkQueue) -> list[WorkQueue]:
    return [part for part in (whole, whole.late) if part is not None]


def _begin(whole: WorkQueue, now: float) -> None:
    if not whole.plain_s or not whole.query.in_turn:
        whole.plain_s = min(2 * whole.plain_s, PLAIN_MOST_S) or PLAIN_S
    whole.query.ask_in_turn(whole.query.apart)
    whole.raised_at, search = now, Search()
    for part in _parts(whole):
        part.search = search
        part.sweep()


def _go_on(worker_state: WorkerState, queue: WorkQueue, search: Search) -> None:
    until_s = time.monotonic() + STEP_S
    if _looks_on(search):
        with worker_state.database.reading(wait=locked_tables.WAIT) as connection:
            while _looks_on(search) and time.monotonic() < until_s:
                search.page(connection, queue.query)
                if queue.groups is not None:
                    search.ready.clear()  # the pass by groups finds them
        if search.over and not search.too_many:
            search.ready += search.culprits
            queue.query.ask_in_turn(search.culprits)
    room = max((FEW if queue.groups is not None else queue.batch) - len(queue.fresh), 0)
    queue.fresh.update(dict.fromkeys(search.ready[:room]))
    del search.ready[:room]
    if search.over and not search.ready:
        _end(queue, search)


def _end(queue: WorkQueue, search: Search) -> None:
    now = time.monotonic()
    queue.raised_at = queue.asked_again = now
    if search.too_many:
        queue.raises_until = now + WAITS_S
        _say_failed(queue, search.in_words(queue.query))
    for part in _parts(queue):
        part.search = None
        if search.too_many:
            part.not_before = queue.raises_until
        part.sweep()


def _ask_again(worker_state: WorkerState, queue: WorkQueue, now: float) -> None:
    """Try some of the failing rows again, by their keys. Once none is left, the condition is asked as a whole again after a while."""
    queue.asked_again, query = now, queue.query
    if not query.apart:
        if now >= queue.raised_at + queue.plain_s:
            query.ask_plainly()
        return
    some = worker_state.incarnation.dice.sample(list(query.apart), min(AGAIN_AT_ONCE, len(query.apart)))
    queue.fresh.update(dict.fromkeys(some))


def say_failed(queue: WorkQueue, error: BaseException, what: str = "") -> None:
    """Log that a queue's condition cannot be asked of any record. A database error is logged without a traceback."""
    _say_failed(queue, db_errors.error_in_one_line(error), what, None if isinstance(error, DBAPIError) else error)


def _say_failed(queue: WorkQueue, words: str, what: str = "", error: BaseException | None = None) -> None:
    log.error(
        "%s could not be asked%s, tried again: %s",
        queue.name,
        what,
        words,
        exc_info=error,
        extra={"event": "condition_failed", "reaction": queue.name},
    )
