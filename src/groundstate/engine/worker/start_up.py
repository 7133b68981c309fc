"""Starts a worker: connects, makes the work queues, takes the lock, and takes over the attempts of dead workers."""

from __future__ import annotations

import json
from collections.abc import Sequence

from groundstate.engine.operate import left_by_other_apps, moved_tables
from groundstate.engine.recover.startup import retry_start_step
from groundstate.engine.sql import lock_ids, schema, session_guards, transaction
from groundstate.engine.watch import missing_columns
from groundstate.engine.watch.routing import register_parent_wakeups
from groundstate.engine.watch.work_queue import build_work_queue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.engine.worker.components import WorkerComponents
from groundstate.engine.worker.options import WorkerSettings
from groundstate.rules.schedule import ScheduleSpec


def start_up(components: WorkerComponents, settings: WorkerSettings) -> None:
    """Start a worker, up to the moment at which its loop may begin. Steps that fail because of a temporary obstacle are tried again.

    Raises:
        StoreRefusedError: the database refuses the worker, or an obstacle lasted too long. The message names the cure.
        StoppedError: the worker was told to stop meanwhile.
        DBAPIError: any other error of the database.
    """
    worker_state, database = components.worker_state, components.database
    retry_start_step(worker_state, database.connect)
    transaction.watch_statements(database)
    retry_start_step(worker_state, lambda: schema.check_tables(database))
    queues = [build_work_queue(settings.runtime.query(spec, database)) for spec in settings.specs]
    queries = [queue.query for queue in queues]
    for query in queries:
        session_guards.guard_records(query)
        register_parent_wakeups(query)
    worker_state.set_queues(queues)
    for queue in queues:
        missing_columns.wait_if_schema_misfit(worker_state, queue, queue.query.filter_raised)
    components.leader.lock = lock_ids.sweep_leader_lock_id(settings.app, _code_fingerprint(worker_state, settings.schedules))
    retry_start_step(worker_state, components.admission.read_accepted_reactions)
    components.succession.begin_first(worker_state)
    retry_start_step(worker_state, lambda: moved_tables.update_renamed_tables(worker_state))
    retry_start_step(worker_state, lambda: _log_leftovers_of_other_apps(worker_state))


def _log_leftovers_of_other_apps(worker_state: WorkerState) -> None:
    """Log the open attempts that apps without a running worker left here: such an app may be this app under a former name."""
    app, database, liveness = worker_state.app, worker_state.database, worker_state.incarnation.liveness
    queries = [queue.query for queue in worker_state.queues]
    with database.reading() as connection:
        found = left_by_other_apps.find_left_by_others(app, database, connection, queries, liveness)
    left_by_other_apps.log_left_by_others(app, found)


def _code_fingerprint(worker_state: WorkerState, schedules: Sequence[ScheduleSpec]) -> str:
    """Return a text made of all conditions and schedules of this worker. A worker sweeps by its own conditions, so it sweeps only for
    workers with the same text.
    """
    conditions = sorted([queue.name, queue.query.texts.condition_text] for queue in worker_state.queues)
    return json.dumps([conditions, sorted([spec.name, spec.as_text] for spec in schedules)])
