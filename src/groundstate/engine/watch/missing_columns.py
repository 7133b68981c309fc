"""Work queues whose records have a column or a table that the database lacks, or keys by which it finds no record, or of which nothing can
be asked at all: only these queues wait for a migration, or for other code.

The log says so once, and once more when it is over. The check is a statement that loads no row, so that no record is claimed in vain.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError

from groundstate.engine.sql import db_errors, key_columns, mapping_check
from groundstate.engine.sql.key_columns import KeyRefused
from groundstate.engine.sql.mapping_check import StatementUnmade
from groundstate.engine.sql.user_filters import FilterRaised
from groundstate.engine.watch import locked_tables
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState, postpone
from groundstate.values.errors import GroundstateError

log = logging.getLogger("groundstate")
_IN_WORDS = (KeyRefused, FilterRaised, StatementUnmade)
LONGEST_S = 5.0  # seconds: the longest pause between two checks; each one that fails is an error in PostgreSQL's log


def wait_if_schema_misfit(worker_state: WorkerState, queue: WorkQueue, error: BaseException | None) -> bool:
    """Return whether the error means that the database and this queue's records do not fit: a missing column, table or right, a column of
    another type, a key that leads to no record, a listener that raises, or a statement that cannot be built. If so, this queue waits.
    """
    if error is not None and db_errors.unmade(error):
        error = _misfit(worker_state, [queue])  # whether it was that, or what its rows or its handler did
    if error is None or not (db_errors.undefined(error) or db_errors.denied(error) or isinstance(error, _IN_WORDS)):
        return False
    whole = worker_state.queue(queue.name)
    if whole.lacks is None:
        lacks = str(error) if isinstance(error, GroundstateError) else db_errors.error_in_one_line(error)
        log.error(
            "%s is not carried out: %s; %sthe others go on",
            whole.name,
            lacks,
            "" if isinstance(error, FilterRaised | StatementUnmade) else "it begins by itself after that, and ",
            extra={"event": "reaction_unfit", "reaction": whole.name},
        )
        whole.lacks = lacks  # set after the log line, so that a reader of this value finds the line
    _wait(whole)
    return True


def look_over(worker_state: WorkerState) -> None:
    """Find, at a start, the queues whose records do not fit the database, before there is a record that cannot be loaded.

    This is an early warning only, so its failure stops nothing.
    """
    with contextlib.suppress(Exception):  # then each queue is checked by itself
        if _misfit(worker_state, worker_state.queues) is None:
            return
    for queue in worker_state.queues:
        with contextlib.suppress(Exception):
            wait_if_schema_misfit(worker_state, queue, _misfit(worker_state, [queue]))


def look_again(worker_state: WorkerState) -> bool:
    """Check the queues again that lacked something a while ago. Return whether any of them can go on."""
    now = time.monotonic()
    lacking = [queue for queue in worker_state.queues if queue.lacks is not None and queue.not_before <= now]
    return bool([queue for queue in lacking if _goes_on(worker_state, queue)])


def over(queue: WorkQueue) -> None:
    """Clear what a queue lacked, since a record of it was loaded or the check succeeded."""
    if queue.lacks is None:
        return
    queue.lacks, queue.seen_lacking = None, False
    log.warning(
        "%s goes on: what it lacked is there", queue.name, extra={"event": "reaction_fits", "reaction": queue.name}
    )  # a warning, so that it is shown wherever the first line was


def _goes_on(worker_state: WorkerState, queue: WorkQueue) -> bool:
    error = _misfit(worker_state, [queue])
    if error is not None:
        queue.seen_lacking = True
        _wait(queue)
        return False
    if not queue.seen_lacking and queue.wants:
        return False  # loading no row does not show what is missing here; it is over once a record was carried out
    if queue.seen_lacking:
        queue.trouble = 0  # otherwise the error may come back at once, and its pauses must go on growing
    over(queue)
    for part in filter(None, (queue, queue.late)):
        part.not_before = 0.0
        part.sweep()  # keys that were hinted meanwhile were claimed in vain
    queue.due = True
    return True


def _misfit(worker_state: WorkerState, queues: Sequence[WorkQueue]) -> Exception | None:
    queries = [queue.query for queue in queues]
    try:
        with worker_state.database.reading(wait=locked_tables.WAIT) as connection:
            lacking = mapping_check.misfit(connection, queries, rights=True)
            raised = next((one.filter_raised for one in queries if one.filter_raised is not None), None)
            return lacking or raised or next(filter(None, (key_columns.refused(connection, one) for one in queries)), None)
    except DBAPIError as error:
        if db_errors.locked(error) or db_errors.denied(error):  # perhaps by the migration itself
            return error
        raise


def _wait(whole: WorkQueue) -> None:
    postpone(whole)
    whole.not_before = min(whole.not_before, time.monotonic() + LONGEST_S)
    if whole.late is not None:
        whole.late.not_before = whole.not_before
