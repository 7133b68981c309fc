"""Finds out what else a write to a table may change: by a trigger, a rule, a view, or the action of a foreign key. The answers come from
the database's catalogue, and are kept for a minute, so that they cost most batches nothing. Whether a name is a table is asked only once.
"""

from __future__ import annotations

import weakref
from typing import Any

from sqlalchemy import Connection, Table, text

from groundstate.engine.sql.table_spelling import sql_table_name
from groundstate.store.port import Database

KEPT_S = 60.0  # seconds: how long an answer is kept; a trigger that is created meanwhile is noticed only after this time
# If a PL/pgSQL trigger has no keyword that writes or executes something, it only sets columns of its own row, such as updated_at.
_HOOKS = {
    "postgresql": text(
        "SELECT EXISTS (SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_language l ON l.oid = p.prolang"
        " WHERE t.tgrelid = to_regclass(:name) AND NOT t.tgisinternal AND left(t.tgname, 16) <> 'groundstate_rows'"
        r" AND NOT (l.lanname = 'plpgsql' AND p.prosrc !~* '\m(insert|update|delete|merge|truncate|select|perform|execute|call)\M'))"
        " OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class = to_regclass(:name) AND rulename <> '_RETURN')"
    ),
    "sqlite": text(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = lower(:name)"
        " UNION ALL SELECT 1 FROM sqlite_temp_master WHERE type = 'trigger' AND lower(tbl_name) = lower(:name))"
    ),
}
_ACTIONS = {
    "postgresql": text(
        "SELECT EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = to_regclass(:name)"
        " AND CASE WHEN :deletes THEN confdeltype ELSE confupdtype END IN ('c', 'n', 'd'))"
    ),
    "sqlite": text(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master m, pragma_foreign_key_list(m.name) f WHERE m.type = 'table'"
        ' AND lower(f."table") = lower(:name)'
        " AND CASE WHEN :deletes THEN f.on_delete ELSE f.on_update END NOT IN ('NO ACTION', 'RESTRICT'))"
    ),
}
_Known = dict[tuple[str, str], tuple[bool, float]]
_known: weakref.WeakKeyDictionary[Database, _Known] = weakref.WeakKeyDictionary()


def can_change_other_rows(database: Database, connection: Connection, table: Table, *, deletes: bool = False, keys: bool = False) -> bool:
    """Return whether a write to this table may change other rows, in any table.

    deletes: Whether the write deletes rows. keys: Whether the write updates columns to which foreign keys may refer.
    """
    if not is_table(database, connection, table):
        return True  # a view, or a table in an attached file: its triggers are not in this catalogue
    if _query_or_cached(database, connection, table, "hooks", _HOOKS, {}):
        return True
    if deletes and _query_or_cached(database, connection, table, "deletes", _ACTIONS, {"deletes": True}):
        return True
    return keys and _query_or_cached(database, connection, table, "updates", _ACTIONS, {"deletes": False})


def _query_or_cached(database: Database, connection: Connection, table: Table, what: str, statements: Any, values: dict[str, Any]) -> bool:
    name = sql_table_name(table, database) if database.locks_rows else table.name
    known, now = _known.setdefault(database, {}), database.clock.monotonic()
    found = known.get((name, what))
    if found is None or now - found[1] > KEPT_S:
        answer = connection.execute(statements[database.name], {"name": name, **values}).scalar()
        found = known[name, what] = (bool(answer), now)
    return found[0]


_IS_TABLE = {
    "postgresql": text("SELECT relkind IN ('r', 'p') FROM pg_class WHERE oid = to_regclass(:name)"),
    "sqlite": text(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND lower(name) = lower(:name))"
        " AND NOT EXISTS (SELECT 1 FROM sqlite_temp_master WHERE lower(name) = lower(:name))"
    ),
}
_tables: weakref.WeakKeyDictionary[Database, dict[str, bool]] = weakref.WeakKeyDictionary()


def is_table(database: Database, connection: Connection, table: Any) -> bool:
    """Return whether this is the name of a table of the database, and not of a view.

    False if this cannot be found out: for a table in an attached file of SQLite, or for a table that does not exist.
    """
    if not database.locks_rows and connection.schema_for_object(table) is not None:
        return False
    known, name = _tables.setdefault(database, {}), sql_table_name(table, database) if database.locks_rows else table.name
    if name not in known:
        known[name] = bool(connection.execute(_IS_TABLE[database.name], {"name": name}).scalar())
    return known[name]
