"""Queries which attempts are due now, and when the next one is. Reads the attempt table only; decides nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import CompoundSelect, Select, and_, bindparam, or_, select, union_all

from groundstate.engine.rows import attempts
from groundstate.engine.rows.attempts import Identity
from groundstate.engine.rows.corrupt_rows import WITHOUT_TIME
from groundstate.engine.sql.db_errors import Illegible, reading_ours
from groundstate.engine.sql.transaction import Transaction
from groundstate.engine.watch import unknown_states
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.attempt import State
from groundstate.store.tables import attempt as table

log = logging.getLogger("groundstate")
AT_ONCE = 200
OVERDUE_AGAIN_S = 1.0  # seconds until overdue attempts in doubt, which only this worker settles, are tried again


def identities(worker_state: WorkerState, tx: Transaction, queue: WorkQueue, most: int, in_air: Container[Identity]) -> list[Identity]:
    """Return at most `most` attempts of one reaction that are due: failed ones, and this worker's own in doubt, without those in `in_air`.
    `queue.due_cursor` is where the pass over them goes on; each sweep begins a new pass.
    """
    statement = _of_a_lane(worker_state.app, queue.name)
    if queue.due_cursor is not None:
        statement = statement.where(attempts.rows_after_cursor(_ORDER, queue.due_cursor))
    with reading_ours():
        rows = tx.connection.execute(statement.limit(most), {"now": tx.now, "worker": worker_state.incarnation.id}).all()
    if len(rows) == most:
        queue.due_cursor = _place(rows[-1])
    else:
        queue.due, queue.due_cursor = False, None
    return [identity for row in rows if (identity := (row[0], row[1], row[2], row[3])) not in in_air]


_ORDER = (table.c.next_at, table.c.record, table.c.occurrence)
# Values are given at each execution.
_NOW, _LIFE = bindparam("now", type_=table.c.next_at.type), bindparam("worker", type_=table.c.worker.type)


@lru_cache(maxsize=256)
def _of_a_lane(app: str, name: str) -> Select[Any]:
    """Build the query for the due attempts of one reaction, once for each. Any worker retries a failed attempt; an attempt in doubt is
    settled by its own worker only.
    """
    ours = or_(table.c.state == State.FAILED.value, and_(table.c.state == State.DOUBT.value, table.c.worker == _LIFE))
    statement = select(table.c.app, table.c.reaction, table.c.record, table.c.occurrence, table.c.next_at)
    return statement.where(table.c.app == app, table.c.reaction == name, ours, table.c.next_at <= _NOW).order_by(*_ORDER)


def _place(row: Any) -> tuple[object, ...]:
    return (row.next_at, row.record, row.occurrence)


def refresh_next_due(worker_state: WorkerState) -> None:
    """Set `worker_state.next_due` to the monotonic time at which the next attempt is due by the database's clock. The time is soon if
    attempts in doubt of this worker are overdue: a worker for which another one sweeps would look at them only once a minute.
    """
    with worker_state.database.reading() as connection:
        if not worker_state.queues or connection.execute(attempts.ANY).first() is None:
            worker_state.next_due = None
            unknown_states.none(worker_state)
            return
        unknown_states.look(worker_state, connection)
        now = connection.execute(select(worker_state.database.now())).scalar_one()
        asked = _asked(worker_state.app, tuple(queue.name for queue in worker_state.queues))
        if connection.execute(asked.without_time).first() is not None:
            raise Illegible("an attempt that is failed or in doubt has no time at which it is looked at")
        overdue = connection.execute(asked.overdue, {"now": now, "worker": worker_state.incarnation.id}).first()
        waits_s = [] if overdue is None else [OVERDUE_AGAIN_S]
        with reading_ours():
            waits_s += [(row[0] - now).total_seconds() + 0.001 for row in connection.execute(asked.earliest, {"now": now})]
    worker_state.next_due = time.monotonic() + min(waits_s) if waits_s else None


@dataclass(frozen=True)
class _Asked:
    """The statements that look up the due times of some reactions' attempts."""

    without_time: Select[Any]  # finds any attempt, failed or in doubt, without a due time
    overdue: Select[Any]  # finds any attempt in doubt of this incarnation whose due time has come
    earliest: CompoundSelect[Any]  # finds the next due time for each reaction and state


@lru_cache(maxsize=64)
def _asked(app: str, names: tuple[str, ...]) -> _Asked:
    """Build the statements once for each set of reactions: they run often, and building them takes longer than running them."""
    some = select(table.c.app).where(table.c.app == app, table.c.reaction.in_(names)).limit(1)
    earliest = [
        select(table.c.next_at)
        .where(table.c.app == app, table.c.reaction == name, table.c.state == state, table.c.next_at > _NOW)
        .order_by(table.c.next_at)
        .limit(1)
        .subquery()
        for name in names
        for state in (State.FAILED.value, State.DOUBT.value)
    ]
    return _Asked(
        without_time=some.where(WITHOUT_TIME),
        overdue=some.where(table.c.state == State.DOUBT.value, table.c.worker == _LIFE, table.c.next_at <= _NOW),
        earliest=union_all(*[select(one) for one in earliest]),
    )
