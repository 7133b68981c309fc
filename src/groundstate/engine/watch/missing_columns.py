"""Makes a work queue wait if its records do not fit the database: a column or a table is missing, a key finds no record, or the condition
cannot run at all. The queue waits for a migration, or for another version of the application.

The wait is logged when it begins and when it ends. The check is a statement that loads no row and locks no record.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError

from groundstate.engine.sql import db_errors, key_refusal, mapping_check
from groundstate.engine.sql.key_refusal import KeyRefused
from groundstate.engine.sql.mapping_check import UnbuildableStatement
from groundstate.engine.sql.user_filters import FilterRaised
from groundstate.engine.watch import locked_tables
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.values.errors import GroundstateError

log = logging.getLogger("groundstate")
_IN_WORDS = (KeyRefused, FilterRaised, UnbuildableStatement)
# Seconds: the longest pause between two checks. It is not short, since each failed check writes an error to PostgreSQL's log.
LONGEST_S = 5.0


def wait_if_schema_misfit(worker_state: WorkerState, queue: WorkQueue, error: BaseException | None) -> bool:
    """Return whether the error says that this queue's records do not fit the database; if so, make the queue wait, and log it.

    Such errors are a missing column, table or right, a column of another type, a key that finds no record, a listener that raises, and a
    statement that cannot be built.
    """
    if error is not None and db_errors.is_raised_before_sending(error):
        error = _find_misfit(worker_state, [queue])  # None if the cause was a row or the handler
    if error is None or not (db_errors.is_schema_mismatch(error) or db_errors.is_permission_denied(error) or isinstance(error, _IN_WORDS)):
        return False
    whole = worker_state.queue_named(queue.name)
    if whole.postponement.lacks is None:
        lacks = str(error) if isinstance(error, GroundstateError) else db_errors.error_in_one_line(error)
        log.error(
            "%s is not carried out: %s; %sthe others go on",
            whole.name,
            lacks,
            "" if isinstance(error, FilterRaised | UnbuildableStatement) else "it begins by itself after that, and ",
            extra={"event": "reaction_unfit", "reaction": whole.name},
        )
        whole.postponement.note_lack(lacks)  # set after the log line, so that whoever reads this value also finds the line
    _postpone_check(whole)
    return True


def find_misfits(worker_state: WorkerState) -> None:
    """Find the queues whose records do not fit the database, and make them wait. Call it when a worker starts, before it loads any record.

    This is an early warning only, so an error of the check itself is ignored.
    """
    with contextlib.suppress(Exception):  # if this check of all queues together fails, each queue is checked by itself
        if _find_misfit(worker_state, worker_state.queues) is None:
            return
    for queue in worker_state.queues:
        with contextlib.suppress(Exception):
            wait_if_schema_misfit(worker_state, queue, _find_misfit(worker_state, [queue]))


def recheck_lacking_queues(worker_state: WorkerState) -> bool:
    """Check again each queue that waits for a missing column or the like, if its pause is over. Return whether any queue goes on."""
    now = worker_state.clock.monotonic()
    lacking = [queue for queue in worker_state.queues if queue.postponement.lacks is not None and queue.postponement.not_before <= now]
    return bool([queue for queue in lacking if _resume_if_fitting(worker_state, queue)])


def clear_lack(queue: WorkQueue) -> None:
    """Note that the queue lacks nothing any more, and log it. Call it after a record of the queue was loaded, or the check succeeded."""
    if queue.postponement.lacks is None:
        return
    queue.postponement.end_lack()
    log.warning(
        "%s goes on: what it lacked is there", queue.name, extra={"event": "reaction_fits", "reaction": queue.name}
    )  # logged as a warning, so that a log without INFO lines shows the end of the wait as well as its beginning


def _resume_if_fitting(worker_state: WorkerState, queue: WorkQueue) -> bool:
    error = _find_misfit(worker_state, [queue])
    if error is not None:
        queue.postponement.confirm_lack()
        _postpone_check(queue)
        return False
    if not queue.postponement.seen_lacking and queue.has_work:
        # The check never found the error for which the queue waits, so its success proves nothing. The wait ends only when a record is
        # carried out.
        return False
    if queue.postponement.seen_lacking:
        # The check found this error before, and finds it no longer, so the next pause may be short. After any other error the pauses have
        # to go on growing, since that error may come back.
        queue.postponement.note_success()
    clear_lack(queue)
    for part in filter(None, (queue, queue.late)):
        part.postponement.try_next_at(0.0)
        part.rows.request_pass()  # finds the rows of hints that arrived during the wait
    queue.due_work.request_attempts()
    return True


def _find_misfit(worker_state: WorkerState, queues: Sequence[WorkQueue]) -> Exception | None:
    queries = [queue.query for queue in queues]
    try:
        with worker_state.database.reading(wait=locked_tables.WAIT) as connection:
            lacking = mapping_check.find_mapping_error(connection, queries, rights=True)
            raised = next((one.filter_raised for one in queries if one.filter_raised is not None), None)
            return lacking or raised or next(filter(None, (key_refusal.find_key_refusal(connection, one) for one in queries)), None)
    except DBAPIError as error:
        # A migration may be running now, so the queue goes on waiting.
        if db_errors.is_lock_timeout(error) or db_errors.is_permission_denied(error):
            return error
        raise


def _postpone_check(whole: WorkQueue) -> None:
    check_at = whole.postponement.postpone(whole.query.database.clock.monotonic(), LONGEST_S)
    if whole.late is not None:
        whole.late.postponement.try_next_at(check_at)
