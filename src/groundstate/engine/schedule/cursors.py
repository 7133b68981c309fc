"""Rows of schedules in `groundstate_reaction`: each holds the schedule's definition and its cursor, the time of the last tick. Runs no
handlers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select, update

from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql import raw_cells
from groundstate.engine.sql.db_errors import reading_ours
from groundstate.engine.sql.raw_cells import LATEST
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database
from groundstate.store.tables import reaction as table
from groundstate.values import keys

log = logging.getLogger("groundstate")
_COLUMNS = (table.c.name, table.c.condition, table.c.mark)


@dataclass(frozen=True)
class ScheduleCursor:
    """A schedule's row: its definition in words, and its cursor (the column `mark`) as it is written."""

    words: str
    written: str | None

    @property
    def at(self) -> datetime | None:
        """The cursor's time; None if a person edited it so that it is no time."""
        try:
            read: datetime = keys.value_of(str(self.written), datetime)
            read = read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
        except (ValueError, OverflowError):
            return None
        return read if read <= LATEST else None

    def illegible(self, name: str) -> str:
        """Return the error message for a cursor that is no time."""
        return (
            f"the mark of schedule {name} says {str(self.written)[:60]!r}, which is no time, so nothing of it is carried out: {cure(name)}"
        )


def cure(name: str) -> str:
    return f"`groundstate init --baseline {name}` sets it to now"


def read(connection: Connection, app: str, specs: Sequence[ScheduleSpec]) -> dict[str, ScheduleCursor]:
    """Return the rows of these schedules, by name. Raises Illegible if one of them cannot be read."""
    names = [spec.name for spec in specs]
    with reading_ours():
        rows = connection.execute(select(*_COLUMNS).where(table.c.app == app, table.c.name.in_(names))).all()
    return {str(row.name): ScheduleCursor(str(row.condition), row.mark) for row in rows}


def as_they_stand(database: Database, connection: Connection, app: str, specs: Sequence[ScheduleSpec]) -> dict[str, ScheduleCursor]:
    """Return the rows of these schedules, by name, for callers that only read: nothing that a person wrote into the rows
    makes this fail.
    """
    names = [spec.name for spec in specs]
    rows = connection.execute(select(*raw_cells.columns(database, _COLUMNS)).where(table.c.app == app, table.c.name.in_(names)))
    found = [[cell.text for cell in raw_cells.cells(_COLUMNS, row)] for row in rows]
    return {name or "": ScheduleCursor(words or "", mark) for name, words, mark in found}


def lock_row_if_unchanged(tx: Transaction, spec: ScheduleSpec, mark: ScheduleCursor) -> bool:
    """Lock the schedule's row. Returns False if another worker has locked it, or the row is no longer as it was seen."""
    mine = select(*_COLUMNS).where(table.c.app == spec.app, table.c.name == spec.name)
    with reading_ours():
        row = tx.connection.execute(tx.database.lock(mine, table)).first()
    return row is not None and ScheduleCursor(row.condition, row.mark) == mark


def locked(tx: Transaction, spec: ScheduleSpec) -> bool:
    """Lock the schedule's row, whatever its cursor is. Returns False if another worker has locked it."""
    mine = select(table.c.name).where(table.c.app == spec.app, table.c.name == spec.name)
    return tx.connection.execute(tx.database.lock(mine, table)).first() is not None


def move(tx: Transaction, spec: ScheduleSpec, to: datetime) -> ScheduleCursor:
    """Move the schedule's cursor. The caller has locked its row."""
    mark = ScheduleCursor(spec.words, keys.instant(to))
    tx.connection.execute(update(table).where(table.c.app == spec.app, table.c.name == spec.name).values(mark=mark.written))
    return mark


def baseline(incarnation: Incarnation, specs: Sequence[ScheduleSpec]) -> None:
    """Set the cursors of these schedules to now, whatever their rows hold."""
    with incarnation.transaction() as tx:
        for spec in specs:
            row = _new(spec, tx)
            tx.connection.execute(row.on_conflict_do_update(index_elements=_KEY, set_={name: row.excluded[name] for name in _SAID}))


def enrol(incarnation: Incarnation, specs: Sequence[ScheduleSpec]) -> None:
    """Start schedules that are new or whose definition changed: their cursor is set to now, so ticks before that are not carried out."""
    with incarnation.database.reading() as connection:
        seen = read(connection, incarnation.app, specs)
    for spec in specs:
        before = seen.get(spec.name)
        if before is None or before.words != spec.words:
            _start_anew(incarnation, spec, before)


def _start_anew(incarnation: Incarnation, spec: ScheduleSpec, before: ScheduleCursor | None) -> None:
    """Set the schedule's cursor to now, unless another worker has changed the row first."""
    with incarnation.transaction() as tx:
        row = _new(spec, tx)
        as_it_was = table.c.condition == ("" if before is None else before.words)
        said = {name: row.excluded[name] for name in _SAID}
        tx.connection.execute(row.on_conflict_do_update(index_elements=_KEY, set_=said, where=as_it_was))
    if before is None:
        log.info(
            "schedule %s is new here, and starts with now: %s",
            spec.name,
            spec.words,
            extra={"event": "schedule_new", "schedule": spec.name},
        )
    else:
        was = before.words
        log.warning(
            "schedule %s starts anew with now, so that its past is not carried out: %s (before: %s)",
            spec.name,
            spec.words,
            was,
            extra={"event": "schedule_anew", "schedule": spec.name},
        )


def _new(spec: ScheduleSpec, tx: Transaction) -> Any:
    mark = keys.instant(tx.now)
    row = {"app": spec.app, "name": spec.name, "key_name": spec.name, "condition": spec.words, "suspect": False, "seen_at": tx.now}
    return tx.database.insert(table).values(**row, mark=mark)


_KEY = ["app", "name"]
_SAID = ("condition", "mark", "seen_at", "wrote")
