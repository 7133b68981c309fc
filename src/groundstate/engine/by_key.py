"""Rows beside the record that handlers ask for by their key: read without a flush where none could change the answer, and kept.

A handler of a batch reads the account of its order and counts it there. SQLAlchemy would flush what the handlers before it have changed,
record by record, before each row that is not loaded yet; and would forget each row once it is flushed, so that the next handler loads it
again. What the statement of a flush can do to another row is a trigger's or a rule's work, so it is flushed where the tables have any.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import Column, Connection, Table, inspect, text
from sqlalchemy.orm import MANYTOONE, Mapper, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.mapper import _all_registries

from groundstate.engine import changes
from groundstate.engine.question import sql_name
from groundstate.engine.views import is_table
from groundstate.store.port import Database

KEPT_MOST = 10_000  # rows of one transaction
_LOADED_LATER = frozenset({True, None, "select", "raise", "raise_on_sql", "noload", "write_only", "dynamic"})
# Whether a table has a trigger or a rule that is not ours, which only tells of rows (`triggers.py`).
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
# Whether any table may have one, so that each need not be asked.
_ANY_HOOKS = {
    "postgresql": text(
        "SELECT EXISTS (SELECT FROM pg_trigger WHERE NOT tgisinternal AND left(tgname, 12) <> 'groundstate_')"
        " OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class >= 16384 AND rulename <> '_RETURN')"  # those below are the server's own
    ),
    "sqlite": text(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'trigger'"
        " UNION ALL SELECT 1 FROM sqlite_temp_master WHERE type = 'trigger'"
        " UNION ALL SELECT 1 FROM pragma_database_list WHERE name NOT IN ('main', 'temp'))"
    ),
}


class ByKey:
    """Of one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._any_hooked: bool | None = None
        self._hooked: dict[Table, bool] = {}
        self._kept: dict[Any, Any] = {}  # by their keys in a session

    def keep(self, session: Session, record: Any) -> None:
        """The session itself holds no more than a weak reference to what it has flushed. What shows other rows is loaded anew."""
        state = instance_state(record)
        if self._stands_alone(session, state.mapper):
            self._kept[state.key] = record
            if len(self._kept) > KEPT_MOST:
                del self._kept[next(iter(self._kept))]

    @property
    def keeps_any(self) -> bool:
        return bool(self._kept)

    def forget(self) -> None:
        """Rows may have been written past the session: it loads them anew, but for those that are held elsewhere."""
        self._kept.clear()

    def forget_what_a_flush_changes(self, session: Session) -> None:
        """Forgets the kept rows before a flush that may change rows which it does not name: by a trigger, a hook or a delete."""
        if self._kept and self._flush_does_more(session):
            self._kept.clear()

    def is_there(self, session: Session, entity: Any, ident: Any) -> bool:
        """Whether the session has it already, so that nothing is asked or flushed for it."""
        self.forget_what_a_flush_changes(session)
        key = ident if isinstance(ident, tuple) else (ident,)
        try:
            known = inspect(entity).identity_key_from_primary_key(key)
            kept = known in self._kept
        except TypeError:  # what cannot be a key, SQLAlchemy says
            return False
        if kept and _has_its_members(self._kept[known]):
            del self._kept[known]  # others may belong to it by now: it is loaded anew, but where it is held elsewhere
        return known in session.identity_map

    def needs_no_flush(self, session: Session, entity: Any) -> bool:
        """Whether a row of this mapped class is the same before and after what the session would flush."""
        return not session.new and self._stands_alone(session, inspect(entity)) and not self._flush_does_more(session)

    def _flush_does_more(self, session: Session) -> bool:
        """Whether a flush might change rows that it does not name: by who listens to it, by triggers and rules, or by foreign keys to what
        is deleted.
        """
        if session.deleted:
            return True
        dirty, new = session.identity_map._modified, session.new  # noqa: SLF001  # session.dirty builds a set of all, each time
        if not (dirty or new):
            return False
        if changes.flush_has_listeners(session):
            return True
        if not self._any_hooks(session):
            return False
        mappers = {state.manager.mapper for state in dirty} | {inspect(one).mapper for one in new}
        return any(changes.is_heard(its) or any(self._has_hooks(session, table) for table in its.tables) for its in mappers)

    def _any_hooks(self, session: Session) -> bool:
        """Asked first, since it costs little: whether anything listens to any mapper, or any table has a trigger or a rule."""
        if self._any_hooked is None:
            heard = any(changes.is_heard(one) for registry in _all_registries() for one in registry.mappers)
            self._any_hooked = heard or bool(session.connection().execute(_ANY_HOOKS[self._database.name]).scalar())
        return self._any_hooked

    def _stands_alone(self, session: Session, mapper: Mapper[Any]) -> bool:
        """Whether its row is loaded by itself, and shows nothing of other rows, which a flush might change."""
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
            return True  # it is in an attached file, whose own catalogue would tell
        name = sql_name(table, self._database) if self._database.locks_rows else table.name
        return bool(connection.execute(_HOOKS[self._database.name], {"name": name}).scalar())


def _has_its_members(record: Any) -> bool:
    """Whether a relationship of this row was loaded whose members name it by a foreign key in rows of their own."""
    state: Any = instance_state(record)
    return any(name in state.dict for name in _members(state.mapper))


@lru_cache(maxsize=512)
def _members(mapper: Mapper[Any]) -> tuple[str, ...]:
    return tuple(one.key for one in mapper.relationships if one.direction is not MANYTOONE)


@lru_cache(maxsize=512)
def _is_of_its_own(mapper: Mapper[Any]) -> bool:
    """Whether the mapping says so, be it that of a subclass."""
    return all(_shows_its_row_alone(one) for one in mapper.self_and_descendants)


def _shows_its_row_alone(mapper: Mapper[Any]) -> bool:
    columns = [column for attribute in mapper.column_attrs for column in attribute.columns]
    if not all(isinstance(one, Column) and isinstance(one.table, Table) for one in columns):
        return False
    return all(one.lazy in _LOADED_LATER for one in mapper.relationships)
