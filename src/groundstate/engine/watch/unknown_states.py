"""Attempts in a state that this version does not know: newer code wrote it, or a person edited it. They are logged once, and no worker
changes them.

Whatever such a state means, the call may have been made. So no worker takes the record until a person, or code that knows the state, has
settled the attempt; and no worker ever overwrites the state.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, and_, or_, select, union_all, update

from groundstate.engine.rows import attempts
from groundstate.engine.rows.attempt_log import named
from groundstate.engine.rows.attempts import Identity
from groundstate.engine.sql.db_errors import reading_ours
from groundstate.engine.sql.transaction import Transaction
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.attempt import State
from groundstate.store.tables import attempt as table

log = logging.getLogger("groundstate")
MOST = 1_000  # attempts read for each range of unknown states

_KNOWN = sorted(state.value for state in State)
# The unknown states as ranges between known ones, for which the index on states can be used.
_BETWEEN = [
    table.c.state < _KNOWN[0],
    *(and_(table.c.state > low, table.c.state < high) for low, high in pairwise(_KNOWN)),
    table.c.state > _KNOWN[-1],
]


def look(worker_state: WorkerState, connection: Connection) -> None:
    """Keep this worker away from the records of attempts in unknown states, and log those it has not met before."""
    names = [*(queue.name for queue in worker_state.queues), *worker_state.schedules]
    columns = (table.c.reaction, table.c.record, table.c.occurrence, table.c.blocks, table.c.state)
    each = [select(*columns).where(table.c.app == worker_state.app, table.c.reaction.in_(names), range_).limit(MOST) for range_ in _BETWEEN]
    with reading_ours():
        found = connection.execute(union_all(*[select(one.subquery()) for one in each])).all()
    met = {tuple(row) for row in found}
    for reaction, record, _, blocks, state in sorted(met - worker_state.incarnation.unknown_states, key=repr):
        log.error(
            "%s: %s",
            named(worker_state.incarnation, reaction, record, blocks),
            attempts.unknown_state(state),
            extra={"event": "attempt_state_unknown", "reaction": reaction, "record": record},
        )
    worker_state.incarnation.unknown_states = met
    declared = {name: queue.query.spec.table_name for queue in worker_state.queues for name in queue.query.spellings}
    worker_state.incarnation.air.keep_out((declared.get(blocks, blocks), record) for _, record, _, blocks, _ in met if blocks is not None)


def none(worker_state: WorkerState) -> None:
    """Forget the attempts in unknown states, since there are no attempts at all."""
    worker_state.incarnation.unknown_states = set()
    worker_state.incarnation.air.keep_out(())


def take_as_held(tx: Transaction, settled: Sequence[Identity]) -> set[Identity]:
    """Set attempts that a person settles to `held` if their state is unknown, so that settling can go on. Return which were changed."""
    names = ("app", "reaction", "record", "occurrence")
    taken = set()
    for identity in settled:
        mine: list[Any] = [table.c[name] == value for name, value in zip(names, identity, strict=True)]
        if tx.connection.execute(update(table).where(*mine, or_(*_BETWEEN)).values(state=State.HELD.value)).rowcount:
            taken.add(identity)
    return taken
