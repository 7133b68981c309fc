"""Locks the rows that a handler changed in addition to its record's own row, and compares them with what was read, before they are written.

A handler reads such rows without a lock, and on PostgreSQL another transaction may write between that read and the handler's write: of two
concurrent `account.balance += 1`, one would be lost. So before a flush the rows are locked, table by table in key order, and their present
values are compared with those that the session has read. If they differ, nothing is written: the transaction is repeated, and locks these
rows first. The fixed order of locking also prevents deadlocks between transactions that share rows.

On SQLite none of this is needed, since groundstate's transaction has the database to itself. Rows that a Core statement writes are not
compared: such a statement computes the new value from the row as it is when the statement runs.
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
from groundstate.engine.sql.db_errors import LostUpdate, RelatedRow
from groundstate.engine.sql.exact_equality import exactly_equal
from groundstate.engine.sql.side_effects import is_table
from groundstate.store.port import Database

log = logging.getLogger("groundstate")
T = TypeVar("T")
NO_ROWS: frozenset[RelatedRow] = frozenset()
# how many times a transaction is repeated at once; then LostUpdate is raised, and the caller tries again later
AGAIN_MOST = 5


def redo_lost_updates(body: Callable[[frozenset[RelatedRow]], T]) -> T:
    """Run a transaction, and return its result.

    `body` runs the transaction, and gets the rows that it must lock first. At first there are none. After a LostUpdate, `body` is run again
    with the rows that the LostUpdate names. Raises LostUpdate if the last of the AGAIN_MOST repetitions raises it too.
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
    """The rows that one transaction has locked on PostgreSQL, each with the savepoint in which it was locked."""

    database: Database
    # id(record) -> (the record, the tables in which its rows are locked)
    _claimed: dict[int, tuple[Any, frozenset[Any]]] = field(default_factory=dict)
    # row -> the savepoint whose rollback would release the lock on the row
    _locked: dict[RelatedRow, SessionTransaction | None] = field(default_factory=dict)
    _listens: bool = False
    lost: LostUpdate | None = None  # set once LostUpdate was raised: do not commit then, even if a handler caught it

    def note_claimed(self, records: Iterable[Any], tables: Iterable[Any]) -> None:
        """Note that these records were locked in these tables before they were read.

        A record of a subclass may have a row in one more table, which counts as not locked.
        """
        locked_in = frozenset(tables)
        self._claimed.update({id(record): (record, locked_in) for record in records})

    def note_inserted(self, record: Any) -> None:
        """Note that this transaction has inserted this record, so that no other transaction can see its row."""
        self._locked[related_row_of(record)] = None

    def forget_locks_of_savepoint(self, savepoint: SessionTransaction) -> None:
        """Forget the locks that were taken in this savepoint and in the savepoints within it. Call it after the rollback that released
        them.
        """
        self._locked = {row: taken_in for row, taken_in in self._locked.items() if not _is_within_savepoint(taken_in, savepoint)}

    def lock_first(self, session: Session, rows: frozenset[RelatedRow]) -> None:
        """Lock these rows, before the transaction locks or reads anything else. Rows that do not exist are left out."""
        if rows:
            found = self._lock_and_compare(session, dict.fromkeys(rows, ()), deleting=False)
            self._locked |= dict.fromkeys(rows - found.missing)

    def lock_and_check_before_flush(self, session: Session) -> None:
        """Lock the rows that the flush would write, except for those of the claimed records.

        Raises LostUpdate if another transaction has written to one of these rows. Then each later flush raises LostUpdate as well, since a
        handler may have caught the first one.
        """
        if self.lost is not None:
            raise self.lost
        if not self._listens and bulk_update.flush_has_listeners(session):
            self._listens = True  # a user's listener may change more rows during the flush, so check again after it
            event.listen(session, "before_flush", lambda *_: self._lock_and_check(session))
        self._lock_and_check(session)

    def _lock_and_check(self, session: Session) -> None:
        dirty, gone = session.dirty, session.deleted
        if not dirty and not gone:
            return
        put_in, taken_out = _members_written(dirty, gone)
        deleted = [one for one in (*gone, *taken_out) if not self._is_claimed(one)]
        others = [one for one in dirty if not self._is_claimed(one) and _writes_its_row(one)]
        touched = [*deleted, *others, *(one for one in put_in if not self._is_claimed(one))]
        read = {row: (inspect(one),) for one in touched if (row := related_row_of(one)) not in self._locked}
        if not read:
            return
        try:
            found = self._lock_and_compare(session, read, deleting=bool(deleted))
        except DBAPIError as error:
            if not db_errors.is_serialization_failure(error):
                raise
            log.debug("deadlock over other rows that a handler changed: the transaction is repeated", extra={"event": "update_crossed"})
            raise self._build_lost_update(read) from error
        if found.missing or found.changed:
            lost = sorted(f"{row.mapper.local_table} {row.identity}" for row in found.missing | found.changed)
            log.debug("another transaction changed rows since a handler read them: %s", ", ".join(lost), extra={"event": "update_lost"})
            raise self._build_lost_update(read)
        self._locked |= dict.fromkeys(read, session.get_nested_transaction())

    def _is_claimed(self, one: Any) -> bool:
        """Return whether all rows of this record were locked before the record was read."""
        known = self._claimed.get(id(one))
        return known is not None and known[1].issuperset(inspect(one).mapper.tables)

    def _build_lost_update(self, read: Iterable[RelatedRow]) -> LostUpdate:
        self.lost = LostUpdate(frozenset(self._locked) | frozenset(read))
        return self.lost

    def _lock_and_compare(self, session: Session, read: Mapping[RelatedRow, Sequence[Any]], *, deleting: bool) -> _Conflicts:
        """Lock these rows in the order of tables and keys, and compare each row with the values that the session has read."""
        by_table: dict[Table, list[RelatedRow]] = {}
        for row in read:
            for table in row.mapper.tables:
                if isinstance(table, Table):
                    by_table.setdefault(table, []).append(row)
        result, connection = _Conflicts(), session.connection()  # if a savepoint of this connection is open, the locks belong to it
        for table in sorted(by_table, key=lambda one: one.fullname):
            rows = [row for row in by_table[table] if _key_columns_in(row.mapper, table)]
            if not rows or not is_table(self.database, connection, table):
                continue  # rows of a view cannot be locked; triggers or rules of the server write the rows behind it, and lock them
            loaded = [(row, state, _known_columns(state, table)) for row in rows for state in read[row]]
            asked = list(dict.fromkeys(column for _, _, columns in loaded for column in columns.values()))
            stands = self._lock_and_read(connection, table, rows, asked, deleting=deleting)
            if len(stands) < len(rows):
                result.missing |= {row for row in rows if row.identity not in stands}
            for row, state, columns in loaded:
                now = stands.get(row.identity)
                if now is not None and any(
                    _is_changed(state, name, column, now[column], connection.dialect) for name, column in columns.items()
                ):
                    result.changed.add(row)
        return result

    def _lock_and_read(
        self, connection: Connection, table: Table, rows: Sequence[RelatedRow], asked: Sequence[Column[Any]], *, deleting: bool
    ) -> dict[Any, Mapping[Any, Any]]:
        keys = _key_columns_in(rows[0].mapper, table)
        # Bind the key values by the columns' own types, as the flush will bind them.
        among = keys[0].in_([row.identity[0] for row in rows]) if len(keys) == 1 else tuple_(*keys).in_([row.identity for row in rows])
        found = connection.execute(select(*keys, *asked).where(among).order_by(*keys).with_for_update(key_share=not deleting))
        return {tuple(row[: len(keys)]): row._mapping for row in found}  # noqa: SLF001  # `_mapping` is public in spite of its name


