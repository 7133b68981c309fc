"""The id of a SQLite store and the number of calls ever begun on it, kept in our own row of groundstate_reaction. They are compared with
the high-water mark, a file outside of the database, to notice that a backup was put back. PostgreSQL has its own identity and does not use
this.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from sqlalchemy import and_, case, func, insert, null, select, update

from groundstate.engine.sql.transaction import Transaction
from groundstate.store.port import Database, HighWater
from groundstate.store.tables import reaction
from groundstate.values.errors import WentBackError

OWN_ROW = and_(reaction.c.app == "", reaction.c.name == "")
_ROW = select(reaction.c.condition, reaction.c.begins).where(OWN_ROW)
# If a person edited the count so that it is no number, it stays unknown until the next worker incarnation writes one.
_IS_A_NUMBER = func.typeof(reaction.c.begins) == "integer"


class StoreBegins:
    """Counts begun calls of one SQLite store for one worker incarnation, against the store's high-water mark."""

    def __init__(self, mark: HighWater) -> None:
        self._mark = mark
        self._told: tuple[str, int] | None = None  # (store id, count) of the latest begin, committed or not

    def count(self, tx: Transaction, new: int) -> None:
        """Add `new` calls to the store's count, in the transaction that begins them.

        Each worker keeps a count in the high-water mark only after its commit, and this transaction holds the write lock. So a mark above
        the count proves that commits were lost.

        Raises:
            WentBackError: More calls were begun on this store than the database knows of.
        """
        self._told = None
        more = case((_IS_A_NUMBER, reaction.c.begins + new), else_=null())
        written = update(reaction).where(OWN_ROW).values(begins=more).returning(reaction.c.condition, reaction.c.begins)
        row = tx.connection.execute(written).first()
        store, begins = (None, None) if row is None else _read(row)
        if store is None or begins is None:
            return  # a person deleted or edited the row: the next worker incarnation writes it again
        highest = self._mark.highest(store)
        if highest is not None and highest > begins - new:
            raise WentBackError(_words(highest, begins - new))
        self._told = (store, begins)

    def counted(self) -> None:
        """Store the latest count in the high-water mark. Called after the begin's commit and before its first call."""
        if self._told is not None:
            self._mark.keep(*self._told)

    def sign(self, database: Database) -> str | None:
        """Return why the database seems to have been put back, or None. The mark is read before the count, since other workers raise both
        meanwhile.
        """
        store, _ = _look(database)
        highest = None if store is None else self._mark.highest(store)
        same, begins = _look(database)
        if highest is None or begins is None or same != store or begins >= highest:
            return None
        return _words(highest, begins)

    def confirm(self, database: Database) -> bool:
        """Keep the database's present count in the high-water mark; return False if no store id was written down yet."""
        store, begins = _look(database)
        if store is None or begins is None:
            return False
        if begins:
            self._mark.keep(store, begins)
        return True

    def write_down(self, tx: Transaction) -> None:
        """Write a store id if there is none, and raise the count to the high-water mark, so that the mark no longer signals a restore.

        The count is raised, and the mark not lowered, so that putting back the same backup once more is noticed again.
        """
        row = tx.connection.execute(_ROW).first()
        store, begins = (None, None) if row is None else _read(row)
        if store is None:
            store, begins = secrets.token_hex(16), 0
        begins = max(begins or 0, self._mark.highest(store) or 0)
        _write(tx, store, begins, is_there=row is not None)

    def begin_anew(self, tx: Transaction) -> None:
        """Give the store a new id and a count of 0, for a file that was copied from a template or is otherwise meant to be new."""
        _write(tx, secrets.token_hex(16), 0, is_there=tx.connection.execute(_ROW).first() is not None)


def _write(tx: Transaction, store: str, begins: int, *, is_there: bool) -> None:
    values = {"condition": json.dumps({"store": store}), "begins": begins, "seen_at": tx.now}
    if is_there:
        tx.connection.execute(update(reaction).where(OWN_ROW).values(**values))
    else:
        tx.connection.execute(insert(reaction).values(app="", name="", key_name="", suspect=False, **values))


def _look(database: Database) -> tuple[str | None, int | None]:
    with database.reading() as connection:
        row = connection.execute(_ROW).first()
    return (None, None) if row is None else _read(row)


def _read(row: Any) -> tuple[str | None, int | None]:
    """Return the store's id and its count from our row; each is None if it is missing or was edited to something invalid."""
    try:
        said = json.loads(row.condition)
    except (ValueError, TypeError):
        said = None
    store = said.get("store") if isinstance(said, dict) else None
    begins = row.begins if type(row.begins) is int and row.begins >= 0 else None
    return (store if isinstance(store, str) and store else None), begins


def _words(highest: int, begins: int) -> str:
    return f"{highest} calls were begun on this store at this path, and it knows of {begins}"
