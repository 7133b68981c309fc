"""Which attempts are to be looked at now, and when the next one is. Asks the attempt table; decides nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Container
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, union_all

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
    order = (table.c.next_at, table.c.record, table.c.occurrence)
    statement = select(table.c.app, table.c.reaction, table.c.record, table.c.occurrence, table.c.next_at).where(
        table.c.app == shift.app, table.c.reaction == lane.name, _ours(shift), table.c.next_at <= tx.now
    )
    if lane.due_cursor is not None:
        statement = statement.where(attempts.after(order, lane.due_cursor))
    with reading_ours():
        rows = tx.connection.execute(statement.order_by(*order).limit(most)).all()
    if len(rows) == most:
        lane.due_cursor = _place(rows[-1])
    else:
        lane.due, lane.due_cursor = False, None
    return [identity for row in rows if (identity := (row[0], row[1], row[2], row[3])) not in in_air]


def _ours(shift: Shift) -> ColumnElement[bool]:
    """Anybody tries a failed attempt again; a doubt is settled by its worker alone."""
    return or_(table.c.state == State.FAILED.value, and_(table.c.state == State.DOUBT.value, table.c.worker == shift.life.id))


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
        earliest = [
            select(table.c.next_at)
            .where(table.c.app == shift.app, table.c.reaction == lane.name, table.c.state == state, table.c.next_at > now)
            .order_by(table.c.next_at)
            .limit(1)
            .subquery()
            for lane in shift.lanes
            for state in (State.FAILED.value, State.DOUBT.value)
        ]
        lanes = [lane.name for lane in shift.lanes]
        lost = select(table.c.app).where(table.c.app == shift.app, table.c.reaction.in_(lanes), WITHOUT_TIME).limit(1)
        if connection.execute(lost).first() is not None:
            raise Illegible("an attempt that is failed or in doubt has no time at which it is looked at")
        of_ours = (table.c.app == shift.app, table.c.state == State.DOUBT.value, table.c.worker == shift.life.id)
        overdue = select(table.c.app).where(*of_ours, table.c.reaction.in_(lanes), table.c.next_at <= now).limit(1)
        waits_s = [OVERDUE_AGAIN_S] if connection.execute(overdue).first() is not None else []
        with reading_ours():
            waits_s += [(row[0] - now).total_seconds() + 0.001 for row in connection.execute(union_all(*[select(one) for one in earliest]))]
    shift.next_due = time.monotonic() + min(waits_s) if waits_s else None