@dataclass
class _Conflicts:
    missing: set[RelatedRow] = field(default_factory=set)
    changed: set[RelatedRow] = field(default_factory=set)


def related_row_of(record: Any) -> RelatedRow:
    state: Any = inspect(record)
    return RelatedRow(state.mapper, state.identity)


def _is_within_savepoint(inner: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while inner is not None and inner is not outer:
        inner = inner.parent
    return inner is outer


def _writes_its_row(record: Any) -> bool:
    """Return whether a flush writes to the record's own row. A change of a collection is written to the rows of its members instead."""
    attributes = inspect(record).manager
    return any(not getattr(attributes[name].impl, "collection", False) for name in bulk_update.changed_attributes(record))


def _members_written(dirty: Iterable[Any], gone: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Return two lists of collection members whose rows a flush writes: (added, removed).

    `added` has the members that were added to a collection, and the other members of each collection whose owner is deleted. `removed` has
    the members that were removed from a collection; some of them may be deleted themselves. Members that have a relationship to their owner
    are among the dirty objects, too.
    """
    put_in: list[Any] = []
    taken_out: list[Any] = []
    for owners, deleted in ((dirty, False), (gone, True)):
        for owner in owners:
            state: Any = inspect(owner)
            for name in _collection_names(state.mapper):
                if deleted or name in state.committed_state:
                    history = state.get_history(name, PASSIVE_NO_INITIALIZE)
                    put_in += [*history.added, *(history.unchanged if deleted else ())]
                    taken_out += history.deleted
    return [one for one in put_in if _has_row(one)], [one for one in taken_out if _has_row(one)]


def _has_row(member: Any) -> bool:
    return member is not None and bool(inspect(member).persistent)


@lru_cache(maxsize=512)
def _collection_names(mapper: Mapper[Any]) -> tuple[str, ...]:
    """Return the names of the one-to-many and one-to-one relationships in which the members' rows hold the foreign key to the owner."""
    return tuple(one.key for one in mapper.relationships if one.direction is ONETOMANY and not one.viewonly)


@lru_cache(maxsize=512)
def _key_columns_in(mapper: Mapper[Any], table: Table) -> tuple[Column[Any], ...]:
    """Return the columns of this table by which the mapper finds its row there. Empty if the table lacks a column for a part of the key."""
    found = []
    for part in mapper.primary_key:
        of_table = [column for column in mapper.get_property_by_column(part).columns if column.table is table]
        found += of_table[:1]
    return tuple(found) if len(found) == len(mapper.primary_key) else ()


@lru_cache(maxsize=512)
def _columns_by_attribute(mapper: Mapper[Any], table: Table) -> Mapping[str, Column[Any]]:
    return {
        one.key: column for one in mapper.column_attrs for column in one.columns if isinstance(column, Column) and column.table is table
    }


def _known_columns(state: Any, table: Table) -> dict[str, Column[Any]]:
    """Return a dict from attribute name to column, for the columns that were loaded or set.

    The handler cannot have relied on any other column, nor on a value that the database has not computed yet.
    """
    return {
        name: column
        for name, column in _columns_by_attribute(state.mapper, table).items()
        if name in state.dict and not _is_sql_expression(state.dict[name])
    }


def _is_sql_expression(value: Any) -> bool:
    return hasattr(value, "__clause_element__") or hasattr(value, "compile")


def _is_changed(state: Any, name: str, column: Column[Any], now: Any, dialect: Dialect) -> bool:
    old = state.committed_state.get(name, state.dict[name])
    if bulk_update.is_old_value_unknown(old):
        # If a value was changed in place, its old value is unknown. Otherwise the value was set without being read.
        return isinstance(state.dict[name], MutableBase)
    return not (old is now or _is_same_value(_as_plain_collection(old), now, column, dialect))


def _is_same_value(old: Any, now: Any, column: Column[Any], dialect: Dialect) -> bool:
    """Return whether two values are the same for every reader, or are sent to the driver as the same value.

    Neither `==` nor the comparison method of a user's type is exact enough: True is not 1 in a JSON value, and a type may ignore the case
    of letters.
    """
    try:
        same = exactly_equal(old, now)
    except Exception:  # `==` of an array returns an array, which has no truth value
        same = False
    if same:
        return True
    try:
        bind = column.type.dialect_impl(dialect).bind_processor(dialect)
        return bind is not None and exactly_equal(bind(old), bind(now))
    except Exception:  # the user's column type raised
        return False


def _as_plain_collection(value: Any) -> Any:
    """Return a Mutable collection as a plain dict, list or set, so that it can be compared with the value that the database returned.
    Return any other value unchanged.
    """
    kind = next((one for one in _TRACKED if isinstance(value, one)), None)
    return value if kind is None else _TRACKED[kind](value)


_TRACKED: Mapping[type, Callable[[Any], Any]] = {MutableDict: dict, MutableList: list, MutableSet: set}
