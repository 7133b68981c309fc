"""Handles rows of our own tables that are unreadable because a person edited them. If such a row is an attempt, it is held for a person.

The attempt's call may have been made, so the attempt still keeps its record from being claimed, and never causes a new call. Workers and
commands repair unreadable rows (`mend_unreadable_rows`). A function that only reads gets each row as it would be after a repair
(`fetch_attempts_despite_corrupt_rows`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, Table, Text, and_, delete, select, update
from sqlalchemy.exc import IntegrityError

from groundstate.clock import Dice
from groundstate.engine.rows import attempts
from groundstate.engine.rows.attempt_log import name_attempt
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql import raw_cells
from groundstate.engine.sql.db_errors import Illegible
from groundstate.engine.sql.raw_cells import RawCell
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.policy import LONG_AGO
from groundstate.store import tables
from groundstate.store.port import Database

log = logging.getLogger("groundstate")
_COLUMNS = list(tables.attempt.columns)
_WORDS = ("error", "why", "outcome", "blocks")  # columns with free text, on which no decision depends
WITHOUT_TIME = and_(tables.attempt.c.state.in_([State.FAILED.value, State.DOUBT.value]), tables.attempt.c.next_at.is_(None))
_STATES = {state.value for state in State}


@dataclass(frozen=True)
class _Row:
    """One row of `groundstate_attempt`, as raw cells by column name."""

    cells: dict[str, RawCell]
    dice: Dice  # source of random numbers, from which a call number is drawn if the row's own cannot be read

    @property
    def unreadable_cells(self) -> list[RawCell]:
        """Return the cells that cannot be read and may be overwritten. The state is never among them, since an unknown state is kept."""
        return [cell for cell in self.cells.values() if not cell.has_expected_type and cell.column.name != "state"]

    @property
    def _state_is_known(self) -> bool:
        return self.cells["state"].text in _STATES

    def to_attempt(self) -> Attempt:
        """Return the Attempt that stands for this row.

        If the row's state is known and only free text (`_WORDS`) is unreadable, the Attempt has this state. Otherwise the Attempt is held.
        Then it also counts as unsure (its call may have been made), unless the state is known and the readable cells show that no call was
        made.
        """
        values = {name: self._readable_value(cell) for name, cell in self.cells.items()}
        wrong = [cell for cell in self.unreadable_cells if cell.column.name not in _WORDS]
        if wrong:
            said = ", ".join(cell.description for cell in wrong)
            values |= {
                "state": State.HELD,
                "unsure": self._may_have_been_called(),
                "next_at": None,
                "why": f"somebody edited its row, which cannot be read: {said}",
            }
        if not self._state_is_known:
            values |= attempts.fields_as_held(self.cells["state"].text)
        return Attempt(**{**values, "state": State(values["state"])})

    def mended_values(self) -> dict[str, Any]:
        """Return the column values that make this row readable."""
        values = attempts.column_values(self.to_attempt())
        return values if self._state_is_known else {cell.column.name: values[cell.column.name] for cell in self.unreadable_cells}

    def _may_have_been_called(self) -> bool:
        state, unsure, calls = (self.cells[name] for name in ("state", "unsure", "call_no"))
        surely_not = unsure.has_expected_type and unsure.value() is False
        none_begun = calls.has_expected_type and calls.value() == 0
        return not (surely_not and (none_begun or state.text in (State.FAILED, State.HELD)))

    def _readable_value(self, cell: RawCell) -> Any:
        if cell.has_expected_type:
            return cell.value()
        if cell.column.name == "begun_with":
            return None  # None: how the call was begun is no longer known
        if isinstance(cell.column.type, Text):
            return cell.text or ""
        if cell.column.nullable:
            return None
        if isinstance(cell.column.type, tables.UtcDateTime):
            return LONG_AGO
        return attempts.new_call_number(self.dice) if cell.column.name == "call" else 0


def _read_rows(connection: Connection, statement: Select[Any], dice: Dice) -> list[_Row]:
    return [_Row({cell.column.name: cell for cell in raw_cells.cells_of_row(_COLUMNS, row)}, dice) for row in connection.execute(statement)]


# ---- reading without a write ---------------------------------------------------------------------------------------------------
def fetch_attempts_despite_corrupt_rows(database: Database, connection: Connection, statement: Select[Any]) -> list[Attempt]:
    """Return the attempts that a statement made by `select_attempts` selects, without writing. An unreadable row is returned as it would be
    after `mend_unreadable_rows`: held for a person.
    """
    try:
        return attempts.fetch_attempts(connection, statement)
    except Illegible:
        pass
    raw = statement.with_only_columns(*raw_cells.select_raw_columns(database, _COLUMNS), maintain_column_froms=True)
    return [row.to_attempt() for row in _read_rows(connection, raw, database.dice)]


# ---- mending rows --------------------------------------------------------------------------------------------------------------
def retry_after_mending(incarnation: Incarnation, act: Callable[[], Any]) -> Any:
    """Run `act` and return what it returns. If `act` raises Illegible because of an unreadable row of ours, mend all such rows and run
    `act` once more.
    """
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
    with incarnation.open_transaction() as tx:
        raw = select(*raw_cells.select_raw_columns(tx.database, _COLUMNS)).select_from(tables.attempt)
        for row in _read_rows(tx.connection, raw, tx.database.dice):
            if row.unreadable_cells:
                _mend_attempt(incarnation, tx, row)
                count += 1
        count += _set_missing_times(tx)
        count += _mend_other_table(tx, tables.worker, {"ended_at": tx.now, "began_at": tx.now})
        count += _mend_other_table(tx, tables.reaction, {"suspect": True, "seen_at": tx.now})
    return count


def _mend_attempt(incarnation: Incarnation, tx: Transaction, row: _Row) -> None:
    after = row.to_attempt()
    log.error(
        "%s: a row of groundstate_attempt was edited and cannot be read: %s",
        name_attempt(incarnation, after),
        _unreadable_cells_in_words(incarnation, row),
        extra={"event": "attempt_illegible", "reaction": after.reaction, "record": after.record},
    )
    _update_row(tx, tables.attempt, row.cells, {**row.mended_values(), "record": after.record}, "record", f" ({after.call:x})")


def _unreadable_cells_in_words(incarnation: Incarnation, row: _Row) -> str:
    return incarnation.shorten(", ".join(cell.description for cell in row.unreadable_cells))


def _set_missing_times(tx: Transaction) -> int:
    """Set `next_at` to now for failed attempts and attempts in doubt whose `next_at` is empty, since they would never be tried again.
    Return how many were changed.
    """
    table = tables.attempt
    found = tx.connection.execute(update(table).where(WITHOUT_TIME).values(next_at=tx.now)).rowcount
    if found:
        log.error(
            "%d attempts had no time of their next try, since somebody edited them: it was set to now",
            found,
            extra={"event": "attempts_without_time", "count": found},
        )
    return found


def _mend_other_table(tx: Transaction, table: Table, instead: dict[str, Any]) -> int:
    """Mend unreadable rows of the worker or the reaction table, and return how many there were. A worker's row with an unreadable id is
    deleted, since no lock can belong to it.

    instead: the values to write into unreadable cells, as a dict from column name to value.
    """
    of = list(table.columns)
    count = 0
    for raw in tx.connection.execute(select(*raw_cells.select_raw_columns(tx.database, of)).select_from(table)).all():
        row = {cell.column.name: cell for cell in raw_cells.cells_of_row(of, raw)}
        faults = [cell for cell in row.values() if not cell.has_expected_type]
        if not faults:
            continue
        count += 1
        log.error(
            "a row of %s was edited and cannot be read: %s",
            table.name,
            ", ".join(cell.description for cell in faults),
            extra={"event": "row_illegible", "table": table.name},
        )
        if "id" in row and not row["id"].has_expected_type:
            tx.connection.execute(delete(table).where(_where_row_is(table, row)))
            continue
        values = {cell.column.name: instead.get(cell.column.name, _fallback_value(cell)) for cell in faults}
        # The row's `xmin` becomes the number of the savepoint in which this runs. No number that is stored in `wrote` would equal it, so
        # NULL is stored, which means unknown.
        values["wrote"] = None
        _update_row(tx, table, row, values, "name" if "name" in row else "host", " (edited)")
    return count


def _fallback_value(cell: RawCell) -> Any:
    if isinstance(cell.column.type, Text):
        return cell.text or ""
    return None if cell.column.nullable else 0


def _where_row_is(table: Table, row: dict[str, RawCell]) -> Any:
    """Return the SQL condition that selects exactly this row. If the row is an attempt, its state and call number must be unchanged too."""
    fence = [table.c.state, table.c.call] if "state" in row else []
    return and_(*[row[column.name].equals_stored_value(f"is_{column.name}") for column in [*table.primary_key, *fence]])


def _update_row(tx: Transaction, table: Table, row: dict[str, RawCell], values: dict[str, Any], name: str, apart: str) -> None:
    """Write `values` to this row. If they violate a unique key, append the text `apart` to the value of column `name`, and try again."""
    statement = update(table).where(_where_row_is(table, row))
    try:
        with tx.connection.begin_nested():
            tx.connection.execute(statement.values(values))
    except IntegrityError:
        tx.connection.execute(statement.values({**values, name: f"{values[name]}{apart}"}))


def read_worker_rows(database: Database, connection: Connection) -> list[dict[str, Any]]:
    """Return the rows of `groundstate_worker`, without writing. An unreadable cell is returned as None, and a row whose number is
    unreadable is left out.
    """
    found = []
    of = list(tables.worker.columns)
    for raw in connection.execute(select(*raw_cells.select_raw_columns(database, of)).select_from(tables.worker)):
        row = {cell.column.name: cell for cell in raw_cells.cells_of_row(of, raw)}
        if row["id"].has_expected_type:
            found.append({name: cell.value() if cell.has_expected_type else None for name, cell in row.items()})
    return found
