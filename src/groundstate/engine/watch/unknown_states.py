"""Handles attempts in a state that this version of groundstate does not know, since a newer version wrote the state or a person edited it.

Each of these attempts is logged once. Its call may have been made, so no worker changes the attempt or carries out its record until a
person, or a version that knows the state, has settled the attempt.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, and_, or_, select, union_all, update

from groundstate.engine.rows import attempts
from groundstate.engine.rows.attempt_log import name_record
from groundstate.engine.rows.attempts import Identity
from groundstate.engine.sql.db_errors import reading_own_rows
from groundstate.engine.sql.transaction import Transaction
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.attempt import State
from groundstate.store.tables import attempt as table

log = logging.getLogger("groundstate")
MOST = 1_000  # the most attempts that are read for each range of unknown states

_KNOWN = sorted(state.value for state in State)
# All unknown states lie in these alphabetic ranges between the known states. For a range, the database can use its index on states.
_BETWEEN = [
    table.c.state < _KNOWN[0],
    *(and_(table.c.state > low, table.c.state < high) for low, high in pairwise(_KNOWN)),
    table.c.state > _KNOWN[-1],
]


def find_unknown_states(worker_state: WorkerState, connection: Connection) -> None:
    """Find the attempts in unknown states, keep this worker from carrying out their records, and log each attempt that was not found
    before.
    """
    names = [*(queue.name for queue in worker_state.queues), *worker_state.schedules]
    columns = (table.c.reaction, table.c.record, table.c.occurrence, table.c.blocks, table.c.state)
    each = [select(*columns).where(table.c.app == worker_state.app, table.c.reaction.in_(names), range_).limit(MOST) for range_ in _BETWEEN]
    with reading_own_rows():
        found = connection.execute(union_all(*[select(one.subquery()) for one in each])).all()
    met = {tuple(row) for row in found}
    for reaction, record, _, blocks, state in sorted(met - worker_state.incarnation.unknown_states, key=repr):
        log.error(
            "%s: %s",
            name_record(worker_state.incarnation, reaction, record, blocks),
            attempts.unknown_state_message(state),
            extra={"event": "attempt_state_unknown", "reaction": reaction, "record": record},
        )
    worker_state.incarnation.unknown_states = met
    declared = {name: queue.query.spec.table_name for queue in worker_state.queues for name in queue.query.attempts.table_name_spellings}
    worker_state.incarnation.air.set_excluded_records(
        (declared.get(blocks, blocks), record) for _, record, _, blocks, _ in met if blocks is not None
    )


def forget_unknown_states(worker_state: WorkerState) -> None:
    """Forget which attempts are in unknown states. Call it when the attempt table is empty."""
    worker_state.incarnation.unknown_states = set()
    worker_state.incarnation.air.set_excluded_records(())


def hold_unknown_states(tx: Transaction, settled: Sequence[Identity]) -> set[Identity]:
    """For the attempts that a person settles: set each attempt in an unknown state to `held`, so that it can be settled. Return the
    identities of the attempts that were changed.
    """
    names = ("app", "reaction", "record", "occurrence")
    taken = set()
    for identity in settled:
        mine: list[Any] = [table.c[name] == value for name, value in zip(names, identity, strict=True)]
        if tx.connection.execute(update(table).where(*mine, or_(*_BETWEEN)).values(state=State.HELD.value)).rowcount:
            taken.add(identity)
    return taken
