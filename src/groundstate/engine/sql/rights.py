"""Finds what PostgreSQL's GRANTs deny to the role that we connect as and a worker needs. Runs SELECTs only."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Table, text

from groundstate.engine.sql.condition_query import sql_name
from groundstate.store.port import Database

_OF_RECORDS = ("SELECT", "UPDATE")  # a record is locked before its handler runs, and PostgreSQL demands UPDATE for that
_OF_OURS = ("SELECT", "INSERT", "UPDATE", "DELETE")

# has_any_column_privilege: the right to update one column is enough to lock a row.
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


def missing(database: Database, connection: Connection, records: Sequence[Table], ours: Sequence[Table]) -> dict[str, list[str]]:
    """Return the rights that a worker needs and this role lacks, by the table's SQL name.

    The result is empty for a role that may write to none of our tables, since such a role only reads.
    """
    if database.name != "postgresql":
        return {}
    names = list(dict.fromkeys(sql_name(table, database) for table in ours))
    told = connection.execute(_ON_OURS, {"names": names, "rights": list(_OF_OURS)}).all()
    if not any(may for _, right, may in told if right != "SELECT"):
        return {}
    denied = [(name, right) for name, right, may in told if not may]
    names = list(dict.fromkeys(sql_name(table, database) for table in records))
    denied += [(name, right) for name, right in connection.execute(_ON_RECORDS, {"names": names, "rights": list(_OF_RECORDS)})]
    found: dict[str, list[str]] = {}
    for name, right in denied:
        found.setdefault(name, []).append(right)
    return found
