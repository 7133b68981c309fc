"""Locks the rows that a handler changed in addition to its record's own, and compares them with what was read, before they are written.

A handler reads such rows without a lock, and on PostgreSQL another transaction may write between that read and the handler's write:
`account.balance += 1` of two workers would count once. So before a flush the rows are locked, table by table in the order of their keys,
and their present values are compared with what the session has read. Where they differ, nothing is written, and the transaction is repeated
with those rows locked first. The fixed order also keeps transactions that share rows from a deadlock.

None of this is needed on SQLite, where our transaction has the database to itself. Rows that a Core statement writes are not compared,
since such a statement computes the new value from the row as it is then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from sqlalchemy import Column, Connection, Dialect, Table, event, inspect, select, tuple_
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.mutable import MutableBase, MutableDict, MutableList, MutableSet
from sqlalchemy.orm import ONETOMANY, Mapper, Session, SessionTransaction
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE

from groundstate.engine.sql import bulk_update, db_errors
from groundstate.engine.sql.db_errors import LostUpdate, Row
from groundstate.engine.sql.exact_equality import exactly_equal
from groundstate.engine.sql.views import is_table
from groundstate.store.port import Database

log = logging.getLogger("groundstate")
T = TypeVar("T")
NO_ROWS: frozenset[Row] = frozenset()
AGAIN_MOST = 5  # repeats after the first run; then the caller tries again later


def redo_lost_updates(body: Callable[[frozenset[Row]], T]) -> T:
    """Run a transaction; where it raises LostUpdate, run it again with the rows that it has to lock first.

    Raises LostUpdate where AGAIN_MOST repeats lost to other transactions as well.
    """
    first = NO_ROWS
    for _ in range(AGAIN_MOST):
        try:
            return body(first)
        except LostUpdate as lost:
            first |= lost.rows
    return body(first)


@dataclass
class RelatedRowLocks:
    """The rows that are locked in one transaction on PostgreSQL, each with the savepoint in which it was locked."""

    database: Database
    # id(record) -> the record, and the tables in which its rows are locked
    _claimed: dict[int, tuple[Any, frozenset[Any]]] = field(default_factory=dict)
    # row -> the savepoint whose rollback would release the lock
    _locked: dict[Row, SessionTransaction | None] = field(default_factory=dict)
    _listens: bool = False
    lost: LostUpdate | None = None  # was raised in this transaction, which must not be committed even if a handler caught it

    def claimed(self, records: Iterable[Any], tables: Iterable[Any]) -> None:
        """Note that these records were locked, in these tables, before they were read. A record of a subclass may have a row in another
        table as well.
        """
        locked_in = frozenset(tables)
        self._claimed.update({id(record): (record, locked_in) for record in records})

    def row_inserted(self, record: Any) -> None:
        """Note that this record was inserted in this transaction, so no other transaction sees it."""
        self._locked[row_of(record)] = None

    def savepoint_rolled_back(self, savepoint: SessionTransaction) -> None:
        """Forget the locks that were taken in this savepoint and in savepoints within it: the rollback released them."""
        self._locked = {row: taken_in for row, taken_in in self._locked.items() if not _within(taken_in, savepoint)}

    def lock_first(self, session: Session, rows: frozenset[Row]) -> None:
        """Lock these rows before anything else is locked or read. Rows that do not exist (any more) are left out."""
        if rows:
            found = self._lock(session, dict.fromkeys(rows, ()), deleting=False)
            self._locked |= dict.fromkeys(rows - found.missing)

    def before_flush(self, session: Session) -> None:
        """Lock the rows that the flush would write, other than those of the claimed records.

        Raises LostUpdate where another transaction has written to them, and again in each later flush, since a handler may catch the first
        one.
        """
        if self.lost is not None:
            raise self.lost
        if not self._listens and bulk_update.flush_has_listeners(session):
            self._listens = True  # a listener of the user's may change more rows, so they are checked again after it
            event.listen(session, "before_flush", lambda *_: self._look(session))
        self._look(session)

    def _look(self, session: Session) -> None:
        dirty, gone = session.dirty, session.deleted
        if not dirty and not gone:
            return
        put_in, taken_out = _members_written(dirty, gone)
        deleted = [one for one in (*gone, *taken_out) if not self._is_claimed(one)]
        others = [one for one in dirty if not self._is_claimed(one) and _writes_its_row(one)]
        touched = [*deleted, *others, *(one for one in put_in if not self._is_claimed(one))]
        read = {row: (inspect(one),) for one in touched if (row := row_of(one)) not in self._locked}
        if not read:
            return
        try:
            found = self._lock(session, read, deleting=bool(deleted))
        except DBAPIError as error:
            if not db_errors.is_serialization_failure(error):
                raise
            log.debug("rows beside the record are locked by somebody who waits for us", extra={"event": "update_crossed"})
            raise self._has_lost(read) from error
        if found.missing or found.changed:
            lost = sorted(f"{row.mapper.local_table} {row.identity}" for row in found.missing | found.changed)
            log.debug("changed by somebody else since it was read: %s", ", ".join(lost), extra={"event": "update_lost"})
            raise self._has_lost(read)
        self._locked |= dict.fromkeys(read, session.get_nested_transaction())

    def _is_claimed(self, one: Any) -> bool:
        """Whether all rows of this record were locked before it was read."""
        known = self._claimed.get(id(one))
        return known is not None and known[1].issuperset(inspect(one).mapper.tables)

    def _has_lost(self, read: Iterable[Row]) -> LostUpdate:
        self.lost = LostUpdate(frozenset(self._locked) | frozenset(read))
        return self.lost

    def _lock(self, session: Session, read: Mapping[Row, Sequence[Any]], *, deleting: bool) -> _Found:
        """Lock these rows in the order of tables and keys, and compare them with the states in which the session has read them."""
        by_table: dict[Table, list[Row]] = {}
        for row in read:
            for table in row.mapper.tables:
                if isinstance(table, Table):
                    by_table.setdefault(table, []).append(row)
        result, connection = _Found(), session.connection()  # the locks belong to the savepoint of this connection, if one is open
        for table in sorted(by_table, key=lambda one: one.fullname):
            rows = [row for row in by_table[table] if _keys(row.mapper, table)]
            if not rows or not is_table(self.database, connection, table):
                continue  # rows of a view cannot be locked: triggers or the server's rules write it, and lock what they write
            loaded = [(row, state, _loaded(state, table)) for row in rows for state in read[row]]
            asked = list(dict.fromkeys(column for _, _, columns in loaded for column in columns.values()))
            stands = self._ask(connection, table, rows, asked, deleting=deleting)
            if len(stands) < len(rows):
                result.missing |= {row for row in rows if row.identity not in stands}
            for row, state, columns in loaded:
                now = stands.get(row.identity)
                if now is not None and any(
                    _differs(state, name, column, now[column], connection.dialect) for name, column in columns.items()
                ):
                    result.changed.add(row)
        return result

    def _ask(
        self, connection: Connection, table: Table, rows: Sequence[Row], asked: Sequence[Column[Any]], *, deleting: bool
    ) -> dict[Any, Mapping[Any, Any]]:
        keys = _keys(rows[0].mapper, table)
        # The values are bound by the columns' own types, as the flush will bind them.
        among = keys[0].in_([row.identity[0] for row in rows]) if len(keys) == 1 else tuple_(*keys).in_([row.identity for row in rows])
        found = connection.execute(select(*keys, *asked).where(among).order_by(*keys).with_for_update(key_share=not deleting))
        return {tuple(row[: len(keys)]): row._mapping for row in found}  # noqa: SLF001  # `_mapping` is public in spite of its name


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
    """Whether a flush writes to the record's own row. A change of a collection is written to the rows of its members."""
    attributes = inspect(record).manager
    return any(not getattr(attributes[name].impl, "collection", False) for name in bulk_update.changed(record))


