"""Attempts in a state that this version does not know: newer code wrote it, or somebody edited it. Told once, and left as they are.

Whatever such a state means, its call may have been made. So nobody takes its record until a person has settled it, or the code that knows
the state has; and no worker ever writes another state over it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, and_, or_, select, union_all, update

from groundstate.engine import attempts
from groundstate.engine.attempt_log import named
from groundstate.engine.attempts import Identity
from groundstate.engine.shift import Shift
from groundstate.engine.transaction import Transaction
from groundstate.engine.trouble import reading_ours
from groundstate.rules.attempt import State
from groundstate.store.tables import attempt as table

log = logging.getLogger("groundstate")
MOST = 1_000  # that are kept off others at a time

_KNOWN = sorted(state.value for state in State)
# As ranges, so that the index on states is used.
_BETWEEN = [
    table.c.state < _KNOWN[0],
    *(and_(table.c.state > low, table.c.state < high) for low, high in pairwise(_KNOWN)),
    table.c.state > _KNOWN[-1],
]


def look(shift: Shift, connection: Connection) -> None:
    """From now on the worker leaves their records alone. Those that it had not met are told."""
    names = [*(lane.name for lane in shift.lanes), *shift.schedules]
    columns = (table.c.reaction, table.c.record, table.c.occurrence, table.c.blocks, table.c.state)
    each = [select(*columns).where(table.c.app == shift.app, table.c.reaction.in_(names), range_).limit(MOST) for range_ in _BETWEEN]
    with reading_ours():
        found = connection.execute(union_all(*[select(one.subquery()) for one in each])).all()
    met = {tuple(row) for row in found}
    for reaction, record, _, blocks, state in sorted(met - shift.life.unknown_states, key=repr):
        log.error(
            "%s: %s",
            named(shift.life, reaction, record, blocks),
            attempts.unknown_state(state),
            extra={"event": "attempt_state_unknown", "reaction": reaction, "record": record},
        )
    shift.life.unknown_states = met
    declared = {name: lane.question.spec.table_name for lane in shift.lanes for name in lane.question.spellings}
    shift.life.air.keep_out((declared.get(blocks, blocks), record) for _, record, _, blocks, _ in met if blocks is not None)


def none(shift: Shift) -> None:
    """There are none, since there are no attempts."""
    shift.life.unknown_states = set()
    shift.life.air.keep_out(())


def take_as_held(tx: Transaction, settled: Sequence[Identity]) -> set[Identity]:
    """A person settles these: the states among them that are none become `held`, from which the deed goes on. Returns whose."""
    names = ("app", "reaction", "record", "occurrence")
    taken = set()
    for identity in settled:
        mine: list[Any] = [table.c[name] == value for name, value in zip(names, identity, strict=True)]
        if tx.connection.execute(update(table).where(*mine, or_(*_BETWEEN)).values(state=State.HELD.value)).rowcount:
            taken.add(identity)
    return taken
