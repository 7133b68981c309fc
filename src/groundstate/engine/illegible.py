"""Rows of our own tables that cannot be read, since somebody edited them by hand: each attempt among them is held for a person.

It was an attempt, so its call may have been made: it keeps its record from being taken, and it is never a new call. A worker and a
person's command write that down (`mend`); what only reads says the same of the row as it stands (`attempts_as_they_stand`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, Table, Text, and_, delete, select, update
from sqlalchemy.exc import IntegrityError

from groundstate.engine import attempts, cells
from groundstate.engine.attempt_log import of_attempt
from groundstate.engine.cells import Cell
from groundstate.engine.life import Life
from groundstate.engine.transaction import Transaction
from groundstate.engine.trouble import Illegible
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.policy import LONG_AGO
from groundstate.store import tables
from groundstate.store.port import Database

log = logging.getLogger("groundstate")
_COLUMNS = list(tables.attempt.columns)
_WORDS = ("error", "why", "outcome", "blocks")  # what is said there decides nothing of what it is
WITHOUT_TIME = and_(tables.attempt.c.state.in_([State.FAILED.value, State.DOUBT.value]), tables.attempt.c.next_at.is_(None))
_STATES = {state.value for state in State}


@dataclass(frozen=True)
class _Row:
    """One attempt as it stands."""

    cells: dict[str, Cell]

    @property
    def faults(self) -> list[Cell]:
        """Of what can be written anew: a state that is none stays what it is (`unknown_states`)."""
        return [cell for cell in self.cells.values() if not cell.readable and cell.column.name != "state"]

    @property
    def _state_is_known(self) -> bool:
        return self.cells["state"].text in _STATES

    def attempt(self) -> Attempt:
        """What it is read as: held, unsure but where that is ruled out. Where nothing but words is at fault it stays what it is."""
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
        """The values with which it can be read."""
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
            return None  # what it was begun with is not known any more
        if isinstance(cell.column.type, Text):
            return cell.text or ""
        if cell.column.nullable:
            return None
        if isinstance(cell.column.type, tables.Instant):
            return LONG_AGO
        return attempts.new_call() if cell.column.name == "call" else 0


def _rows(connection: Connection, statement: Select[Any]) -> list[_Row]:
    return [_Row({cell.column.name: cell for cell in cells.cells(_COLUMNS, row)}) for row in connection.execute(statement)]


# ---- read ----------------------------------------------------------------------------------------------------------------------
def attempts_as_they_stand(database: Database, connection: Connection, statement: Select[Any]) -> list[Attempt]:
    """What `attempts.rows` selects, for who only reads: a row that cannot be read is held for a person, as `mend` would write it."""
    try:
        return attempts.fetch(connection, statement)
    except Illegible:
        pass
    raw = statement.with_only_columns(*cells.columns(database, _COLUMNS), maintain_column_froms=True)
    return [row.attempt() for row in _rows(connection, raw)]


# ---- mended --------------------------------------------------------------------------------------------------------------------
def mending(life: Life, act: Callable[[], Any]) -> Any:
    """The act; where it met a row of ours that cannot be read, once more after those were mended."""
    try:
        return act()
    except Illegible:
        if not mend(life):
            raise
    return act()


def mend(life: Life) -> int:
    """Writes every row of ours that cannot be read so that it can be: attempts as held. Returns how many; 0 where none was found."""
    count = 0
    with life.transaction() as tx:
        for row in _rows(tx.connection, select(*cells.columns(tx.database, _COLUMNS)).select_from(tables.attempt)):
            if row.faults:
                _write(life, tx, row)
                count += 1
        count += _give_times(tx)
        count += _mend_others(tx, tables.worker, {"ended_at": tx.now, "began_at": tx.now})
        count += _mend_others(tx, tables.reaction, {"suspect": True, "seen_at": tx.now})
    return count


def _write(life: Life, tx: Transaction, row: _Row) -> None:
    after = row.attempt()
    log.error(
        "%s: a row of groundstate_attempt was edited and cannot be read: %s",
        of_attempt(life, after),
        _said(life, row),
        extra={"event": "attempt_illegible", "reaction": after.reaction, "record": after.record},
    )
    _update(tx, tables.attempt, row.cells, {**row.written(), "record": after.record}, "record", f" ({after.call:x})")


def _said(life: Life, row: _Row) -> str:
    return life.shorten(", ".join(cell.words for cell in row.faults))


def _give_times(tx: Transaction) -> int:
    """Failed attempts and doubts without a time to be looked at would wait for ever."""
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
    """Lives and reactions. A life whose number is none cannot hold a lock, and goes."""
    of = list(table.columns)
    count = 0
    for raw in tx.connection.execute(select(*cells.columns(tx.database, of)).select_from(table)).all():
        row = {cell.column.name: cell for cell in cells.cells(of, raw)}
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
        if "life" in row and not row["life"].readable:
            tx.connection.execute(delete(table).where(_identity(table, row)))
            continue
        values = {cell.column.name: instead.get(cell.column.name, _plain(cell)) for cell in faults}
        values["wrote"] = None  # written in a savepoint, and nobody knows what it said: it says nothing
        _update(tx, table, row, values, "name" if "name" in row else "host", " (edited)")
    return count


def _plain(cell: Cell) -> Any:
    if isinstance(cell.column.type, Text):
        return cell.text or ""
    return None if cell.column.nullable else 0


def _identity(table: Table, row: dict[str, Cell]) -> Any:
    """This very row, and of an attempt only while nobody has made something else of it."""
    fence = [table.c.state, table.c.call] if "state" in row else []
    return and_(*[row[column.name].is_this(f"is_{column.name}") for column in [*table.primary_key, *fence]])


def _update(tx: Transaction, table: Table, row: dict[str, Cell], values: dict[str, Any], name: str, apart: str) -> None:
    """apart: what tells it from a row that has the name already, where its own could not be read."""
    statement = update(table).where(_identity(table, row))
    try:
        with tx.connection.begin_nested():
            tx.connection.execute(statement.values(values))
    except IntegrityError:
        tx.connection.execute(statement.values({**values, name: f"{values[name]}{apart}"}))


def read_lives(database: Database, connection: Connection) -> list[dict[str, Any]]:
    """Rows of `groundstate_worker`, for who only reads: what cannot be read is None, and a life without a number is left out."""
    found = []
    of = list(tables.worker.columns)
    for raw in connection.execute(select(*cells.columns(database, of)).select_from(tables.worker)):
        row = {cell.column.name: cell for cell in cells.cells(of, raw)}
        if row["life"].readable:
            found.append({name: cell.value() if cell.readable else None for name, cell in row.items()})
    return found
