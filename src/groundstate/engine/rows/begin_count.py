"""Counts all calls ever begun on a SQLite store, to notice that a backup of its file was put back.

The store's id and the count are in our own row of groundstate_reaction. The high-water mark, a file outside of the database, keeps the
highest count. If the count in the database is lower, a backup was put back. PostgreSQL does not use this, since its server has an identity
of its own.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import and_, case, func, insert, null, select, update

from groundstate.engine.sql.transaction import Transaction
from groundstate.store.port import Database, HighWater
from groundstate.store.tables import reaction
from groundstate.values.errors import WentBackError

OWN_ROW = and_(reaction.c.app == "", reaction.c.name == "")
_ROW = select(reaction.c.condition, reaction.c.begins).where(OWN_ROW)
# False if a person edited the count: the count is then unknown until the next worker incarnation writes a new one.
_IS_A_NUMBER = func.typeof(reaction.c.begins) == "integer"


class StoreBegins:
    """Counts the calls that one worker incarnation begins on a SQLite store, and compares the count with the high-water mark."""

    def __init__(self, mark: HighWater) -> None:
        self._mark = mark
        self._told: tuple[str, int] | None = None  # (store id, count) as last counted, whether or not it was committed

    def add_begins(self, tx: Transaction, new: int) -> None:
        """Add `new` calls to the store's count, in the transaction that begins these calls.

        Every worker commits the count before it raises the high-water mark, and this transaction holds the write lock. So if the mark is
        above the count, commits were lost.

        Raises:
            WentBackError: The high-water mark says that more calls were begun than the database counts.
        """
        self._told = None
        more = case((_IS_A_NUMBER, reaction.c.begins + new), else_=null())
        written = update(reaction).where(OWN_ROW).values(begins=more).returning(reaction.c.condition, reaction.c.begins)
        row = tx.connection.execute(written).first()
        store, begins = (None, None) if row is None else _parse_id_and_count(row)
        if store is None or begins is None:
            return  # a person deleted or edited the row: the next worker incarnation writes a new one
        highest = self._mark.highest_count(store)
        if highest is not None and highest > begins - new:
            raise WentBackError(_restore_message(highest, begins - new))
        self._told = (store, begins)

    def raise_high_water_mark(self) -> None:
        """Store the latest count in the high-water mark. Call this after the commit that begins calls, and before any of these
        calls is sent.
        """
        if self._told is not None:
            self._mark.keep_if_higher(*self._told)

    def sign_of_restore(self, database: Database) -> str | None:
        """Return a sentence that says why a backup seems to have been put back; None if nothing says so. The mark is read before the count,
        since other workers may raise both in between.
        """
        store, _ = _read_id_and_count(database)
        highest = None if store is None else self._mark.highest_count(store)
        same, begins = _read_id_and_count(database)
        if highest is None or begins is None or same != store or begins >= highest:
            return None
        return _restore_message(highest, begins)

    def keep_present_count(self, database: Database) -> bool:
        """Store the database's present count in the high-water mark. Return False if the database has no store id or no valid count."""
        store, begins = _read_id_and_count(database)
        if store is None or begins is None:
            return False
        if begins:
            self._mark.keep_if_higher(store, begins)
        return True

    def write_id_and_count(self, tx: Transaction) -> None:
        """Write a store id if there is none, and raise the count to the high-water mark, so that the count is no longer a sign of a
        restore.

        The mark is not lowered. So if the same backup is put back once more, that is noticed too.
        """
        row = tx.connection.execute(_ROW).first()
        store, begins = (None, None) if row is None else _parse_id_and_count(row)
        if store is None:
            store, begins = tx.database.dice.randbytes(16).hex(), 0
        begins = max(begins or 0, self._mark.highest_count(store) or 0)
        _write_row_of_store(tx, store, begins, is_there=row is not None)

    def reset_id_and_count(self, tx: Transaction) -> None:
        """Give the store a new id and a count of 0. Call it for a file that is meant to be a new store, such as a copy of a template."""
        _write_row_of_store(tx, tx.database.dice.randbytes(16).hex(), 0, is_there=tx.connection.execute(_ROW).first() is not None)


def _write_row_of_store(tx: Transaction, store: str, begins: int, *, is_there: bool) -> None:
    values = {"condition": json.dumps({"store": store}), "begins": begins, "seen_at": tx.now}
    if is_there:
        tx.connection.execute(update(reaction).where(OWN_ROW).values(**values))
    else:
        tx.connection.execute(insert(reaction).values(app="", name="", key_name="", suspect=False, **values))


def _read_id_and_count(database: Database) -> tuple[str | None, int | None]:
    with database.reading() as connection:
        row = connection.execute(_ROW).first()
    return (None, None) if row is None else _parse_id_and_count(row)


def _parse_id_and_count(row: Any) -> tuple[str | None, int | None]:
    """Return a pair (store id, count) from our row. Each of the two is None if it is missing or invalid: a person may have edited it."""
    try:
        said = json.loads(row.condition)
    except (ValueError, TypeError):
        said = None
    store = said.get("store") if isinstance(said, dict) else None
    begins = row.begins if type(row.begins) is int and row.begins >= 0 else None
    return (store if isinstance(store, str) and store else None), begins


def _restore_message(highest: int, begins: int) -> str:
    return f"{highest} calls were begun on this store at this path, and it knows of {begins}"
