"""Finds tables in which PostgreSQL's row-level security hides rows from groundstate's role. A worker never sees hidden rows, so no reaction
is carried out for them. Runs only SELECTs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table, text

from groundstate.engine.sql.table_spelling import sql_table_name
from groundstate.store.port import Database

_COMMANDS = ("SELECT", "UPDATE")  # the commands that a worker runs on a record (SELECT ... FOR NO KEY UPDATE counts as UPDATE)

# Row security does not apply to an owner, a superuser or a role with BYPASSRLS: they see all rows.
_POLICIES = text("""
    SELECT asked.name, policies.cmd, policies.permissive = 'PERMISSIVE' AS permissive, policies.qual
    FROM unnest(cast(:names AS text[])) AS asked(name)
    JOIN pg_class AS c ON c.oid = to_regclass(asked.name)
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_policies AS policies ON policies.schemaname = n.nspname AND policies.tablename = c.relname
        AND (policies.roles && ARRAY['public'::name] OR EXISTS (
            SELECT FROM unnest(policies.roles) AS role(name) WHERE role.name <> 'public' AND pg_has_role(role.name, 'usage')))
    WHERE row_security_active(c.oid)
""")
_ROLE = text("SELECT quote_ident(current_user)")


def tables_with_hidden_rows(database: Database, connection: Connection, tables: Sequence[Table]) -> list[str]:
    """Return the SQL names of the tables, among those given, whose policies may hide rows from this role."""
    if database.name != "postgresql":
        return []
    names = list(dict.fromkeys(sql_table_name(table, database) for table in tables))
    policies: dict[str, list[Any]] = defaultdict(list)
    for row in connection.execute(_POLICIES, {"names": names}):
        policies[row.name].append(row)
    return [name for name, some in policies.items() if not _policies_show_all_rows(some)]


def current_role_name(connection: Connection) -> str:
    """Return the SQL name of the role that this connection uses."""
    return str(connection.execute(_ROLE).scalar_one())


def _policies_show_all_rows(policies: Sequence[Any]) -> bool:
    """Return whether, for each command that a worker uses, some policy lets all rows through, and no restrictive policy removes any."""
    applied = [one for one in policies if one.cmd is not None]
    plain = {
        command for one in applied for command in _COMMANDS if one.permissive and one.cmd in ("ALL", command) and one.qual in (None, "true")
    }
    taken = any(not one.permissive and one.cmd in ("ALL", *_COMMANDS) and one.qual not in (None, "true") for one in applied)
    return plain == set(_COMMANDS) and not taken
