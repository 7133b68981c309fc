"""Spells the names of tables: in SQL, and in the ways in which `groundstate_attempt.blocks` may name a table (as declared, with its default
schema, or without a schema).

An attempt contains the table's name as declared in the application that wrote the attempt. Another app may declare the same table with
schema="public" ("main" on SQLite), so a comparison must accept each of these names.
"""

from __future__ import annotations

from typing import Any

from groundstate.engine.sql.sql_text import with_single_percents
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


def sql_table_name(table: Any, database: Database) -> str:
    """Return a table's name as SQL, with its schema. A percent sign in the name is not doubled."""
    preparer: Any = database.engine.dialect.identifier_preparer
    translated = database.engine.get_execution_options().get("schema_translate_map") or {}
    schema = translated.get(table.schema, table.schema)
    said = str(preparer.format_table(table, use_schema=False))
    if schema is not None:
        said = f"{preparer.quote_schema(schema)}.{said}"
    return with_single_percents(database.engine.dialect, said)
