"""Handles conditions that raise an error for some rows, such as a division by zero. A search finds these failing rows, a failed attempt is
written for each of them, and the other rows are carried out meanwhile.

The search queues the keys of matching rows and of failing rows; a failing row then fails like a record that cannot be read. After the
search the condition is queried for all rows except the failing rows. Every few seconds some failing rows are tried again, until no row
raises an error.
"""

from __future__ import annotations

import logging

from sqlalchemy.exc import DBAPIError

from groundstate.engine.rows import limited_logging
from groundstate.engine.sql import db_errors
from groundstate.engine.sql.raising_rows import RaisingRowSearch
from groundstate.engine.watch import locked_tables, missing_columns
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState

log = logging.getLogger("groundstate")
STEP_S = 0.02  # seconds of each loop iteration that one search may take, so that the other reactions go on
FOUND_MOST = 2_000  # keys: a search pauses while at least this many of the keys that it found wait to be carried out
FEW = 50  # the most keys queued at once for a reaction with `in_order` or `per`, since each key costs a lookup of its group
AGAIN_S = 5.0  # seconds between two retries of failing rows
AGAIN_AT_ONCE = 20  # how many failing rows are tried again together
WAITS_S = 60.0  # seconds until the condition is queried again after it raised for too many rows
# Seconds: if no failing row is left, and no error occurs for this long, the condition is again queried in its plain form (clauses in any
# order). The number is doubled each time that the plain form raises an error again.
PLAIN_S = 10.0
PLAIN_MOST_S = 3600.0  # seconds: the longest wait to which PLAIN_S is doubled


def search_if_condition_raised(worker_state: WorkerState, queue: WorkQueue, error: BaseException | None) -> bool:
    """Return whether the error says that this queue's condition raised for a value in some row. If so, begin a search for such rows."""
    if not isinstance(error, DBAPIError) or not db_errors.is_caused_by_value(error):
        return False
    whole, now = worker_state.queue_named(queue.name), worker_state.clock.monotonic()
    waits = whole.postponement
    # A search is running, or has just found too many failing rows: begin no new search.
    if waits.search is not None or now < waits.raises_until:
        queue.postpone_after_error()
        return True
    if worker_state.incarnation.lines.count_line(whole.name, limited_logging.CONDITION_RAISES, now):
        log.warning(
            "%s: its condition raises for some record (%s): a search finds which ones, these fail, and the others go on",
            whole.name,
            db_errors.database_message(error),
            extra={"event": "condition_raises", "reaction": whole.name},
        )
    _begin_search(whole, now)
    return True


def continue_searches(worker_state: WorkerState) -> None:
    """Go on for a short time with each search for failing rows. For each queue without a running search, try some failing rows again."""
    for queue in worker_state.queues:
        if not queue.query.in_turn or not queue.is_enabled or queue.postponement.cannot_be_queried:
            continue
        now = worker_state.clock.monotonic()
        if not queue.postponement.plain_s:  # no search ran yet: failing rows were found while the rows of a new reaction were counted
            _begin_search(queue, now)
        if queue.postponement.not_before > now:
            continue
        try:
            if queue.postponement.search is not None:
                _continue_search(worker_state, queue, queue.postponement.search)
            elif now >= queue.postponement.asked_again + AGAIN_S:
                _retry_failing_rows(worker_state, queue, now)
        except Exception as error:
            if db_errors.is_lock_timeout(error):
                locked_tables.bar_queues_on_locked_tables(worker_state, [queue])
                continue
            if not db_errors.is_fault_of_statement(error):
                raise
            if missing_columns.wait_if_schema_misfit(worker_state, queue, error):
                continue
            queue.postpone_after_error()
            log_condition_error(queue, error)


def _may_search_further(search: RaisingRowSearch) -> bool:
    return not search.over and len(search.ready) < FOUND_MOST


def has_search_step(queue: WorkQueue) -> bool:
    """Return whether this queue's search has a step to do in the next loop iteration."""
    search = queue.postponement.search
    if search is None or not queue.is_enabled or queue.postponement.cannot_be_queried:
        return False
    return not queue.rows.fresh or _may_search_further(search)


def _queue_and_late_queue(whole: WorkQueue) -> list[WorkQueue]:
    return [part for part in (whole, whole.late) if part is not None]


def _begin_search(whole: WorkQueue, now: float) -> None:
    plain_s = whole.postponement.plain_s
    if not plain_s or not whole.query.in_turn:
        plain_s = min(2 * plain_s, PLAIN_MOST_S) or PLAIN_S
    whole.query.evaluate_clauses_in_turn(whole.query.raising_keys)
    search = RaisingRowSearch()
    for part in _queue_and_late_queue(whole):
        part.postponement.begin_search(search, now, plain_s)
        part.rows.request_pass()


def _continue_search(worker_state: WorkerState, queue: WorkQueue, search: RaisingRowSearch) -> None:
    until_s = worker_state.clock.monotonic() + STEP_S
    if _may_search_further(search):
        with worker_state.database.reading(wait=locked_tables.WAIT) as connection:
            while _may_search_further(search) and worker_state.clock.monotonic() < until_s:
                search.search_next_page(connection, queue.query)
                if queue.rows.groups is not None:
                    search.ready.clear()  # the backlog pass by groups finds the matching rows
        if search.over and not search.has_too_many:
            search.ready += search.culprits
            queue.query.evaluate_clauses_in_turn(search.culprits)
    room = max((FEW if queue.rows.groups is not None else queue.rows.batch) - len(queue.rows.fresh), 0)
    queue.rows.add_fresh_keys(search.ready[:room])
    del search.ready[:room]
    if search.over and not search.ready:
        _end_search(queue, search)


def _end_search(queue: WorkQueue, search: RaisingRowSearch) -> None:
    now = queue.query.database.clock.monotonic()
    if search.has_too_many:
        _log_condition_failed(queue, search.describe_culprits(queue.query))
    for part in _queue_and_late_queue(queue):
        part.postponement.end_search(now, now + WAITS_S if search.has_too_many else None)
        part.rows.request_pass()


def _retry_failing_rows(worker_state: WorkerState, queue: WorkQueue, now: float) -> None:
    """Queue some of the failing rows again. If there has been no failing row for a while, query the condition in its plain form again."""
    queue.postponement.note_failing_rows_tried(now)
    query = queue.query
    if not query.raising_keys:
        if now >= queue.postponement.plain_again_at:
            query.evaluate_clauses_in_any_order()
        return
    some = worker_state.incarnation.dice.sample(list(query.raising_keys), min(AGAIN_AT_ONCE, len(query.raising_keys)))
    queue.rows.add_fresh_keys(some)


def log_condition_error(queue: WorkQueue, error: BaseException, what: str = "") -> None:
    """Log that a queue's condition could not be queried. what: further words of the log line. A database error gets no traceback."""
    _log_condition_failed(queue, db_errors.error_in_one_line(error), what, None if isinstance(error, DBAPIError) else error)


def _log_condition_failed(queue: WorkQueue, words: str, what: str = "", error: BaseException | None = None) -> None:
    log.error(
        "the condition of %s could not be queried%s, tried again: %s",
        queue.name,
        what,
        words,
        exc_info=error,
        extra={"event": "condition_failed", "reaction": queue.name},
    )
