"""Lists the ways in which `groundstate_attempt.blocks` may name a table: as declared, with its default schema, or without a schema.

An attempt names the table as the application that wrote it has declared the table. Another app may declare the same table with
schema="public" ("main" on SQLite), so a comparison must accept each of these names.
"""

from __future__ import annotations

from typing import Any

from groundstate.store.port import Database


def table_name_spellings(database: Database, table: Any) -> tuple[str, ...]:
    """Return each text that names this table; the declared name comes first. The default schema is not known before the first
    connection.
    """
    said = str(table.fullname)
    translated = database.engine.get_execution_options().get("schema_translate_map") or {}
    default = translated.get(None) or database.engine.dialect.default_schema_name
    schema = translated.get(table.schema, table.schema) or default
    found = [said, f"{schema}.{table.name}"] if schema else [said]
    return tuple(dict.fromkeys([*found, table.name] if schema == default else found))
