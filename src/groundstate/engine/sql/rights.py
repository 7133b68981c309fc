"""Finds the rights that a worker needs on PostgreSQL and that its role has not been granted. Runs only SELECTs."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Table, text

from groundstate.engine.sql.table_spelling import sql_table_name
from groundstate.store.port import Database

_OF_RECORDS = ("SELECT", "UPDATE")  # a record is locked before its handler runs, and PostgreSQL demands the right to UPDATE for a lock
_OF_OURS = ("SELECT", "INSERT", "UPDATE", "DELETE")

# has_any_column_privilege is used since the right to update one column is enough to lock a row.
_ON_RECORDS = text("""
    SELECT asked.name, wanted.privilege
    FROM unnest(cast(:names AS text[])) AS asked(name), unnest(cast(:rights AS text[])) AS wanted(privilege)
    WHERE to_regclass(asked.name) IS NOT NULL AND NOT has_any_column_privilege(asked.name, wanted.privilege)
""")
_ON_OURS = text("""
    SELECT asked.name, wanted.privilege, has_table_privilege(asked.name, wanted.privilege)
    FROM unnest(cast(:names AS text[])) AS asked(name), unnest(cast(:rights AS text[])) AS wanted(privilege)
    WHERE to_regclass(asked.name) IS NOT NULL
""")


def missing_rights(database: Database, connection: Connection, records: Sequence[Table], ours: Sequence[Table]) -> dict[str, list[str]]:
    """Return a dict from each table's SQL name to the rights that a worker needs on the table and this role lacks.

    Empty for a role that may write to none of groundstate's tables: such a role only reads, as for reports.
    """
    if database.name != "postgresql":
        return {}
    names = list(dict.fromkeys(sql_table_name(table, database) for table in ours))
    told = connection.execute(_ON_OURS, {"names": names, "rights": list(_OF_OURS)}).all()
    if not any(may for _, right, may in told if right != "SELECT"):
        return {}
    denied = [(name, right) for name, right, may in told if not may]
    names = list(dict.fromkeys(sql_table_name(table, database) for table in records))
    denied += [(name, right) for name, right in connection.execute(_ON_RECORDS, {"names": names, "rights": list(_OF_RECORDS)})]
    found: dict[str, list[str]] = {}
    for name, right in denied:
        found.setdefault(name, []).append(right)
    return found
