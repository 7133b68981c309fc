"""Which SQLite store this is, and how many calls were ever begun on it: in our own row of groundstate_reaction, and compared with the
high-water mark, which lies outside of the database. PostgreSQL has an identity of its own, and uses none of this.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from sqlalchemy import and_, case, func, insert, null, select, update

from groundstate.engine.transaction import Transaction
from groundstate.store.port import Database, HighWater
from groundstate.store.tables import reaction
from groundstate.values.errors import WentBack

OWN_ROW = and_(reaction.c.app == "", reaction.c.name == "")
_ROW = select(reaction.c.condition, reaction.c.begins).where(OWN_ROW)
# What somebody edited to be no number stays unknown, until the next life writes one down.
_IS_A_NUMBER = func.typeof(reaction.c.begins) == "integer"


class StoreBegins:
    """Of one life. mark: the high-water mark of its store."""

    def __init__(self, mark: HighWater) -> None:
        self._mark = mark
        self._told: tuple[str, int] | None = None  # the store, and its count in the latest begin, committed or not

    def count(self, tx: Transaction, new: int) -> None:
        """Counts calls in the begin's own transaction. Raises WentBack where more were begun here than the database knows of.

        Whoever keeps a count has committed it before, and this transaction has the write lock: so a higher mark is a sign for sure.
        """
        self._told = None
        more = case((_IS_A_NUMBER, reaction.c.begins + new), else_=null())
        written = update(reaction).where(OWN_ROW).values(begins=more).returning(reaction.c.condition, reaction.c.begins)
        row = tx.connection.execute(written).first()
        store, begins = (None, None) if row is None else _read(row)
        if store is None or begins is None:
            return  # somebody deleted or edited the row: the next life makes it anew
        highest = self._mark.highest(store)
        if highest is not None and highest > begins - new:
            raise WentBack(_words(highest, begins - new))
        self._told = (store, begins)

    def counted(self) -> None:
        """After the begin's commit, before its first call."""
        if self._told is not None:
            self._mark.keep(*self._told)

    def sign(self, database: Database) -> str | None:
        """Why the database seems to have gone back, or None. The mark is read before the count, which others raise meanwhile."""
        store, _ = _look(database)
        highest = None if store is None else self._mark.highest(store)
        same, begins = _look(database)
        if highest is None or begins is None or same != store or begins >= highest:
            return None
        return _words(highest, begins)

    def confirm(self, database: Database) -> bool:
        """Remembers the count of a store that was written down; False where there is none yet."""
        store, begins = _look(database)
        if store is None or begins is None:
            return False
        if begins:
            self._mark.keep(store, begins)
        return True

    def write_down(self, tx: Transaction) -> None:
        """Makes an id where there is none, and raises the count to the high-water mark: what that said is answered now.

        The count is raised, and the mark is not lowered, so that the same backup put back once more is a sign again.
        """
        row = tx.connection.execute(_ROW).first()
        store, begins = (None, None) if row is None else _read(row)
        if store is None:
            store, begins = secrets.token_hex(16), 0
        begins = max(begins or 0, self._mark.highest(store) or 0)
        _write(tx, store, begins, is_there=row is not None)

    def begin_anew(self, tx: Transaction) -> None:
        """Another store from now on: for a file that was copied from a template, or is otherwise meant to be new."""
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
    """The store's id and its count, each None where it is not there or somebody edited it."""
    try:
        said = json.loads(row.condition)
    except (ValueError, TypeError):
        said = None
    store = said.get("store") if isinstance(said, dict) else None
    begins = row.begins if type(row.begins) is int and row.begins >= 0 else None
    return (store if isinstance(store, str) and store else None), begins


def _words(highest: int, begins: int) -> str:
    return f"{highest} calls were begun on this store at this path, and it knows of {begins}"
