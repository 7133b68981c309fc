"""Makes work queues wait while another transaction, such as a migration, has locked one of their tables.

A worker skips a locked record. But a locked table stops every statement on the table, and a statement that waits stops the whole worker. So
when a statement meets such a lock, every queue that reads the table waits, until a query of pg_locks, which waits for no lock, shows that
the lock is gone. A queue whose handler met the lock as it wrote to the table waits in the same way. If a handler met a lock on a row of
another table, only its record waits.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta

from sqlalchemy.exc import DBAPIError

from groundstate.engine.rows import attempts
from groundstate.engine.rows.limited_logging import HANDLER_MEETS_LOCK
from groundstate.engine.sql import db_errors, lock_waits
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.watch import slow_conditions
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState

log = logging.getLogger("groundstate")
WAIT = timedelta(milliseconds=100)  # a read-only statement waits so long for a table lock at most
WAIT_AGAIN = timedelta(milliseconds=10)  # a read-only statement waits so long at most if another queue has just met a locked table
LONGEST_S = 2.0  # seconds: the longest pause between two checks of a locked table


def bar_queue(worker_state: WorkerState, queue: WorkQueue, by: str | None = None) -> None:
    """Make a work queue wait because one of its tables is locked, and log which transaction has the lock.

    by: a text about that transaction; None to look it up.
    """
    by = by or lock_waits.describe_lock_on_tables_of(worker_state.database, queue.query)
    by = by or "another transaction has locked a table that it reads (a migration?)"
    if not _is_wait_logged(worker_state, queue):
        log.warning(
            "%s waits: %s%s",
            queue.name,
            by,
            "; the others go on" if len(worker_state.queues) > 1 else "",
            extra={"event": "reaction_barred", "reaction": queue.name},
        )
    queue.postponement.wait_for_lock(by, worker_state.clock.monotonic(), LONGEST_S)


def _unbar_queue(worker_state: WorkerState, queue: WorkQueue) -> None:
    """Let a work queue go on, if it waits for a locked table, and log that. Call it when none of its tables is locked any more."""
    worker_state.handler_locks.forget_tables(queue)
    if queue.postponement.barred is None:
        return
    queue.postponement.end_wait_for_lock()
    if not _is_wait_logged(worker_state, queue):
        log.info("%s goes on: its tables are free", queue.name, extra={"event": "reaction_free", "reaction": queue.name})


def _is_wait_logged(worker_state: WorkerState, queue: WorkQueue) -> bool:
    """Return whether the main queue of this reaction or its queue of expired records waits already, so that the wait was logged."""
    return any(part.postponement.barred is not None for part in worker_state.all_queues if part.name == queue.name)


def bar_queues_on_locked_tables(worker_state: WorkerState, queues: Sequence[WorkQueue]) -> bool:
    """Check which of these work queues need a locked table, make each of them wait, and let the others go on; return whether any waits. A
    queue needs the tables that its condition reads, and those that its handler met locked. No statement of this check waits longer than
    `WAIT` for a lock.

    Raises:
        DBAPIError: a table of groundstate itself, which every queue needs, is locked.
    """
    if not queues:
        return False
    with worker_state.database.reading(wait=WAIT) as connection:
        connection.execute(attempts.ANY)
    locks = lock_waits.table_locks_against_writers(worker_state.database)
    found = False
    for queue in queues:
        if by := lock_waits.describe_first_lock_on_tables_of(queue.query, locks, worker_state.handler_locks.tables_met_locked(queue)):
            bar_queue(worker_state, queue, by)
            found = True
            continue
        try:
            with (
                worker_state.database.reading(wait=WAIT_AGAIN if found else WAIT) as connection,
                slow_conditions.limit_query_time(worker_state, queue, connection),
            ):
                queue.find_row_to_take(connection)
        except Exception as error:
            if slow_conditions.move_aside_if_cut(queue, error):
                _unbar_queue(worker_state, queue)
                continue
            # Perhaps the migration changed the table. The queue goes on, and its next statement reports the error.
            if db_errors.is_fault_of_statement(error):
                _unbar_queue(worker_state, queue)
                continue
            if not db_errors.is_lock_timeout(error):
                raise
            bar_queue(worker_state, queue)
            found = True
        else:
            _unbar_queue(worker_state, queue)
    for queue in worker_state.all_queues if found else ():
        if queue.postponement.barred is None and (by := lock_waits.describe_first_lock_on_tables_of(queue.query, locks)):
            bar_queue(worker_state, queue, by)  # this queue would meet the same lock
    return found


def recheck_barred_queues(worker_state: WorkerState) -> bool:
    """Check again the tables of each queue that waits for a locked table and whose pause is over. Return True if there are such queues and
    all of them go on.
    """
    barred = [
        queue
        for queue in worker_state.all_queues
        if queue.postponement.barred is not None and queue.postponement.barred_until <= worker_state.clock.monotonic()
    ]
    return bool(barred) and not bar_queues_on_locked_tables(worker_state, barred)


def bar_queue_on_table_met_locked(worker_state: WorkerState, queue: WorkQueue, error: DBAPIError) -> bool:
    """After a lock timeout of the queue's handler, make the queue wait if another transaction has locked a table that the handler or the
    condition needs. Return whether it waits.

    Raises:
        DBAPIError: a table of groundstate itself, which every queue needs, is locked.
    """
    worker_state.handler_locks.note_tables_met_locked(queue, lock_waits.tables_locked_by_others(worker_state.database, error))
    return bar_queues_on_locked_tables(worker_state, [queue])


def let_records_wait(
    worker_state: WorkerState,
    queue: WorkQueue,
    met: Sequence[PrimaryKey],
    error: DBAPIError,
    others: Mapping[PrimaryKey, str] | None = None,
) -> None:
    """Let these records wait, since the queue's handler met a lock of another transaction for each of them, and log who holds the lock.

    error: the lock timeout of one of them. others: the keys of records that wait already and were not tried, with the reasons.
    """
    by = lock_waits.describe_holders_of_lock(worker_state.database, error) or db_errors.error_in_one_line(error)
    why = worker_state.incarnation.shorten(f"its handler met a lock of another transaction: {by}")
    now = worker_state.clock.monotonic()
    new = worker_state.handler_locks.note_records_met_locks(queue, {**(others or {}), **dict.fromkeys(met, why)}, now)
    if new and worker_state.incarnation.lines.count_line(queue.name, HANDLER_MEETS_LOCK, now):
        record = queue.query.keys.record_text(new[0])
        log.warning(
            "%s on %s %s%s waits: %s; it is tried again by itself, and the others go on",
            queue.name,
            queue.query.spec.table_name,
            record,
            f" (and {len(new) - 1} more)" if len(new) > 1 else "",
            why,
            extra={"event": "handler_meets_lock", "reaction": queue.name, "record": record},
        )
