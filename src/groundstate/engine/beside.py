"""Rows beside the record that a handler changed: locked in one order, and compared with what was read, before they are written.

A handler reads them without a lock, and on PostgreSQL somebody else may write between that and its own write: `account.balance += 1` of
two workers would count once. So before a flush the rows are locked, table by table in the order of their keys, and what stands there is
compared with what the session has read. Where it differs, nothing is written: the transaction is done again with those rows locked first.
Rows that many handlers share are locked in that one order alone, so that they do not wait for each other in a circle.

Not on SQLite, where a transaction of ours has the database to itself. What a statement of Core writes is not looked at: it says itself
what becomes of the row as it is then.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from sqlalchemy import Column, Connection, Table, event, inspect, select, text, tuple_
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.mutable import MutableBase
from sqlalchemy.orm import Mapper, Session, SessionTransaction

from groundstate.engine import changes, trouble
from groundstate.engine.question import sql_name
from groundstate.engine.trouble import LostUpdate, Row
from groundstate.store.port import Database

log = logging.getLogger("groundstate")
T = TypeVar("T")
NO_ROWS: frozenset[Row] = frozenset()
AGAIN_MOST = 5  # runs after the first one; then the caller tries again later


def redo_lost_updates(body: Callable[[frozenset[Row]], T]) -> T:
    """Runs a transaction; where it raises LostUpdate, runs it again, and gives it the rows that it has to lock first.

    Raises LostUpdate where each of AGAIN_MOST more runs lost to somebody else as well.
    """
    first = NO_ROWS
    for _ in range(AGAIN_MOST):
        try:
            return body(first)
        except LostUpdate as lost:
            first |= lost.rows
    return body(first)


@dataclass
class Beside:
    """Of one transaction on PostgreSQL: which rows are locked in it, and until when."""

    database: Database
    _claimed: list[Iterable[Any]] = field(default_factory=list)
    _locked: dict[Row, SessionTransaction | None] = field(default_factory=dict)  # and in which savepoint, which would give it up again
    _listens: bool = False

    def claimed(self, records: Iterable[Any]) -> None:
        """These were locked before they were read."""
        self._claimed.append(records)

    def row_inserted(self, record: Any) -> None:
        """This one was inserted here, and nobody else sees it."""
        self._locked[row_of(record)] = None

    def savepoint_rolled_back(self, savepoint: SessionTransaction) -> None:
        """What was locked in this savepoint, and in those within it, is locked no more."""
        self._locked = {row: taken_in for row, taken_in in self._locked.items() if not _within(taken_in, savepoint)}

    def lock_first(self, session: Session, rows: frozenset[Row]) -> None:
        """Before anything else is locked or read. A row that is not there (any more) is left out."""
        if rows:
            found = self._lock(session, dict.fromkeys(rows, ()), deleting=False)
            self._locked |= dict.fromkeys(rows - found.missing)

    def before_flush(self, session: Session) -> None:
        """Locks what the flush would write beside the claimed records. Raises LostUpdate where somebody else has written to it."""
        if not self._listens and changes.flush_has_listeners(session):
            self._listens = True  # a listener of the user's may change more: asked once more after it
            event.listen(session, "before_flush", lambda *_: self._look(session))
        self._look(session)

    def _look(self, session: Session) -> None:
        dirty = session.dirty
        if not dirty and not session.deleted:
            return
        mine = {id(record) for records in self._claimed for record in records}
        deleted = [one for one in session.deleted if id(one) not in mine]
        touched = [*deleted, *(one for one in dirty if id(one) not in mine and _writes_its_row(one))]
        read = {row: (inspect(one),) for one in touched if (row := row_of(one)) not in self._locked}
        if not read:
            return
        try:
            found = self._lock(session, read, deleting=bool(deleted))
        except DBAPIError as error:
            if not trouble.crossed(error):
                raise
            log.debug("rows beside the record are locked by somebody who waits for us", extra={"event": "update_crossed"})
            raise LostUpdate(frozenset(self._locked) | frozenset(read)) from error
        if found.missing or found.changed:
            lost = sorted(f"{row.mapper.local_table} {row.identity}" for row in found.missing | found.changed)
            log.debug("changed by somebody else since it was read: %s", ", ".join(lost), extra={"event": "update_lost"})
            raise LostUpdate(frozenset(self._locked) | frozenset(read))
        self._locked |= dict.fromkeys(read, session.get_nested_transaction())

    def _lock(self, session: Session, read: Mapping[Row, Sequence[Any]], *, deleting: bool) -> _Found:
        """Locks these rows in the one order, and compares them with the states that were read of them, where there are any."""
        by_table: dict[Table, list[Row]] = {}
        for row in read:
            for table in row.mapper.tables:
                if isinstance(table, Table):
                    by_table.setdefault(table, []).append(row)
        result, connection = _Found(), session.connection()  # in its savepoint, where it has one
        for table in sorted(by_table, key=lambda one: one.fullname):
            rows = [row for row in by_table[table] if _keys(row.mapper, table)]
            if not rows or not _is_table(self.database, connection, table):
                continue
            loaded = [(row, state, _loaded(state, table)) for row in rows for state in read[row]]
            asked = list(dict.fromkeys(column for _, _, columns in loaded for column in columns.values()))
            stands = self._ask(connection, table, rows, asked, deleting=deleting)
            if len(stands) < len(rows):
                result.missing |= {row for row in rows if row.identity not in stands}
            for row, state, columns in loaded:
                now = stands.get(row.identity)
                if now is not None and any(_differs(state, name, column, now[column]) for name, column in columns.items()):
                    result.changed.add(row)
        return result

    def _ask(
        self, connection: Connection, table: Table, rows: Sequence[Row], asked: Sequence[Column[Any]], *, deleting: bool
    ) -> dict[Any, Mapping[Any, Any]]:
        keys = _keys(rows[0].mapper, table)
        # By the columns' own types, as the flush will ask for them.
        among = keys[0].in_([row.identity[0] for row in rows]) if len(keys) == 1 else tuple_(*keys).in_([row.identity for row in rows])
        found = connection.execute(select(*keys, *asked).where(among).order_by(*keys).with_for_update(key_share=not deleting))
        return {tuple(row[: len(keys)]): row._mapping for row in found}  # noqa: SLF001  # its documented name


@dataclass
class _Found:
    missing: set[Row] = field(default_factory=set)
    changed: set[Row] = field(default_factory=set)


def row_of(record: Any) -> Row:
    state: Any = inspect(record)
    return Row(state.mapper, state.identity)


def _within(inner: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while inner is not None and inner is not outer:
        inner = inner.parent
    return inner is outer


def _writes_its_row(record: Any) -> bool:
    """Whether a flush writes to the record's own row: what was put into a collection is written to the rows in it."""
    attributes = inspect(record).manager
    return any(not getattr(attributes[name].impl, "collection", False) for name in changes.changed(record))


