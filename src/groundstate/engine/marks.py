"""Rows of schedules in `groundstate_reaction`: how each was written down, and its mark, the last tick's instant. Carries nothing out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select, update

from groundstate.engine import cells
from groundstate.engine.cells import LATEST
from groundstate.engine.life import Life
from groundstate.engine.transaction import Transaction
from groundstate.engine.trouble import reading_ours
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database
from groundstate.store.tables import reaction as table
from groundstate.values import keys

log = logging.getLogger("groundstate")
_COLUMNS = (table.c.name, table.c.condition, table.c.mark)


@dataclass(frozen=True)
class Mark:
    """What stands of a schedule: its words, and the mark as it is written."""

    words: str
    written: str | None

    @property
    def at(self) -> datetime | None:
        """The instant; None where somebody edited it to be none."""
        try:
            read: datetime = keys.value_of(str(self.written), datetime)
            read = read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
        except (ValueError, OverflowError):
            return None
        return read if read <= LATEST else None

    def illegible(self, name: str) -> str:
        """What is said where it is none."""
        return (
            f"the mark of schedule {name} says {str(self.written)[:60]!r}, which is no time, so nothing of it is carried out: {cure(name)}"
        )


def cure(name: str) -> str:
    return f"`groundstate init --baseline {name}` sets it to now"


def read(connection: Connection, app: str, specs: Sequence[ScheduleSpec]) -> dict[str, Mark]:
    """What stands of these. Raises Illegible."""
    names = [spec.name for spec in specs]
    with reading_ours():
        rows = connection.execute(select(*_COLUMNS).where(table.c.app == app, table.c.name.in_(names))).all()
    return {str(row.name): Mark(str(row.condition), row.mark) for row in rows}


def as_they_stand(database: Database, connection: Connection, app: str, specs: Sequence[ScheduleSpec]) -> dict[str, Mark]:
    """The same for who only reads: nothing that somebody wrote into these rows can fail."""
    names = [spec.name for spec in specs]
    rows = connection.execute(select(*cells.columns(database, _COLUMNS)).where(table.c.app == app, table.c.name.in_(names)))
    found = [[cell.text for cell in cells.cells(_COLUMNS, row)] for row in rows]
    return {name or "": Mark(words or "", mark) for name, words, mark in found}


def taken(tx: Transaction, spec: ScheduleSpec, mark: Mark) -> bool:
    """Locks the schedule's row: False where another worker has it, or it does not stand as it was seen."""
    mine = select(*_COLUMNS).where(table.c.app == spec.app, table.c.name == spec.name)
    with reading_ours():
        row = tx.connection.execute(tx.database.lock(mine, table)).first()
    return row is not None and Mark(row.condition, row.mark) == mark


def locked(tx: Transaction, spec: ScheduleSpec) -> bool:
    """Locks the schedule's row, whatever its mark is: False where another worker has it."""
    mine = select(table.c.name).where(table.c.app == spec.app, table.c.name == spec.name)
    return tx.connection.execute(tx.database.lock(mine, table)).first() is not None


def move(tx: Transaction, spec: ScheduleSpec, to: datetime) -> Mark:
    """Writes the mark, under the row's lock."""
    mark = Mark(spec.words, keys.instant(to))
    tx.connection.execute(update(table).where(table.c.app == spec.app, table.c.name == spec.name).values(mark=mark.written))
    return mark


def baseline(life: Life, specs: Sequence[ScheduleSpec]) -> None:
    """These start with now, whatever stands of them."""
    with life.transaction() as tx:
        for spec in specs:
            row = _new(spec, tx)
            tx.connection.execute(row.on_conflict_do_update(index_elements=_KEY, set_={name: row.excluded[name] for name in _SAID}))


def enrol(life: Life, specs: Sequence[ScheduleSpec]) -> None:
    """Schedules that are new, or declared otherwise than before, start with now: what lies before that is not carried out."""
    with life.database.reading() as connection:
        seen = read(connection, life.app, specs)
    for spec in specs:
        before = seen.get(spec.name)
        if before is None or before.words != spec.words:
            _start_anew(life, spec, before)


def _start_anew(life: Life, spec: ScheduleSpec, before: Mark | None) -> None:
    """The mark is now; where another worker was first it is that one's."""
    with life.transaction() as tx:
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
