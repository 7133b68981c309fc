"""Reads the rows that handlers get by their key without a flush, where no flush could change them, and keeps them in the session.

A handler may read the account of its order, and count the order there. Before each row that is not loaded yet, SQLAlchemy would flush what
earlier handlers of the batch have changed, record by record; and it would forget each row after its flush, so that the next handler loads
it again. Only triggers and rules can make the statements of a flush change another row, so tables that have any are flushed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import Column, Connection, Table, inspect, text
from sqlalchemy.orm import MANYTOONE, Mapper, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.mapper import _all_registries

from groundstate.engine.sql import bulk_update
from groundstate.engine.sql.condition_query import sql_name
from groundstate.engine.sql.views import is_table
from groundstate.store.port import Database

KEPT_MOST = 10_000  # rows that one transaction keeps
_LOADED_LATER = frozenset({True, None, "select", "raise", "raise_on_sql", "noload", "write_only", "dynamic"})
# Whether a table has a trigger or a rule, except our own trigger (`triggers.py`), which only reports changed rows.
_HOOKS = {
    "postgresql": text(
        "SELECT EXISTS (SELECT FROM pg_trigger"
        " WHERE tgrelid = to_regclass(:name) AND NOT tgisinternal AND left(tgname, 16) <> 'groundstate_rows')"
        " OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class = to_regclass(:name) AND rulename <> '_RETURN')"
    ),
    "sqlite": text(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = lower(:name)"
        " UNION ALL SELECT 1 FROM sqlite_temp_master WHERE type = 'trigger' AND lower(tbl_name) = lower(:name))"
    ),
}
# Whether any table may have a trigger or a rule; where none has, the tables need not be checked one by one.
_ANY_HOOKS = {
    "postgresql": text(
        "SELECT EXISTS (SELECT FROM pg_trigger WHERE NOT tgisinternal AND left(tgname, 12) <> 'groundstate_')"
        " OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class >= 16384 AND rulename <> '_RETURN')"  # smaller OIDs are the server's own
    ),
    "sqlite": text(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'trigger'"
        " UNION ALL SELECT 1 FROM sqlite_temp_master WHERE type = 'trigger'"
        " UNION ALL SELECT 1 FROM pragma_database_list WHERE name NOT IN ('main', 'temp'))"
    ),
}


class RowsByKey:
    """The rows that one transaction has read by their key and keeps."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._any_hooked: bool | None = None
        self._hooked: dict[Table, bool] = {}
        self._kept: dict[Any, Any] = {}  # identity key -> record

    def keep(self, session: Session, record: Any) -> None:
        """Keep a strong reference to the record, since the session holds only a weak one after a flush.

        Records that load other rows with them are not kept, so they are loaded anew.
        """
        state = instance_state(record)
        if self._stands_alone(session, state.mapper):
            self._kept[state.key] = record
            if len(self._kept) > KEPT_MOST:
                del self._kept[next(iter(self._kept))]

    @property
    def keeps_any(self) -> bool:
        return bool(self._kept)

    def forget(self) -> None:
        """Drop all kept records, since rows may have been written past the session. The session loads them anew unless the user's code
        holds them.
        """
        self._kept.clear()

    def forget_what_a_flush_changes(self, session: Session) -> None:
        """Drop the kept records before a flush that may change rows which it does not name: by a trigger, a listener or a delete."""
        if self._kept and self._flush_does_more(session):
            self._kept.clear()

    def is_there(self, session: Session, entity: Any, ident: Any) -> bool:
        """Whether the session already holds the row, so that neither a query nor a flush is needed for it."""
        self.forget_what_a_flush_changes(session)
        key = ident if isinstance(ident, tuple) else (ident,)
        try:
            known = inspect(entity).identity_key_from_primary_key(key)
            kept = known in self._kept
        except TypeError:  # the identifier cannot be a key: SQLAlchemy reports that
            return False
        if kept and _has_its_members(self._kept[known]):
            del self._kept[known]  # its collections may have changed: it is loaded anew unless the user's code holds it
        return known in session.identity_map

    def needs_no_flush(self, session: Session, entity: Any) -> bool:
        """Whether a row of this class can be read without a flush, since nothing that the session would flush can change it."""
        return not session.new and self._stands_alone(session, inspect(entity)) and not self._flush_does_more(session)

    def _flush_does_more(self, session: Session) -> bool:
        """Whether a flush might change rows that it does not name, by listeners, triggers, rules, or foreign keys to deleted rows."""
        if session.deleted:
            return True
        dirty, new = session.identity_map._modified, session.new  # noqa: SLF001  # session.dirty builds a new set at each access
        if not (dirty or new):
            return False
        if bulk_update.flush_has_listeners(session):
            return True
        if not self._any_hooks(session):
            return False
        mappers = {state.manager.mapper for state in dirty} | {inspect(one).mapper for one in new}
        return any(bulk_update.is_heard(its) or any(self._has_hooks(session, table) for table in its.tables) for its in mappers)

    def _any_hooks(self, session: Session) -> bool:
        """Whether anything listens to any mapper, or any table has a trigger or a rule. It is checked first, since it costs little."""
        if self._any_hooked is None:
            heard = any(bulk_update.is_heard(one) for registry in _all_registries() for one in registry.mappers)
            self._any_hooked = heard or bool(session.connection().execute(_ANY_HOOKS[self._database.name]).scalar())
        return self._any_hooked

    def _stands_alone(self, session: Session, mapper: Mapper[Any]) -> bool:
        """Whether a row of this mapper is loaded by itself and shows nothing of other rows, which a flush might change."""
        return _is_of_its_own(mapper) and all(is_table(self._database, session.connection(), table) for table in mapper.tables)

    def _has_hooks(self, session: Session, table: Any) -> bool:
        if not isinstance(table, Table):
            return True
        known = self._hooked.get(table)
        if known is None:
            with session.no_autoflush:
                known = self._hooked[table] = self._asked(session.connection(), table)
        return known

    def _asked(self, connection: Connection, table: Table) -> bool:
        if not self._database.locks_rows and connection.schema_for_object(table) is not None:
            return True  # the table is in an attached file with a catalogue of its own, so it may have triggers
        name = sql_name(table, self._database) if self._database.locks_rows else table.name
        return bool(connection.execute(_HOOKS[self._database.name], {"name": name}).scalar())


def _has_its_members(record: Any) -> bool:
    """Whether a relationship of this record was loaded whose members refer to it by a foreign key in their own rows."""
    state: Any = instance_state(record)
    return any(name in state.dict for name in _members(state.mapper))


@lru_cache(maxsize=512)
def _members(mapper: Mapper[Any]) -> tuple[str, ...]:
    return tuple(one.key for one in mapper.relationships if one.direction is not MANYTOONE)


@lru_cache(maxsize=512)
def _is_of_its_own(mapper: Mapper[Any]) -> bool:
    """Whether the mapping of the class, and of each subclass, loads nothing but the record's own rows."""
    return all(_shows_its_row_alone(one) for one in mapper.self_and_descendants)


def _shows_its_row_alone(mapper: Mapper[Any]) -> bool:
    columns = [column for attribute in mapper.column_attrs for column in attribute.columns]
    if not all(isinstance(one, Column) and isinstance(one.table, Table) for one in columns):
        return False
    return all(one.lazy in _LOADED_LATER for one in mapper.relationships)