@lru_cache(maxsize=512)
def _keys(mapper: Mapper[Any], table: Table) -> tuple[Column[Any], ...]:
    """The columns of this table by which the mapper finds its row there; none where it has none for each part of the key."""
    found = []
    for part in mapper.primary_key:
        of_table = [column for column in mapper.get_property_by_column(part).columns if column.table is table]
        found += of_table[:1]
    return tuple(found) if len(found) == len(mapper.primary_key) else ()


@lru_cache(maxsize=512)
def _attributes(mapper: Mapper[Any], table: Table) -> Mapping[str, Column[Any]]:
    return {
        one.key: column for one in mapper.column_attrs for column in one.columns if isinstance(column, Column) and column.table is table
    }


def _loaded(state: Any, table: Table) -> dict[str, Column[Any]]:
    """What was read of it, or is set to a value: nobody has decided by what was never loaded, nor by what the database computes."""
    return {
        name: column for name, column in _attributes(state.mapper, table).items() if name in state.dict and not _is_sql(state.dict[name])
    }


def _is_sql(value: Any) -> bool:
    return hasattr(value, "__clause_element__") or hasattr(value, "compile")


def _differs(state: Any, name: str, column: Column[Any], now: Any) -> bool:
    old = state.committed_state.get(name, state.dict[name])
    if changes.unknown_before(old):
        return isinstance(state.dict[name], MutableBase)  # changed in place: nobody knows what it was; else it was set without a look
    try:
        return not (old is now or column.type.compare_values(old, now) or (old != old and now != now))  # noqa: PLR0124  # NaN
    except Exception:  # what cannot be compared, a type of the user's says
        return True


_tables: weakref.WeakKeyDictionary[Database, dict[str, bool]] = weakref.WeakKeyDictionary()


def _is_table(database: Database, connection: Connection, table: Table) -> bool:
    """Whether rows of it can be locked. A view is written by triggers, or by the server's rules: they lock what they write."""
    known, name = _tables.setdefault(database, {}), sql_name(table, database)
    if name not in known:
        kind = connection.execute(text("SELECT relkind FROM pg_class WHERE oid = to_regclass(:name)"), {"name": name}).scalar()
        known[name] = kind in ("r", "p")
    return known[name]
