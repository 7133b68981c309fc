"""Avoids flushes when handlers get rows by key: if no flush could change a row, the row is loaded without a flush, and kept in the session.

A handler may load the account of its order and increment a count there. For each row that is not loaded yet, SQLAlchemy would first flush
what earlier handlers of the batch have changed, record by record. After the flush SQLAlchemy would forget the row, so that the next handler
would load it again. The statements of a flush can change other rows only through triggers and rules, so a flush is done first if a table
has any.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import Column, Connection, Table, inspect, text
from sqlalchemy.orm import MANYTOONE, Mapper, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.mapper import _all_registries

from groundstate.engine.sql import bulk_update
from groundstate.engine.sql.side_effects import is_table
from groundstate.engine.sql.table_spelling import sql_table_name
from groundstate.store.port import Database

KEPT_MOST = 10_000  # the most rows that one transaction keeps
_LOADED_LATER = frozenset({True, None, "select", "raise", "raise_on_sql", "noload", "write_only", "dynamic"})
# Selects whether a table has a rule, or a trigger other than groundstate's own (`triggers.py`), which only reports changed rows.
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
# Selects whether any table has a trigger or a rule. If none has, the tables need not be checked one by one.
_ANY_HOOKS = {
    "postgresql": text(
        "SELECT EXISTS (SELECT FROM pg_trigger WHERE NOT tgisinternal AND left(tgname, 12) <> 'groundstate_')"
        " OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class >= 16384 AND rulename <> '_RETURN')"  # smaller OIDs belong to system tables
    ),
    "sqlite": text(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'trigger'"
        " UNION ALL SELECT 1 FROM sqlite_temp_master WHERE type = 'trigger'"
        " UNION ALL SELECT 1 FROM pragma_database_list WHERE name NOT IN ('main', 'temp'))"
    ),
}


class RowsByKey:
    """The rows that handlers of one transaction have loaded by key, and that are kept in the session."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._any_hooked: bool | None = None
        self._hooked: dict[Table, bool] = {}
        self._kept: dict[Any, Any] = {}  # the kept records, by SQLAlchemy's identity key

    def keep_record(self, session: Session, record: Any) -> None:
        """Keep a strong reference to the record, since after a flush the session itself has only a weak one.

        A record that loads other rows with it is not kept, so that it is loaded anew.
        """
        state = instance_state(record)
        if self._shows_only_own_row(session, state.mapper):
            self._kept[state.key] = record
            if len(self._kept) > KEPT_MOST:
                del self._kept[next(iter(self._kept))]

    @property
    def has_kept_records(self) -> bool:
        return bool(self._kept)

    def forget_records(self) -> None:
        """Drop all kept records. Call it when rows may have been written past the session. When a handler gets such a row again, it is
        loaded anew, unless the user's code still refers to the record.
        """
        self._kept.clear()

    def forget_records_before_flush(self, session: Session) -> None:
        """Drop the kept records if the coming flush may change rows other than those of the changed objects: by a trigger, a listener or a
        delete.
        """
        if self._kept and self._may_flush_change_other_rows(session):
            self._kept.clear()

    def is_loaded(self, session: Session, entity: Any, ident: Any) -> bool:
        """Return whether the session already has the row, so that neither a query nor a flush is needed to get it."""
        self.forget_records_before_flush(session)
        key = ident if isinstance(ident, tuple) else (ident,)
        try:
            known = inspect(entity).identity_key_from_primary_key(key)
            kept = known in self._kept
        except TypeError:  # the identifier cannot be a key, which SQLAlchemy itself will report
            return False
        if kept and _has_loaded_members(self._kept[known]):
            del self._kept[known]  # the record's collections may have changed, so let it be loaded anew, unless it is still referred to
        return known in session.identity_map

    def can_read_without_flush(self, session: Session, entity: Any) -> bool:
        """Return whether a row of this class can be read without a flush, since nothing that the session would flush can change the row."""
        return not session.new and self._shows_only_own_row(session, inspect(entity)) and not self._may_flush_change_other_rows(session)

    def _may_flush_change_other_rows(self, session: Session) -> bool:
        """Return whether a flush may change rows other than those of the changed objects: by listeners, triggers or rules, or by foreign
        keys to deleted rows.
        """
        if session.deleted:
            return True
        dirty, new = session.identity_map._modified, session.new  # noqa: SLF001  # session.dirty builds a new set at each access
        if not (dirty or new):
            return False
        if bulk_update.flush_has_listeners(session):
            return True
        if not self._has_any_hooks(session):
            return False
        mappers = {state.manager.mapper for state in dirty} | {inspect(one).mapper for one in new}
        return any(bulk_update.has_write_listeners(its) or any(self._has_hooks(session, table) for table in its.tables) for its in mappers)

    def _has_any_hooks(self, session: Session) -> bool:
        """Return whether any mapper has a listener, or any table has a trigger or a rule. If none has, no table is checked by itself."""
        if self._any_hooked is None:
            heard = any(bulk_update.has_write_listeners(one) for registry in _all_registries() for one in registry.mappers)
            self._any_hooked = heard or bool(session.connection().execute(_ANY_HOOKS[self._database.name]).scalar())
        return self._any_hooked

    def _shows_only_own_row(self, session: Session, mapper: Mapper[Any]) -> bool:
        """Return whether loading a row of this mapper loads no other rows, which a flush might change."""
        return _loads_only_own_row(mapper) and all(is_table(self._database, session.connection(), table) for table in mapper.tables)

    def _has_hooks(self, session: Session, table: Any) -> bool:
        """Return whether this table has, or may have, a trigger or a rule. The answer is remembered for this transaction."""
        if not isinstance(table, Table):
            return True
        known = self._hooked.get(table)
        if known is None:
            with session.no_autoflush:
                known = self._hooked[table] = self._query_hooks(session.connection(), table)
        return known

    def _query_hooks(self, connection: Connection, table: Table) -> bool:
        if not self._database.locks_rows and connection.schema_for_object(table) is not None:
            return True  # the table is in an attached file, whose own catalogue may have triggers
        name = sql_table_name(table, self._database) if self._database.locks_rows else table.name
        return bool(connection.execute(_HOOKS[self._database.name], {"name": name}).scalar())


def _has_loaded_members(record: Any) -> bool:
    """Return whether this record has a loaded relationship whose members' rows hold a foreign key to the record."""
    state: Any = instance_state(record)
    return any(name in state.dict for name in _member_relationships(state.mapper))


@lru_cache(maxsize=512)
def _member_relationships(mapper: Mapper[Any]) -> tuple[str, ...]:
    return tuple(one.key for one in mapper.relationships if one.direction is not MANYTOONE)


@lru_cache(maxsize=512)
def _loads_only_own_row(mapper: Mapper[Any]) -> bool:
    """Return whether this class and each of its subclasses are mapped so that loading a record reads nothing but the record's own rows."""
    return all(_mapper_loads_only_own_row(one) for one in mapper.self_and_descendants)


def _mapper_loads_only_own_row(mapper: Mapper[Any]) -> bool:
    columns = [column for attribute in mapper.column_attrs for column in attribute.columns]
    if not all(isinstance(one, Column) and isinstance(one.table, Table) for one in columns):
        return False
    return all(one.lazy in _LOADED_LATER for one in mapper.relationships)
