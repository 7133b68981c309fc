"""Rows beside the record that handlers ask for by their key: read without a flush where none could change the answer, and kept.

A handler of a batch reads the account of its order and counts it there. SQLAlchemy would flush what the handlers before it have changed,
record by record, before each row that is not loaded yet; and would forget each row once it is flushed, so that the next handler loads it
again. What the statement of a flush can do to another row is a trigger's or a rule's work, so it is flushed where the tables have any.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Table, inspect, text
from sqlalchemy.orm import Mapper, Session

from groundstate.engine.question import sql_name
from groundstate.store.port import Database

KEPT_MOST = 10_000  # rows of one transaction
_LOADED_LATER = frozenset({True, None, "select", "raise", "raise_on_sql", "noload", "write_only", "dynamic"})
# Whether a table has a trigger or a rule that is not ours, which only tells of rows (`triggers.py`).
_HOOKS = {
    "postgresql": text(
        "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass(:name) AND NOT tgisinternal AND tgname <> 'groundstate_rows')"
        " OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class = to_regclass(:name) AND rulename <> '_RETURN')"
    ),
    "sqlite": text(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = lower(:name)"
        " UNION ALL SELECT 1 FROM sqlite_temp_master WHERE type = 'trigger' AND lower(tbl_name) = lower(:name))"
    ),
}


class ByKey:
    """Of one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._hooked: dict[Table, bool] = {}
        self._kept: deque[Any] = deque(maxlen=KEPT_MOST)

    def keep(self, record: Any) -> None:
        """The session itself holds no more than a weak reference to what it has flushed."""
        self._kept.append(record)

    def is_there(self, session: Session, entity: Any, ident: Any) -> bool:
        """Whether the session has it already, so that nothing is asked or flushed for it."""
        key = ident if isinstance(ident, tuple) else (ident,)
        try:
            return inspect(entity).identity_key_from_primary_key(key) in session.identity_map
        except TypeError:  # what cannot be a key, SQLAlchemy says
            return False

    def needs_no_flush(self, session: Session, entity: Any) -> bool:
        """Whether a row of this mapped class is the same before and after what the session would flush."""
        if session.new or session.deleted or not _stands_alone(inspect(entity)):
            return False
        mappers = {inspect(one).mapper for one in session.dirty}
        return not any(self._has_hooks(session, table) for mapper in mappers for table in mapper.tables)

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


@lru_cache(maxsize=512)
def _stands_alone(mapper: Mapper[Any]) -> bool:
    """Whether it is loaded without others, whose rows the flush might change."""
    return all(one.lazy in _LOADED_LATER for one in mapper.relationships)
