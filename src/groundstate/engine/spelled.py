"""How a table may be spelled in `groundstate_attempt.blocks`: with the schema that it is in by default, or without one.

What an attempt says there is written as its code declared the table, so that versions of one code agree. Another app may say
schema="public" ("main" on SQLite) of the same table: so whoever compares takes both spellings for one table.
"""

from __future__ import annotations

from typing import Any

from groundstate.store.port import Database


def spellings(database: Database, table: Any) -> tuple[str, ...]:
    """Each text that means this table, the declared one first. Before the first connection nobody knows the default schema."""
    said = str(table.fullname)
    translated = database.engine.get_execution_options().get("schema_translate_map") or {}
    default = translated.get(None) or database.engine.dialect.default_schema_name
    schema = translated.get(table.schema, table.schema) or default
    found = [said, f"{schema}.{table.name}"] if schema else [said]
    return tuple(dict.fromkeys([*found, table.name] if schema == default else found))
