"""Reads and writes the rows of schedules in `groundstate_reaction`. A row holds a schedule's definition and its cursor (the time of the
last tick that was carried out or skipped). Runs no handlers.
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
from groundstate.engine.sql.db_errors import reading_own_rows
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
    """A schedule's row: its definition in words (`words`), and its cursor as the text stored in the column `mark` (`written`)."""

    words: str
    written: str | None

    @property
    def moment(self) -> datetime | None:
        """The cursor as a time in UTC; None if the stored text is no time, as after a person edited it."""
        try:
            read: datetime = keys.parse_value(str(self.written), datetime)
            read = read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
        except (ValueError, OverflowError):
            return None
        return read if read <= LATEST else None

    def illegible_message(self, name: str) -> str:
        """Return the error message for a schedule whose cursor cannot be read as a time."""
        return (
            f"the mark of schedule {name} says {str(self.written)[:60]!r}, which is no time, so none of its ticks is carried out:"
            f" {cure_for_cursor(name)}"
        )


def cure_for_cursor(name: str) -> str:
    """Return the words of an error message that tell a person how to repair the cursor of this schedule."""
    return f"`groundstate init --baseline {name}` sets it to now"


def read_cursors(connection: Connection, app: str, specs: Sequence[ScheduleSpec]) -> dict[str, ScheduleCursor]:
    """Return a dict from schedule name to row, for those of these schedules that have a row. Raises Illegible if a row cannot be read."""
    names = [spec.name for spec in specs]
    with reading_own_rows():
        rows = connection.execute(select(*_COLUMNS).where(table.c.app == app, table.c.name.in_(names))).all()
    return {str(row.name): ScheduleCursor(str(row.condition), row.mark) for row in rows}


def read_cursors_as_stored(
    database: Database, connection: Connection, app: str, specs: Sequence[ScheduleSpec]
) -> dict[str, ScheduleCursor]:
    """Return a dict from schedule name to row, as `read_cursors` does, but for reports: it never fails, whatever a person wrote into the
    rows.
    """
    names = [spec.name for spec in specs]
    rows = connection.execute(select(*raw_cells.select_raw_columns(database, _COLUMNS)).where(table.c.app == app, table.c.name.in_(names)))
    found = [[cell.text for cell in raw_cells.cells_of_row(_COLUMNS, row)] for row in rows]
    return {name or "": ScheduleCursor(words or "", mark) for name, words, mark in found}


def lock_row_if_unchanged(tx: Transaction, spec: ScheduleSpec, mark: ScheduleCursor) -> bool:
    """Lock the schedule's row without waiting. Return False if another worker has locked the row, or if the row no longer equals `mark`."""
    mine = select(*_COLUMNS).where(table.c.app == spec.app, table.c.name == spec.name)
    with reading_own_rows():
        row = tx.connection.execute(tx.database.with_row_locks(mine, table)).first()
    return row is not None and ScheduleCursor(row.condition, row.mark) == mark


def lock_row(tx: Transaction, spec: ScheduleSpec) -> bool:
    """Lock the schedule's row without waiting, whatever its cursor is. Return False if another worker has locked the row."""
    mine = select(table.c.name).where(table.c.app == spec.app, table.c.name == spec.name)
    return tx.connection.execute(tx.database.with_row_locks(mine, table)).first() is not None


def move_cursor(tx: Transaction, spec: ScheduleSpec, to: datetime) -> ScheduleCursor:
    """Set the schedule's cursor to the time `to`, and return the row as it is now. The caller must have locked the row."""
    mark = ScheduleCursor(spec.as_text, keys.datetime_text(to))
    tx.connection.execute(update(table).where(table.c.app == spec.app, table.c.name == spec.name).values(mark=mark.written))
    return mark


def reset_cursors_to_now(incarnation: Incarnation, specs: Sequence[ScheduleSpec]) -> None:
    """Set the cursors of these schedules to now, whatever their rows held, and insert the rows that are missing."""
    with incarnation.open_transaction() as tx:
        for spec in specs:
            row = _insert_statement_for_schedule(spec, tx)
            tx.connection.execute(row.on_conflict_do_update(index_elements=_KEY, set_={name: row.excluded[name] for name in _SAID}))


def enrol_schedules(incarnation: Incarnation, specs: Sequence[ScheduleSpec]) -> None:
    """Set the cursor to now for each schedule that is new or whose definition changed, so that no earlier tick of it is carried out."""
    with incarnation.database.reading() as connection:
        seen = read_cursors(connection, incarnation.app, specs)
    for spec in specs:
        before = seen.get(spec.name)
        if before is None or before.words != spec.as_text:
            _restart_schedule(incarnation, spec, before)


def _restart_schedule(incarnation: Incarnation, spec: ScheduleSpec, before: ScheduleCursor | None) -> None:
    """Set the schedule's cursor to now and log it. The row stays as it is if another worker changed its definition after
    `before` was read.

    `before` is None if there was no row.
    """
    with incarnation.open_transaction() as tx:
        row = _insert_statement_for_schedule(spec, tx)
        as_it_was = table.c.condition == ("" if before is None else before.words)
        said = {name: row.excluded[name] for name in _SAID}
        tx.connection.execute(row.on_conflict_do_update(index_elements=_KEY, set_=said, where=as_it_was))
    if before is None:
        log.info(
            "schedule %s is new here, and starts with now: %s",
            spec.name,
            spec.as_text,
            extra={"event": "schedule_new", "schedule": spec.name},
        )
    else:
        was = before.words
        log.warning(
            "schedule %s starts anew with now, so that its earlier ticks are not carried out: %s (before: %s)",
            spec.name,
            spec.as_text,
            was,
            extra={"event": "schedule_anew", "schedule": spec.name},
        )


def _insert_statement_for_schedule(spec: ScheduleSpec, tx: Transaction) -> Any:
    """Return an INSERT statement for the schedule's row, with the cursor set to now."""
    mark = keys.datetime_text(tx.now)
    row = {"app": spec.app, "name": spec.name, "key_name": spec.name, "condition": spec.as_text, "suspect": False, "seen_at": tx.now}
    return tx.database.insert_function(table).values(**row, mark=mark)


_KEY = ["app", "name"]
_SAID = ("condition", "mark", "seen_at", "wrote")
