"""Whether our tables are there and of this version, and creating them. Touches no table of the user's but when asked to create it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection, MetaData, Table, inspect, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateColumn

from groundstate.engine import trouble
from groundstate.store import kept_rows, tables
from groundstate.store.carried import schema_of
from groundstate.store.naming import name_of
from groundstate.store.port import Database
from groundstate.values.errors import NotInitialised

_NOT_ALLOWED = "42501"


def check(database: Database) -> None:
    """Raises NotInitialised where a table or column of ours is missing."""
    for table in tables.metadata.sorted_tables:
        try:
            with database.reading() as connection:
                connection.execute(select(table).limit(0))  # reflection would cost a tenth of a second at each start
        except DBAPIError as error:
            if trouble.transient(error):
                raise
            _say_what_is_missing(database, table, error)


def _say_what_is_missing(database: Database, table: Table, error: DBAPIError) -> None:
    where = name_of(database.settings.url)
    with database.reading() as connection:
        looked = inspect(connection)
        if not looked.has_table(table.name, schema=schema_of(connection, table)):
            raise NotInitialised(
                f"{table.name} is missing in {where}: run `groundstate init` once. Where it was here before and is gone, what was known of"
                " calls in doubt is gone with it: say so, by `groundstate init --after-restore`"
            ) from error
        there = {column["name"] for column in looked.get_columns(table.name, schema=schema_of(connection, table))}
        lacking = sorted((column for column in table.columns if column.name not in there), key=lambda column: column.name)
        statements = [_addition(connection, column) for column in lacking if column.nullable]
    if not lacking:
        raise error
    by_hand = f", or by hand: {'; '.join(statements)};" if len(statements) == len(lacking) else ""
    raise NotInitialised(
        f"{table.name} in {where} has no column {', '.join(column.name for column in lacking)}: it was made by another version. "
        f"Add it by your migrations (groundstate.store.migrations.metadata is the target){by_hand} and do not make the table anew:"
        " what stands in it tells which calls may have been made"
    ) from error


def _addition(connection: Connection, column: Column[Any]) -> str:
    quoted = connection.dialect.identifier_preparer.quote(column.table.name)
    return f"ALTER TABLE {quoted} ADD COLUMN {CreateColumn(column).compile(dialect=connection.dialect)}"


def create(database: Database, *users: MetaData) -> list[str]:
    """Creates what is missing of our tables, and of the user's metadata where given; returns the names of what was created."""
    created: list[str] = []
    with database.reading() as connection:
        looked = inspect(connection)
        wanted = [
            (meta, [t for t in meta.sorted_tables if not looked.has_table(t.name, schema=schema_of(connection, t))])
            for meta in (tables.metadata, *users)
        ]
    with database.writing() as connection:
        for meta, missing in wanted:
            if missing:
                meta.create_all(connection, tables=missing)
                created += [table.fullname for table in missing]
    if database.name == "postgresql":
        _keep_rows(database)
    return created


def _keep_rows(database: Database) -> None:
    """The trigger on a table that was made without it: by older code, or by migrations. Who may not make it is told by `check`."""
    with database.reading() as connection:
        if kept_rows.are_there(connection):
            return
    try:
        with database.writing() as connection:
            kept_rows.create(None, connection)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _NOT_ALLOWED:
            raise
