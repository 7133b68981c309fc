"""Rows of our own tables that cannot be read because a person edited them: each attempt among them is held for a person.

Such an attempt's call may have been made, so it keeps its record from being claimed and never becomes a new call. Workers and commands
repair the rows (`mend`); code that only reads treats a row as `mend` would write it (`attempts_as_they_stand`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, Table, Text, and_, delete, select, update
from sqlalchemy.exc import IntegrityError

from groundstate.engine.rows import attempts
from groundstate.engine.rows.attempt_log import of_attempt
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql import raw_cells
from groundstate.engine.sql.db_errors import Illegible
from groundstate.engine.sql.raw_cells import Cell
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.policy import LONG_AGO
from groundstate.store import tables
from groundstate.store.port import Database

log = logging.getLogger("groundstate")
_COLUMNS = list(tables.attempt.columns)
_WORDS = ("error", "why", "outcome", "blocks")  # free text: it does not decide what the attempt is
WITHOUT_TIME = and_(tables.attempt.c.state.in_([State.FAILED.value, State.DOUBT.value]), tables.attempt.c.next_at.is_(None))
_STATES = {state.value for state in State}


@dataclass(frozen=True)
class _Row:
    """One row of `groundstate_attempt`, as raw cells by column name."""

    cells: dict[str, Cell]

    @property
    def faults(self) -> list[Cell]:
        """The cells that cannot be read and may be overwritten. An unknown state is not among them: it is left alone (`unknown_states`)."""
        return [cell for cell in self.cells.values() if not cell.readable and cell.column.name != "state"]

    @property
    def _state_is_known(self) -> bool:
        return self.cells["state"].text in _STATES

    def attempt(self) -> Attempt:
        """Return the Attempt that this row is read as: held, and unsure unless the readable cells rule that out. If only free text is
        unreadable (`_WORDS`), the state stays what it is.
        """
        values = {name: self._value(cell) for name, cell in self.cells.items()}
        wrong = [cell for cell in self.faults if cell.column.name not in _WORDS]
        if wrong:
            said = ", ".join(cell.words for cell in wrong)
            values |= {
                "state": State.HELD,
                "unsure": self._unsure(),
                "next_at": None,
                "why": f"somebody edited its row, which cannot be read: {said}",
            }
        if not self._state_is_known:
            values |= attempts.as_held(self.cells["state"].text)
        return Attempt(**{**values, "state": State(values["state"])})

    def written(self) -> dict[str, Any]:
        """Return the column values that make this row readable."""
        values = attempts.values_of(self.attempt())
        return values if self._state_is_known else {cell.column.name: values[cell.column.name] for cell in self.faults}

    def _unsure(self) -> bool:
        state, unsure, calls = (self.cells[name] for name in ("state", "unsure", "call_no"))
        surely_not = unsure.readable and unsure.value() is False
        none_begun = calls.readable and calls.value() == 0
        return not (surely_not and (none_begun or state.text in (State.FAILED, State.HELD)))

    def _value(self, cell: Cell) -> Any:
        if cell.readable:
            return cell.value()
        if cell.column.name == "begun_with":
            return None  # it is no longer known what the call was begun with
        if isinstance(cell.column.type, Text):
            return cell.text or ""
        if cell.column.nullable:
            return None
        if isinstance(cell.column.type, tables.UtcDateTime):
            return LONG_AGO
        return attempts.new_call() if cell.column.name == "call" else 0


def _rows(connection: Connection, statement: Select[Any]) -> list[_Row]:
    return [_Row({cell.column.name: cell for cell in raw_cells.cells(_COLUMNS, row)}) for row in connection.execute(statement)]


# ---- reading without a write ---------------------------------------------------------------------------------------------------
def attempts_as_they_stand(database: Database, connection: Connection, statement: Select[Any]) -> list[Attempt]:
    """Return the attempts that a statement of `attempts.rows` selects, for callers that only read: an unreadable row comes back held for a
    person, as `mend` would write it.
    """
    try:
        return attempts.fetch(connection, statement)
    except Illegible:
        pass
    raw = statement.with_only_columns(*raw_cells.columns(database, _COLUMNS), maintain_column_froms=True)
    return [row.attempt() for row in _rows(connection, raw)]


# ---- mending rows --------------------------------------------------------------------------------------------------------------
def retry_after_mending(incarnation: Incarnation, act: Callable[[], Any]) -> Any:
    """Run `act`; if it meets an unreadable row of ours, mend such rows and run it once more."""
    try:
        return act()
    except Illegible:
        if not mend_unreadable_rows(incarnation):
            raise
    return act()


def mend_unreadable_rows(incarnation: Incarnation) -> int:
    """Rewrite every unreadable row of our tables so that it can be read; unreadable attempts become held. Returns how many rows were
    rewritten.
    """
    count = 0
    with incarnation.transaction() as tx:
        for row in _rows(tx.connection, select(*raw_cells.columns(tx.database, _COLUMNS)).select_from(tables.attempt)):
            if row.faults:
                _write(incarnation, tx, row)
                count += 1
        count += _give_times(tx)
        count += _mend_others(tx, tables.worker, {"ended_at": tx.now, "began_at": tx.now})
        count += _mend_others(tx, tables.reaction, {"suspect": True, "seen_at": tx.now})
    return count


def _write(incarnation: Incarnation, tx: Transaction, row: _Row) -> None:
    after = row.attempt()
    log.error(
        "%s: a row of groundstate_attempt was edited and cannot be read: %s",
        of_attempt(incarnation, after),
        _said(incarnation, row),
        extra={"event": "attempt_illegible", "reaction": after.reaction, "record": after.record},
    )
    _update(tx, tables.attempt, row.cells, {**row.written(), "record": after.record}, "record", f" ({after.call:x})")


def _said(incarnation: Incarnation, row: _Row) -> str:
    return incarnation.shorten(", ".join(cell.words for cell in row.faults))


def _give_times(tx: Transaction) -> int:
    """Set `next_at` to now for failed attempts and attempts in doubt that have none, since they would wait for ever."""
    table = tables.attempt
    found = tx.connection.execute(update(table).where(WITHOUT_TIME).values(next_at=tx.now)).rowcount
    if found:
        log.error(
            "%d attempts had no time at which they are looked at, since somebody edited them: it is now",
            found,
            extra={"event": "attempts_without_time", "count": found},
        )
    return found


def _mend_others(tx: Transaction, table: Table, instead: dict[str, Any]) -> int:
    """Mend unreadable rows of the worker or the reaction table. A worker row whose number is unreadable cannot belong to a lock, so it is
    deleted.
    """
    of = list(table.columns)
    count = 0
    for raw in tx.connection.execute(select(*raw_cells.columns(tx.database, of)).select_from(table)).all():
        row = {cell.column.name: cell for cell in raw_cells.cells(of, raw)}
        faults = [cell for cell in row.values() if not cell.readable]
        if not faults:
            continue
        count += 1
        log.error(
            "a row of %s was edited and cannot be read: %s",
            table.name,
            ", ".join(cell.words for cell in faults),
            extra={"event": "row_illegible", "table": table.name},
        )
        if "id" in row and not row["id"].readable:
            tx.connection.execute(delete(table).where(_identity(table, row)))
            continue
        values = {cell.column.name: instead.get(cell.column.name, _plain(cell)) for cell in faults}
        values["wrote"] = None  # the row is updated in a savepoint, so `wrote` could not match its `xmin`; NULL claims nothing
        _update(tx, table, row, values, "name" if "name" in row else "host", " (edited)")
    return count


def _plain(cell: Cell) -> Any:
    if isinstance(cell.column.type, Text):
        return cell.text or ""
    return None if cell.column.nullable else 0


def _identity(table: Table, row: dict[str, Cell]) -> Any:
    """Return the condition that selects exactly this row; for an attempt, only while its state and call are unchanged."""
    fence = [table.c.state, table.c.call] if "state" in row else []
    return and_(*[row[column.name].is_this(f"is_{column.name}") for column in [*table.primary_key, *fence]])


def _update(tx: Transaction, table: Table, row: dict[str, Cell], values: dict[str, Any], name: str, apart: str) -> None:
    """Write `values` to this row. If a name that could not be read collides with another row's, `apart` is appended to it."""
    statement = update(table).where(_identity(table, row))
    try:
        with tx.connection.begin_nested():
            tx.connection.execute(statement.values(values))
    except IntegrityError:
        tx.connection.execute(statement.values({**values, name: f"{values[name]}{apart}"}))


def read_worker_rows(database: Database, connection: Connection) -> list[dict[str, Any]]:
    """Return the rows of `groundstate_worker` for callers that only read: an unreadable cell is None, and a row without a readable number
    is left out.
    """
    found = []
    of = list(tables.worker.columns)
    for raw in connection.execute(select(*raw_cells.columns(database, of)).select_from(tables.worker)):
        row = {cell.column.name: cell for cell in raw_cells.cells(of, raw)}
        if row["id"].readable:
            found.append({name: cell.value() if cell.readable else None for name, cell in row.items()})
    return found
