"""Decides, before each handler of a batch runs, whether the condition of its record still holds: an earlier handler may have made it false.

A handler may change or delete other records of its batch: through its session, by a statement, or through a trigger or a foreign key. A
record whose condition no longer holds is passed over, as it would be if each record were handled in a batch of its own.

A condition is evaluated again only if it may read something that was written since its last evaluation. Most handlers write only their own
records and rows that no condition reads; a batch of such handlers costs no further query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.orm import MANYTOONE, Mapper, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.sql.dml import UpdateBase

from groundstate.engine.rows import claim
from groundstate.engine.sql import bulk_update, side_effects
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.sql.transaction import Transaction


@dataclass(frozen=True)
class Work:
    """One record on which a handler is to run: its key, the record, its occurrence text, and the handler's positional arguments
    (`arguments`) and keyword arguments (`supplies`).
    """

    key: PrimaryKey
    record: Any
    occurrence: str
    arguments: tuple[Any, ...]
    supplies: dict[str, Any]


RecheckFunction = Callable[[ConditionQuery, Transaction, Sequence[Work]], set[PrimaryKey]]


class RecheckBeforeHandlers:
    """Tells, before each handler of a batch runs, whether its record is still to be handled.

    asks: A function that gets some of the works, and returns the keys of the records that are still to be handled.
    lines: The value of `in_order` for each work; empty if the reaction has no `in_order`. Once a handler may have changed a later record
        with the same value, that record and all later ones with this value wait for the next batch.
    stale: Whether handlers of other works have already run in this transaction.
    """

    def __init__(
        self,
        query: ConditionQuery,
        tx: Transaction,
        works: Sequence[Work],
        asks: RecheckFunction,
        lines: Sequence[object] = (),
        *,
        stale: bool = False,
    ) -> None:
        self._query = query
        self._tx = tx
        self.works = works
        self._asks = asks
        self._writes = BatchWrites(query, tx.session, tx.connection)
        self.stale = stale  # whether a handler may have changed the conditions of later records, so that they must be checked
        self._asked_to = 0  # if `stale`: the index in `works` of the first record that is not checked yet
        self._many = 1  # how many records the next check covers; doubled by each check, and 1 again after a write that may matter
        self._holding: set[PrimaryKey] = set()
        self._lines = lines
        self._begun: set[object] = set()  # `in_order` values with at least one record whose handler has started
        self._ended: set[object] = set()  # `in_order` values whose remaining records must wait for the next batch

    @contextmanager
    def noting_writes(self) -> Iterator[None]:
        """While this context is open, note what the batch's handlers write, so that `may_run_handler` knows which conditions may have
        changed.
        """
        self._tx.writes = self._writes
        try:
            yield
        finally:
            self._tx.writes = None

    def may_run_handler(self, number: int, flush: Callable[[], None]) -> bool:
        """Return whether the handler may run on the record with this index in `works`. Calls `flush` first if earlier handlers may have
        changed the record's condition.
        """
        if not self._lines:
            return self._condition_still_holds(number, flush)
        line = self._lines[number]
        if line in self._begun and self._writes.may_affect_condition_of(self.works[number].record):
            self._ended.add(line)
        if line not in self._ended and not self._condition_still_holds(number, flush):
            self._ended.add(line)
        return line not in self._ended

    def _condition_still_holds(self, number: int, flush: Callable[[], None]) -> bool:
        if self._writes.may_affect_condition_of(self.works[number].record):
            flush()
            self._writes.forget_writes()
            self.stale, self._asked_to, self._many = True, number, 1
        if not self.stale:
            return True
        if number >= self._asked_to:
            some = self.works[number : number + self._many]
            with self._tx.session.no_autoflush:
                self._holding = self._asks(self._query, self._tx, some)
            self._asked_to, self._many = number + len(some), self._many * 2
        return self.works[number].key in self._holding

    def note_handler_begins(self, number: int) -> None:
        """Note that the handler of the record with this index in `works` is about to run."""
        self._writes.note_handler_started(self.works[number].record)
        if self._lines:
            self._begun.add(self._lines[number])

    def note_handler_ran(self, number: int) -> None:
        """Note that the handler of the record with this index in `works` has run."""
        self._writes.note_handler_finished(self.works[number].record)


def keys_still_to_handle(query: ConditionQuery, tx: Transaction, works: Sequence[Work]) -> set[PrimaryKey]:
    """Reload these records, and return the keys of those that are still ready, and have the occurrence and due time they had when they were
    locked.
    """
    records, _ = claim.load_ready_records(query, tx, [work.key for work in works])
    before = {work.key: work for work in works}
    found = set()
    for record, due in zip(records, claim.due_times(query, tx, records), strict=True):
        work = before.get(query.keys.key_of_record(record))
        if work is not None and claim.is_present_occurrence(query, work.occurrence, record):
            ctx = work.supplies["ctx"]
            if due is None or due == ctx.due:
                found.add(work.key)
    return found


def keys_not_overtaken(query: ConditionQuery, tx: Transaction, works: Sequence[Work]) -> set[PrimaryKey]:
    """Reload these records, and return the keys of those whose condition still holds for the occurrence for which their call was made."""
    before = {work.key: work for work in works}
    found = set()
    for record, holds in claim.load_with_condition(query, tx, list(before)):
        work = before.get(query.keys.key_of_record(record))
        if work is not None and holds and claim.is_present_occurrence(query, work.occurrence, record):
            found.add(work.key)
    return found


# (table, whether rows are deleted, whether the updated columns may be targets of foreign keys)
_Write = tuple[Table, bool, bool]


class BatchWrites:
    """What one transaction has written since the conditions were last evaluated, as far as it may affect records whose handlers are still
    to run.
    """

    def __init__(self, query: ConditionQuery, session: Session, connection: Connection) -> None:
        self._query = query
        self._session: Any = session
        self._connection = connection
        self._base = query.mapper.base_mapper
        self._own = [table for table in query.mapper.tables if isinstance(table, Table)]
        self._own_names = {table.fullname for table in self._own}
        self._beside = query.other_tables_read
        self._mine: set[Any] = set()  # the records (as SQLAlchemy states) whose handlers have started
        self._seen: set[Any] = set()  # changed objects (as SQLAlchemy states) that were examined since the last flush
        self._expected = (0, 0, 0)  # how many objects were changed, added and deleted at the last examination
        self._touched: set[Any] = set()  # SQLAlchemy's InstanceState of each record that another record's handler changed
        self._own_changed = False
        self._own_matters: bool | None = None  # the result of `_can_own_changes_affect_others`; None before it is known
        self._to_be_asked: set[_Write] = set()  # writes for which it is not known yet whether they can change other rows, as by a trigger
        self._harmless: set[_Write] = set()
        self._matters = False

    def note_handler_started(self, record: Any) -> None:
        """Note that the handler of this record is about to run."""
        self._mine.add(instance_state(record))

    def note_handler_finished(self, record: Any) -> None:
        """Note that the handler of this record has run, and what it changed."""
        state = instance_state(record)
        session = self._session
        changed, added, deleted = self._expected
        now = self._counts_of_changed_objects()
        if state.modified:
            self._own_changed = True
        if now == (changed + state.modified, added, deleted) and not _tables_of_changed_collections(state):
            self._expected = now
        elif now != self._expected or session._new or session._deleted:  # noqa: SLF001  # as below
            self._examine_changed_objects()

    def may_affect_condition_of(self, record: Any) -> bool:
        """Return whether the writes since the last evaluation may have changed the condition of this record, whose handler is still to
        run.
        """
        state = instance_state(record)
        if self._matters or state.modified or not state.persistent or state in self._session._deleted or state in self._touched:  # noqa: SLF001
            return True
        if self._own_changed:
            if self._own_matters is None:
                self._own_matters = self._can_own_changes_affect_others()
            if self._own_matters:
                return True
        for write in self._to_be_asked:
            table, deletes, keys = write
            if side_effects.can_change_other_rows(self._query.database, self._connection, table, deletes=deletes, keys=keys):
                return True
            self._harmless.add(write)
        self._to_be_asked -= self._harmless
        return False

    def forget_writes(self) -> None:
        """Forget all writes so far. Call it after a flush, if the conditions of all remaining records will be evaluated again."""
        self._matters = self._own_changed = False
        self._touched.clear()
        self._to_be_asked.clear()

    def before_flush(self) -> None:
        """Examine the objects that the session is about to write."""
        self._examine_changed_objects()
        if any(self._expected) and bulk_update.flush_has_listeners(self._session):
            self._matters = True

    def after_flush(self) -> None:
        """Count the session's changed objects again. Call this after each flush, since a flush writes the changed objects."""
        self._seen.clear()
        self._expected = self._counts_of_changed_objects()

    def note_statement(self, context: Any) -> None:
        """Note a writing statement that was not sent by the unit of work, such as a Core UPDATE."""
        compiled = getattr(context, "compiled", None)
        statement = getattr(compiled, "statement", None)
        table = statement.table if isinstance(statement, UpdateBase) and not getattr(compiled, "ctes", None) else None
        if isinstance(table, Table):
            self._note_written_table(table, deletes=bool(context.isdelete), keys=bool(context.isupdate))
        else:
            self._matters = True  # the statement is a text, so the table that it writes is unknown

    def _counts_of_changed_objects(self) -> tuple[int, int, int]:
        session = self._session
        return len(session.identity_map._modified), len(session._new), len(session._deleted)  # noqa: SLF001  # `dirty` builds a set each time

    def _examine_changed_objects(self) -> None:
        """Examine the objects that were changed since the last examination."""
        session = self._session
        self._expected = self._counts_of_changed_objects()
        gone = session._deleted  # noqa: SLF001
        for state in (session.identity_map._modified | session._new.keys() | gone.keys()) - self._seen:  # noqa: SLF001
            self._seen.add(state)
            self._note_changed_object(state, deletes=state in gone)

    def _note_changed_object(self, state: Any, *, deletes: bool) -> None:
        """Note what the next flush writes because of this changed, added or deleted object."""
        mapper: Mapper[Any] = state.manager.mapper
        keys = any(mapper.get_property_by_column(column).key in state.committed_state for column in mapper.primary_key)
        if mapper.base_mapper is self._base:
            self._own_changed = True
            if state not in self._mine:
                self._touched.add(state)
            if deletes or (keys and state.key is not None):
                self._to_be_asked |= {(table, deletes, keys) for table in self._own} - self._harmless
        else:
            if bulk_update.has_write_listeners(mapper):
                self._matters = True  # a listener that the user registered may write to any table
            for table in mapper.tables:
                self._note_written_table(table, deletes=deletes, keys=keys and state.key is not None)
        for table in _tables_written_on_delete(mapper) if deletes else _tables_of_changed_collections(state):
            self._note_written_table(table)

    def _note_written_table(self, table: Any, *, deletes: bool = False, keys: bool = False) -> None:
        """Note that the next flush or a statement writes rows of this table. deletes: Whether rows are deleted. keys: Whether the updated
        columns may be targets of foreign keys.
        """
        if not isinstance(table, Table) or self._beside is None or table.fullname in self._own_names or table.fullname in self._beside:
            self._matters = True
        elif (table, deletes, keys) not in self._harmless:
            self._to_be_asked.add((table, deletes, keys))

    def _can_own_changes_affect_others(self) -> bool:
        """Return whether a change of one record of the reaction may affect the condition of another record of the same reaction."""
        if self._beside is None or not self._beside.isdisjoint(self._own_names) or len(self._own) < len(self._query.mapper.tables):
            return True
        if any(bulk_update.has_write_listeners(one) for one in self._query.mapper.self_and_descendants):
            return True
        return any(side_effects.can_change_other_rows(self._query.database, self._connection, table) for table in self._own)


def _tables_of_changed_collections(state: Any) -> list[Any]:
    """Return the tables of other rows that the next flush writes because relationships of this object were changed."""
    mapper: Mapper[Any] = state.manager.mapper
    named = _tables_by_relationship(mapper)
    if not named:
        return []
    changed = state.committed_state.keys() | state.__dict__.get("_pending_mutations", {}).keys()
    return [table for name, tables in named.items() if name in changed for table in tables]


def _tables_written_on_delete(mapper: Mapper[Any]) -> list[Any]:
    """Return the tables of other rows that a flush may write when it deletes an object of this class."""
    return [table for tables in _tables_by_relationship(mapper).values() for table in tables]


@lru_cache(maxsize=512)
def _tables_by_relationship(mapper: Mapper[Any]) -> dict[str, list[Any]]:
    """Return a dict from the name of each relationship to the tables that a change of the relationship writes: the tables of its members
    and the association table.
    """
    return {
        one.key: [*one.mapper.tables, *([] if one.secondary is None else [one.secondary])]
        for one in mapper.relationships
        if one.direction is not MANYTOONE and not one.viewonly
    }
