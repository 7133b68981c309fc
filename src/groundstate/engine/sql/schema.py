"""Checks whether groundstate's tables exist and have the columns of this version of groundstate, and creates the tables. Creates a user's
table only when told to.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection, MetaData, Table, inspect, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateColumn

from groundstate.engine.sql import db_errors
from groundstate.store import delete_guard, tables
from groundstate.store.engine_settings import translated_schema
from groundstate.store.port import Database
from groundstate.store.safe_name import label_of_url
from groundstate.values.errors import NotInitialisedError

_NOT_ALLOWED = "42501"


def check_tables(database: Database) -> None:
    """Raise NotInitialisedError if a table or column of groundstate is missing."""
    for table in tables.metadata.sorted_tables:
        try:
            with database.reading() as connection:
                # Use a SELECT of no rows, since reflection would take a tenth of a second at each start.
                connection.execute(select(table).limit(0))
        except DBAPIError as error:
            if db_errors.is_no_fault_of_record(error):
                raise
            _raise_what_is_missing(database, table, error)


def _raise_what_is_missing(database: Database, table: Table, error: DBAPIError) -> None:
    """Raise NotInitialisedError, which names the missing table or columns and the cure. If nothing is missing, raise the given error."""
    where = label_of_url(database.settings.url)
    with database.reading() as connection:
        looked = inspect(connection)
        if not looked.has_table(table.name, schema=translated_schema(connection, table)):
            raise NotInitialisedError(
                f"{table.name} is missing in {where}: run `groundstate init` once. Where it was here before and is gone, what was known of"
                " calls in doubt is gone with it: say so, by `groundstate init --after-restore`"
            ) from error
        there = {column["name"] for column in looked.get_columns(table.name, schema=translated_schema(connection, table))}
        lacking = sorted((column for column in table.columns if column.name not in there), key=lambda column: column.name)
        statements = [_add_column_ddl(connection, column) for column in lacking if column.nullable]
    if not lacking:
        raise error
    by_hand = f", or by hand: {'; '.join(statements)};" if len(statements) == len(lacking) else ""
    raise NotInitialisedError(
        f"{table.name} in {where} has no column {', '.join(column.name for column in lacking)}: it was made by another version. "
        f"Add it by your migrations (groundstate.store.migrations.metadata is the target){by_hand} and do not make the table anew:"
        " what stands in it tells which calls may have been made"
    ) from error


def _add_column_ddl(connection: Connection, column: Column[Any]) -> str:
    quoted = connection.dialect.identifier_preparer.quote(column.table.name)
    return f"ALTER TABLE {quoted} ADD COLUMN {CreateColumn(column).compile(dialect=connection.dialect)}"


def create_tables(database: Database, *users: MetaData) -> list[str]:
    """Create the missing tables of groundstate, and the missing tables of the user's metadata if given. Return the names of the tables that
    were created.
    """
    created: list[str] = []
    with database.reading() as connection:
        looked = inspect(connection)
        wanted = [
            (meta, [t for t in meta.sorted_tables if not looked.has_table(t.name, schema=translated_schema(connection, t))])
            for meta in (tables.metadata, *users)
        ]
    with database.writing() as connection:
        for meta, missing in wanted:
            if missing:
                meta.create_all(connection, tables=missing)
                created += [table.fullname for table in missing]
    if database.name == "postgresql":
        _create_delete_trigger(database)
    return created


def _create_delete_trigger(database: Database) -> None:
    """Create the delete trigger on tables that lack it. An older version of groundstate or a migration may have made a table without it.

    If the role may not create the trigger, no error is raised: `groundstate check` reports a missing trigger.
    """
    with database.reading() as connection:
        if delete_guard.triggers_exist(connection):
            return
    try:
        with database.writing() as connection:
            delete_guard.create_triggers(None, connection)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _NOT_ALLOWED:
            raise
