"""Finds out which attempts are due now, and when the next attempt is due. Reads only the attempt table."""

from __future__ import annotations

import logging
from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import CompoundSelect, Select, and_, bindparam, or_, select, union_all

from groundstate.engine.rows import attempts
from groundstate.engine.rows.attempts import Identity
from groundstate.engine.rows.corrupt_rows import WITHOUT_TIME
from groundstate.engine.sql.db_errors import Illegible, reading_own_rows
from groundstate.engine.sql.transaction import Transaction
from groundstate.engine.watch import unknown_states
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.attempt import State
from groundstate.store.tables import attempt as table

log = logging.getLogger("groundstate")
AT_ONCE = 200
OVERDUE_AGAIN_S = 1.0  # seconds after which this worker tries its own overdue attempts in doubt again


def read_due_identities(
    worker_state: WorkerState, tx: Transaction, queue: WorkQueue, most: int, in_air: Container[Identity]
) -> list[Identity]:
    """Return the identities of at most `most` due attempts of one reaction: failed attempts, and this worker's own attempts in doubt.
    Identities in `in_air` are left out.

    The next call of this function goes on after these attempts, at `queue.due_work.cursor`. After the last due attempt, it begins at the
    start again.
    """
    statement = _build_due_query(worker_state.app, queue.name)
    if queue.due_work.cursor is not None:
        statement = statement.where(attempts.rows_after_cursor(_ORDER, queue.due_work.cursor))
    with reading_own_rows():
        rows = tx.connection.execute(statement.limit(most), {"now": tx.now, "worker": worker_state.incarnation.id}).all()
    if len(rows) == most:
        queue.due_work.advance(_cursor_after(rows[-1]))
    else:
        queue.due_work.note_no_more_attempts()
    return [identity for row in rows if (identity := (row[0], row[1], row[2], row[3])) not in in_air]


_ORDER = (table.c.next_at, table.c.record, table.c.occurrence)
# Parameters whose values are given at each execution.
_NOW, _LIFE = bindparam("now", type_=table.c.next_at.type), bindparam("worker", type_=table.c.worker.type)


@lru_cache(maxsize=256)
def _build_due_query(app: str, name: str) -> Select[Any]:
    """Return the query for the due attempts of one reaction: failed attempts of any worker, and this worker's own attempts in doubt."""
    ours = or_(table.c.state == State.FAILED.value, and_(table.c.state == State.DOUBT.value, table.c.worker == _LIFE))
    statement = select(table.c.app, table.c.reaction, table.c.record, table.c.occurrence, table.c.next_at)
    return statement.where(table.c.app == app, table.c.reaction == name, ours, table.c.next_at <= _NOW).order_by(*_ORDER)


def _cursor_after(row: Any) -> tuple[object, ...]:
    return (row.next_at, row.record, row.occurrence)


def refresh_next_due(worker_state: WorkerState) -> None:
    """Query when the next attempt is due, and set `worker_state.next_due` to that moment in monotonic time, or to None if there is none.

    If an attempt in doubt of this worker is overdue, `next_due` is at most one second from now: no other worker settles the attempt, and
    the next sweep of this worker may be a minute away.
    """
    with worker_state.database.reading() as connection:
        if not worker_state.queues or connection.execute(attempts.ANY).first() is None:
            worker_state.set_next_due(None)
            unknown_states.forget_unknown_states(worker_state)
            return
        unknown_states.find_unknown_states(worker_state, connection)
        now = connection.execute(select(worker_state.database.now())).scalar_one()
        asked = _build_due_time_statements(worker_state.app, tuple(queue.name for queue in worker_state.queues))
        if connection.execute(asked.without_time).first() is not None:
            raise Illegible("an attempt that is failed or in doubt has no time at which it is tried again (next_at)")
        overdue = connection.execute(asked.overdue, {"now": now, "worker": worker_state.incarnation.id}).first()
        waits_s = [] if overdue is None else [OVERDUE_AGAIN_S]
        with reading_own_rows():
            waits_s += [(row[0] - now).total_seconds() + 0.001 for row in connection.execute(asked.earliest, {"now": now})]
    worker_state.set_next_due(worker_state.clock.monotonic() + min(waits_s) if waits_s else None)


@dataclass(frozen=True)
class _DueTimeStatements:
    """Statements that look up when attempts of some reactions are due."""

    without_time: Select[Any]  # finds one attempt, failed or in doubt, that has no due time
    overdue: Select[Any]  # finds one attempt in doubt of this worker whose due time has come
    earliest: CompoundSelect[Any]  # finds the next due time of each reaction and state


@lru_cache(maxsize=64)
def _build_due_time_statements(app: str, names: tuple[str, ...]) -> _DueTimeStatements:
    """Return the statements for these reactions. They are cached: they run often, and building a statement takes longer than running it."""
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
    return _DueTimeStatements(
        without_time=some.where(WITHOUT_TIME),
        overdue=some.where(table.c.state == State.DOUBT.value, table.c.worker == _LIFE, table.c.next_at <= _NOW),
        earliest=union_all(*[select(one) for one in earliest]),
    )