def _members_written(dirty: Iterable[Any], gone: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Return the members whose rows a flush writes: those that are put into a collection, and those that are taken out of one.

    The first list includes members of a deleted owner; those of the second may be deleted themselves. A member that has a reference to its
    owner is among the dirty objects as well.
    """
    put_in: list[Any] = []
    taken_out: list[Any] = []
    for owners, deleted in ((dirty, False), (gone, True)):
        for owner in owners:
            state: Any = inspect(owner)
            for name in _collections(state.mapper):
                if deleted or name in state.committed_state:
                    history = state.get_history(name, PASSIVE_NO_INITIALIZE)
                    put_in += [*history.added, *(history.unchanged if deleted else ())]
                    taken_out += history.deleted
    return [one for one in put_in if _has_a_row(one)], [one for one in taken_out if _has_a_row(one)]


def _has_a_row(member: Any) -> bool:
    return member is not None and bool(inspect(member).persistent)


@lru_cache(maxsize=512)
def _collections(mapper: Mapper[Any]) -> tuple[str, ...]:
    """Return the relationships whose members' rows hold the foreign key to the owner, whether they have many members or one."""
    return tuple(one.key for one in mapper.relationships if one.direction is ONETOMANY and not one.viewonly)


@lru_cache(maxsize=512)
def _keys(mapper: Mapper[Any], table: Table) -> tuple[Column[Any], ...]:
    """Return the columns of this table by which the mapper finds its row there; none where the table lacks a column for some part of the
    key.
    """
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
    """Return the columns that were read or set. The handler cannot have relied on other columns, nor on values that SQL will compute."""
    return {
        name: column for name, column in _attributes(state.mapper, table).items() if name in state.dict and not _is_sql(state.dict[name])
    }


def _is_sql(value: Any) -> bool:
    return hasattr(value, "__clause_element__") or hasattr(value, "compile")


def _differs(state: Any, name: str, column: Column[Any], now: Any, dialect: Dialect) -> bool:
    old = state.committed_state.get(name, state.dict[name])
    if bulk_update.unknown_before(old):
        # A value that was changed in place: its old value is unknown; any other value was set without being read
        return isinstance(state.dict[name], MutableBase)
    return not (old is now or _alike(_untracked(old), now, column, dialect))


def _alike(old: Any, now: Any, column: Column[Any], dialect: Dialect) -> bool:
    """Whether two values are the same for any reader, or are sent to the driver as the same value.

    `==`, or a comparison by a type of the user's, is not enough: True is not 1 in a JSON value, and a type may take two letters for equal.
    """
    try:
        same = exactly_equal(old, now)
    except Exception:  # as for arrays, whose == returns an array
        same = False
    if same:
        return True
    try:
        bind = column.type.dialect_impl(dialect).bind_processor(dialect)
        return bind is not None and exactly_equal(bind(old), bind(now))
    except Exception:  # a type of the user's raised
        return False


def _untracked(value: Any) -> Any:
    """Return a Mutable collection as the plain dict, list or set that the database's answer is compared with."""
    kind = next((one for one in _TRACKED if isinstance(value, one)), None)
    return value if kind is None else _TRACKED[kind](value)


_TRACKED: Mapping[type, Callable[[Any], Any]] = {MutableDict: dict, MutableList: list, MutableSet: set}
