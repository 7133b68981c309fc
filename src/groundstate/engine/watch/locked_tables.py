"""Work queues whose tables another transaction keeps locked, as a migration does: only these queues wait. Carries nothing out.

A locked record is skipped. A locked table stops every statement on it, each of which would keep the whole worker waiting. So once a lock is
met, every queue that reads the table is put aside, and only pg_locks is asked, which waits for no lock, until the lock is gone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from datetime import timedelta

from groundstate.engine.rows import attempts
from groundstate.engine.sql import db_errors, lock_waits
from groundstate.engine.watch import slow_conditions
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState, postpone

log = logging.getLogger("groundstate")
WAIT = timedelta(milliseconds=100)  # how long a statement that only reads waits for a table lock
WAIT_AGAIN = timedelta(milliseconds=10)  # the same once another queue was found to meet a lock
LONGEST_S = 2.0  # seconds: the longest pause until a locked table is checked again


def bar(worker_state: WorkerState, queue: WorkQueue, by: str | None = None) -> None:
    """Let a work queue wait that met a locked table, and log which transaction holds the lock. by: its description, if it is known."""
    by = by or lock_waits.who_locks_tables_of(worker_state.database, queue.query)
    by = by or "somebody has locked a table that it asks (a migration?)"
    if not _told(worker_state, queue):
        log.warning(
            "%s waits: %s%s",
            queue.name,
            by,
            "; the others go on" if len(worker_state.queues) > 1 else "",
            extra={"event": "reaction_barred", "reaction": queue.name},
        )
    queue.barred = by
    postpone(queue)
    # Not to be taken up by itself once that is over: `look_again` lets it in.
    queue.barred_until, queue.not_before = min(queue.not_before, time.monotonic() + LONGEST_S), math.inf


def _let_in(worker_state: WorkerState, queue: WorkQueue) -> None:
    """Let a work queue go on, since none of its tables is locked any more."""
    if queue.barred is None:
        return
    queue.barred, queue.not_before = None, 0.0
    if not _told(worker_state, queue):
        log.info("%s goes on: its tables are free", queue.name, extra={"event": "reaction_free", "reaction": queue.name})


def _told(worker_state: WorkerState, queue: WorkQueue) -> bool:
    """Return whether the log already says that this reaction waits, for its main queue or its queue of expired records."""
    return any(part.barred is not None for part in worker_state.parts if part.name == queue.name)


def are_barred(worker_state: WorkerState, queues: Sequence[WorkQueue]) -> bool:
    """Check which of these work queues meet a locked table, and let those wait; return whether any does. Only reads, and waits for no lock
    longer than `WAIT`.

    Raises:
        DBAPIError: a table of groundstate itself is locked, which every queue needs.
    """
    if not queues:
        return False
    with worker_state.database.reading(wait=WAIT) as connection:
        connection.execute(attempts.ANY)
    locks = lock_waits.holders(worker_state.database)
    found = False
    for queue in queues:
        if by := lock_waits.held_from(queue.query, locks):
            bar(worker_state, queue, by)
            found = True
            continue
        try:
            with (
                worker_state.database.reading(wait=WAIT_AGAIN if found else WAIT) as connection,
                slow_conditions.limited(worker_state, queue, connection),
            ):
                queue.probe(connection)
        except Exception as error:
            if slow_conditions.move_aside_if_cut(queue, error):
                _let_in(worker_state, queue)
                continue
            # Perhaps the migration changed the table; the queue's next statement reports it.
            if db_errors.is_its_own(error):
                _let_in(worker_state, queue)
                continue
            if not db_errors.locked(error):
                raise
            bar(worker_state, queue)
            found = True
        else:
            _let_in(worker_state, queue)
    for queue in worker_state.parts if found else ():
        if queue.barred is None and (by := lock_waits.held_from(queue.query, locks)):
            bar(worker_state, queue, by)  # it would wait for the same lock
    return found


def recheck_barred_queues(worker_state: WorkerState) -> bool:
    """Check the queues again whose pause for a locked table is over. Return True if there are some and all of them can go on."""
    barred = [queue for queue in worker_state.parts if queue.barred is not None and queue.barred_until <= time.monotonic()]
    return bool(barred) and not are_barred(worker_state, barred)
