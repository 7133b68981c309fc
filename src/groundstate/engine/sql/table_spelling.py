"""Lists how a table may be written in `groundstate_attempt.blocks`: with its default schema, or without a schema.

An attempt names the table as its code declared it, so that versions of the same code agree. Another app may declare the same table with
schema="public" ("main" on SQLite), so comparisons accept both.
"""

from __future__ import annotations

from typing import Any

from groundstate.store.port import Database


def spellings(database: Database, table: Any) -> tuple[str, ...]:
    """Return each text that means this table, the declared one first. The default schema is unknown before the first connection."""
    said = str(table.fullname)
    translated = database.engine.get_execution_options().get("schema_translate_map") or {}
    default = translated.get(None) or database.engine.dialect.default_schema_name
    schema = translated.get(table.schema, table.schema) or default
    found = [said, f"{schema}.{table.name}"] if schema else [said]
    return tuple(dict.fromkeys([*found, table.name] if schema == default else found))
