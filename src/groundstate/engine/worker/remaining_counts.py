"""Counts the attempts and records that an idle worker leaves undone, because their time has not come or because a person must act."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from groundstate.engine.schedule import upcoming
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.store.tables import attempt as table


@dataclass(frozen=True)
class RemainingCounts:
    """How many attempts and records of an idle worker wait until their time has come, or until a person acts."""

    in_doubt: int  # attempts
    failed: int  # attempts
    held: int  # attempts that wait for a person
    timers: int = 0  # records that will become due later


def count_remaining(worker_state: WorkerState) -> RemainingCounts:
    """Count the attempts of the worker's app by state, and the records that become due later."""
    counted = select(table.c.state, func.count()).where(table.c.app == worker_state.app).group_by(table.c.state)
    with worker_state.database.reading() as connection:
        states = {row[0]: row[1] for row in connection.execute(counted)}
        timers = sum(upcoming.count_not_yet_due(connection, queue.query) for queue in worker_state.queues)
    return RemainingCounts(states.get("doubt", 0), states.get("failed", 0), states.get("held", 0), timers)
