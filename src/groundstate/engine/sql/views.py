"""Finds out whether a mapped table is a table in the database too, and not a view of other rows. Asks the database only once per table."""

from __future__ import annotations

import weakref
from typing import Any

from sqlalchemy import Connection, text

from groundstate.engine.sql.condition_query import sql_table_name
from groundstate.store.port import Database

_ASKED = {
    "postgresql": text("SELECT relkind IN ('r', 'p') FROM pg_class WHERE oid = to_regclass(:name)"),
    "sqlite": text(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND lower(name) = lower(:name))"
        " AND NOT EXISTS (SELECT 1 FROM sqlite_temp_master WHERE lower(name) = lower(:name))"
    ),
}
_known: weakref.WeakKeyDictionary[Database, dict[str, bool]] = weakref.WeakKeyDictionary()


def is_table(database: Database, connection: Connection, table: Any) -> bool:
    """Return whether the database has a table, and no view, of this name. False if this cannot be found out: for a table in an attached
    file of SQLite, or for a table that does not exist.
    """
    if not database.locks_rows and connection.schema_for_object(table) is not None:
        return False
    known, name = _known.setdefault(database, {}), sql_table_name(table, database) if database.locks_rows else table.name
    if name not in known:
        known[name] = bool(connection.execute(_ASKED[database.name], {"name": name}).scalar())
    return known[name]
