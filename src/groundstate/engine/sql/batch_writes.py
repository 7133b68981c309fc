"""Notes what the handlers of a batch write, to decide whether the conditions of the remaining records must be evaluated again.

An earlier handler of the batch may make the condition of a later record false, and the later record must then not be handled. So the
condition is evaluated again before the later record's handler runs, but only if something was written since that the condition may read.
Most handlers write only their own records and rows that no condition reads; a batch of such handlers costs no further query.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.orm import MANYTOONE, Mapper, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.sql.dml import UpdateBase

from groundstate.engine.sql import bulk_update, side_effects
from groundstate.engine.sql.condition_query import ConditionQuery

_Write = tuple[Table, bool, bool]  # (table, whether its rows are deleted, whether its columns are updated that foreign keys may refer to)


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
        self._touched: set[Any] = set()  # records (as SQLAlchemy states) that another record's handler changed
        self._own_changed = False
        self._own_matters: bool | None = None  # the result of `_can_own_changes_affect_others`; None before it is known
        self._to_be_asked: set[_Write] = set()  # writes of which it is not known yet whether they change other rows
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
        """Count the session's changed objects anew. A flush writes them, so call it after each flush."""
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
                self._matters = True  # a listener of the user's may write to any table
            for table in mapper.tables:
                self._note_written_table(table, deletes=deletes, keys=keys and state.key is not None)
        for table in _tables_written_on_delete(mapper) if deletes else _tables_of_changed_collections(state):
            self._note_written_table(table)

    def _note_written_table(self, table: Any, *, deletes: bool = False, keys: bool = False) -> None:
        """Note that the next flush or a statement writes rows of this table. deletes: It deletes rows. keys: It updates columns to which
        foreign keys may refer.
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
    """Return a dict from the name of each relationship to the tables whose rows a change of it writes: its members' tables and the
    association table.
    """
    return {
        one.key: [*one.mapper.tables, *([] if one.secondary is None else [one.secondary])]
        for one in mapper.relationships
        if one.direction is not MANYTOONE and not one.viewonly
    }
