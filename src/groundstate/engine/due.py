"""Which attempts are to be looked at now, and when the next one is. Asks the attempt table; decides nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import CompoundSelect, Select, and_, bindparam, or_, select, union_all

from groundstate.engine import attempts, unknown_states
from groundstate.engine.attempts import Identity
from groundstate.engine.illegible import WITHOUT_TIME
from groundstate.engine.lane import Lane
from groundstate.engine.shift import Shift
from groundstate.engine.transaction import Transaction
from groundstate.engine.trouble import Illegible, reading_ours
from groundstate.rules.attempt import State
from groundstate.store.tables import attempt as table

log = logging.getLogger("groundstate")
AT_ONCE = 200
OVERDUE_AGAIN_S = 1.0  # doubts of ours that were met too early, too many or locked: nobody else settles them


def identities(shift: Shift, tx: Transaction, lane: Lane, most: int, in_air: Container[Identity]) -> list[Identity]:
    """Failed attempts, and doubts of ours, whose time has come: the next of a pass that begins anew with each sweep."""
    statement = _of_a_lane(shift.app, lane.name)
    if lane.due_cursor is not None:
        statement = statement.where(attempts.after(_ORDER, lane.due_cursor))
    with reading_ours():
        rows = tx.connection.execute(statement.limit(most), {"now": tx.now, "life": shift.life.id}).all()
    if len(rows) == most:
        lane.due_cursor = _place(rows[-1])
    else:
        lane.due, lane.due_cursor = False, None
    return [identity for row in rows if (identity := (row[0], row[1], row[2], row[3])) not in in_air]


_ORDER = (table.c.next_at, table.c.record, table.c.occurrence)
_NOW, _LIFE = bindparam("now", type_=table.c.next_at.type), bindparam("life", type_=table.c.worker.type)  # given when it is asked


@lru_cache(maxsize=256)
def _of_a_lane(app: str, name: str) -> Select[Any]:
    """What of this reaction is due, made once for each. Anybody tries a failed attempt again; a doubt is settled by its worker alone."""
    ours = or_(table.c.state == State.FAILED.value, and_(table.c.state == State.DOUBT.value, table.c.worker == _LIFE))
    statement = select(table.c.app, table.c.reaction, table.c.record, table.c.occurrence, table.c.next_at)
    return statement.where(table.c.app == app, table.c.reaction == name, ours, table.c.next_at <= _NOW).order_by(*_ORDER)


def _place(row: Any) -> tuple[object, ...]:
    return (row.next_at, row.record, row.occurrence)


def ask(shift: Shift) -> None:
    """Sets `shift.next_due`: when the next attempt is due, by the database's clock, said in seconds of ours; soon, where doubts of ours
    are overdue, since a worker for which another one sweeps looks at them by itself each minute alone.
    """
    with shift.database.reading() as connection:
        if not shift.lanes or connection.execute(attempts.ANY).first() is None:
            shift.next_due = None
            unknown_states.none(shift)
            return
        unknown_states.look(shift, connection)
        now = connection.execute(select(shift.database.now())).scalar_one()
        asked = _asked(shift.app, tuple(lane.name for lane in shift.lanes))
        if connection.execute(asked.without_time).first() is not None:
            raise Illegible("an attempt that is failed or in doubt has no time at which it is looked at")
        overdue = connection.execute(asked.overdue, {"now": now, "life": shift.life.id}).first()
        waits_s = [] if overdue is None else [OVERDUE_AGAIN_S]
        with reading_ours():
            waits_s += [(row[0] - now).total_seconds() + 0.001 for row in connection.execute(asked.earliest, {"now": now})]
    shift.next_due = time.monotonic() + min(waits_s) if waits_s else None


@dataclass(frozen=True)
class _Asked:
    """What is asked of the attempts of some reactions."""

    without_time: Select[Any]  # any that is failed or in doubt and has no time
    overdue: Select[Any]  # any doubt of this life whose time has come
    earliest: CompoundSelect[Any]  # the next time of each reaction and state


@lru_cache(maxsize=64)
def _asked(app: str, names: tuple[str, ...]) -> _Asked:
    """Made once: the same is asked again and again, and two statements for each of many reactions take longer to make than to ask."""
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
