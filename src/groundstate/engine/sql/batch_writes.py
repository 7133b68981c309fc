"""Notes what the handlers of a batch write that the conditions of the records after theirs may read.

One at a time, a record whose condition another handler has made false would not be handled. So in a batch the condition is asked again
before a handler runs, but only where something that it may read was written since. Of a plain batch, whose handlers change their own
records and rows that no condition reads, nothing is asked.
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

_Write = tuple[Table, bool, bool]  # the table, whether rows are deleted, and whether columns are updated to which others may refer


class BatchWrites:
    """What was written in one transaction, as far as it matters to the records of one reaction whose handlers are still to run."""

    def __init__(self, query: ConditionQuery, session: Session, connection: Connection) -> None:
        self._query = query
        self._session: Any = session
        self._connection = connection
        self._base = query.mapper.base_mapper
        self._own = [table for table in query.mapper.tables if isinstance(table, Table)]
        self._own_names = {table.fullname for table in self._own}
        self._beside = query.tables_beside
        self._mine: set[Any] = set()  # states of the records whose handlers were begun
        self._seen: set[Any] = set()  # states that were looked at since the last flush
        self._expected = (0, 0, 0)  # how many objects were changed, added and deleted when that was looked at last
        self._touched: set[Any] = set()  # states of records of the same class that another handler changed, and a flush wrote
        self._own_changed = False
        self._own_matters: bool | None = None  # whether a change of one record may make the condition of another false; None: not asked yet
        self._to_be_asked: set[_Write] = set()  # writes of which the database is still to be asked what else they change
        self._harmless: set[_Write] = set()
        self._matters = False

    def begins(self, record: Any) -> None:
        """Note that the handler of this record is about to run."""
        self._mine.add(instance_state(record))

    def ran(self, record: Any) -> None:
        """Note that the handler of this record ran."""
        state = instance_state(record)
        session = self._session
        changed, added, deleted = self._expected
        now = self._counted()
        if state.modified:
            self._own_changed = True
        if now == (changed + state.modified, added, deleted) and not _collections_changed(state):
            self._expected = now
        elif now != self._expected or session._new or session._deleted:  # noqa: SLF001  # as below
            self._look()

    def may_matter_to(self, record: Any) -> bool:
        """Whether what was written since `asked` may have changed the condition of this record, whose handler is still to run."""
        state = instance_state(record)
        if self._matters or state.modified or not state.persistent or state in self._session._deleted or state in self._touched:  # noqa: SLF001
            return True
        if self._own_changed:
            if self._own_matters is None:
                self._own_matters = self._ask_of_own()
            if self._own_matters:
                return True
        for write in self._to_be_asked:
            table, deletes, keys = write
            if side_effects.are_possible(self._query.database, self._connection, table, deletes=deletes, keys=keys):
                return True
            self._harmless.add(write)
        self._to_be_asked -= self._harmless
        return False

    def asked(self) -> None:
        """Note that all was flushed, and that the conditions of all records whose handlers are still to run will be asked again."""
        self._matters = self._own_changed = False
        self._touched.clear()
        self._to_be_asked.clear()

    def before_flush(self) -> None:
        """Look at what the session is about to write."""
        self._look()
        if any(self._expected) and bulk_update.flush_has_listeners(self._session):
            self._matters = True

    def after_flush(self) -> None:
        """Count anew, since the session has no changes any more."""
        self._seen.clear()
        self._expected = self._counted()

    def statement(self, context: Any) -> None:
        """Note a statement that writes and was not sent by the unit of work."""
        compiled = getattr(context, "compiled", None)
        statement = getattr(compiled, "statement", None)
        table = statement.table if isinstance(statement, UpdateBase) and not getattr(compiled, "ctes", None) else None
        if isinstance(table, Table):
            self._writes(table, deletes=bool(context.isdelete), keys=bool(context.isupdate))
        else:
            self._matters = True  # a text: nobody knows what it writes

    def _counted(self) -> tuple[int, int, int]:
        session = self._session
        return len(session.identity_map._modified), len(session._new), len(session._deleted)  # noqa: SLF001  # `dirty` builds a set each time

    def _look(self) -> None:
        """Look at the objects that were changed since the last look."""
        session = self._session
        self._expected = self._counted()
        gone = session._deleted  # noqa: SLF001
        for state in (session.identity_map._modified | session._new.keys() | gone.keys()) - self._seen:  # noqa: SLF001
            self._seen.add(state)
            self._changes(state, deletes=state in gone)

    def _changes(self, state: Any, *, deletes: bool) -> None:
        mapper: Mapper[Any] = state.manager.mapper
        keys = any(mapper.get_property_by_column(column).key in state.committed_state for column in mapper.primary_key)
        if mapper.base_mapper is self._base:
            self._own_changed = True
            if state not in self._mine:
                self._touched.add(state)
            if deletes or (keys and state.key is not None):
                self._to_be_asked |= {(table, deletes, keys) for table in self._own} - self._harmless
        else:
            if bulk_update.is_heard(mapper):
                self._matters = True  # the listener may write whatever it likes
            for table in mapper.tables:
                self._writes(table, deletes=deletes, keys=keys and state.key is not None)
        for table in _tables_of_members(mapper) if deletes else _collections_changed(state):
            self._writes(table)

    def _writes(self, table: Any, *, deletes: bool = False, keys: bool = False) -> None:
        if not isinstance(table, Table) or self._beside is None or table.fullname in self._own_names or table.fullname in self._beside:
            self._matters = True
        elif (table, deletes, keys) not in self._harmless:
            self._to_be_asked.add((table, deletes, keys))

    def _ask_of_own(self) -> bool:
        if self._beside is None or not self._beside.isdisjoint(self._own_names) or len(self._own) < len(self._query.mapper.tables):
            return True
        if any(bulk_update.is_heard(one) for one in self._query.mapper.self_and_descendants):
            return True
        return any(side_effects.are_possible(self._query.database, self._connection, table) for table in self._own)


def _collections_changed(state: Any) -> list[Any]:
    """Return the tables whose rows a flush writes since a relationship of this object was changed, other than its own row."""
    mapper: Mapper[Any] = state.manager.mapper
    named = _members(mapper)
    if not named:
        return []
    changed = state.committed_state.keys() | state.__dict__.get("_pending_mutations", {}).keys()
    return [table for name, tables in named.items() if name in changed for table in tables]


def _tables_of_members(mapper: Mapper[Any]) -> list[Any]:
    """Return the tables whose rows a flush may write where an object of this class is deleted."""
    return [table for tables in _members(mapper).values() for table in tables]


@lru_cache(maxsize=512)
def _members(mapper: Mapper[Any]) -> dict[str, list[Any]]:
    """Return the tables that each relationship writes beside the object's own row: those of its members, or the table between them."""
    return {
        one.key: [*one.mapper.tables, *([] if one.secondary is None else [one.secondary])]
        for one in mapper.relationships
        if one.direction is not MANYTOONE and not one.viewonly
    }
