"""Whether our tables are there and of this version, and creating them. Touches no table of the user's but when asked to create it."""

from __future__ import annotations

from sqlalchemy import MetaData, inspect

from groundstate.store import tables
from groundstate.store.port import Database
from groundstate.values.errors import NotInitialised


def check(database: Database) -> None:
    """Raises NotInitialised where a table or column of ours is missing."""
    with database.reading() as connection:
        looked = inspect(connection)
        for table in tables.metadata.sorted_tables:
            if not looked.has_table(table.name):
                raise NotInitialised(f"{table.name} is missing in {database.settings.url.render_as_string()}: run `groundstate init` once")
            there = {column["name"] for column in looked.get_columns(table.name)}
            missing = sorted({column.name for column in table.columns} - there)
            if missing:
                raise NotInitialised(
                    f"{table.name} in {database.settings.url.render_as_string()} has no column {', '.join(missing)}: it was made by another "
                    "version. Add it by your migrations (groundstate.store.migrations.metadata is the target)"
                )


def create(database: Database, *users: MetaData) -> list[str]:
    """Creates what is missing of our tables, and of the user's metadata where given; returns the names of what was created."""
    created: list[str] = []
    with database.reading() as connection:
        looked = inspect(connection)
        wanted = [
            (meta, [t for t in meta.sorted_tables if not looked.has_table(t.name, schema=t.schema)]) for meta in (tables.metadata, *users)
        ]
    with database.writing() as connection:
        for meta, missing in wanted:
            if missing:
                meta.create_all(connection, tables=missing)
                created += [table.fullname for table in missing]
    return created
