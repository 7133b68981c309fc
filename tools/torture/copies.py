"""Copies of the shop's database, taken at one time and restored later: the whole folder of a SQLite file, or only a PostgreSQL's rows.

The caller makes sure that no process works on the database while a copy is taken or restored.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, text

from tools.torture.disk import BALLAST

OURS = "groundstate.ours"  # the PostgreSQL setting that permits a transaction to write rows of open calls


class Copy(Protocol):
    """A database that can be copied and restored. Its methods raise OSError or DBAPIError where the disk has no room."""

    def take_copy(self) -> None:
        """Copy all that is in the database now."""

    def restore(self) -> None:
        """Restore the database to the copy."""


class FolderCopy:
    """A copy of the database's folder, as in a snapshot of the disk: the file, its log, the witness files beside it, and all others."""

    def __init__(self, folder: Path, beside: Path, engine: Engine) -> None:
        self._folder, self._copy, self._engine = folder, beside, engine

    def take_copy(self) -> None:
        """Copy all files of the folder."""
        self._engine.dispose()  # closing a file that SQLite has open in this process would release its locks
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._folder, self._copy, ignore=shutil.ignore_patterns(BALLAST))

    def restore(self) -> None:
        """Restore the copied files, and remove all others."""
        self._engine.dispose()
        for path in self._folder.iterdir():
            if path.name != BALLAST:
                path.unlink()
        shutil.copytree(self._copy, self._folder, dirs_exist_ok=True)


class DataCopy:
    """A copy of the rows of all tables, as by `pg_dump --data-only`; the tables themselves keep their oids."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rows: dict[str, list[bytes]] = {}

    def take_copy(self) -> None:
        """Copy all rows in one snapshot."""
        with self._engine.connect() as connection:
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            for table in _table_names(connection):
                with _driver_cursor(connection) as cursor, cursor.copy(f"COPY {table} TO STDOUT") as copied:
                    self._rows[table] = [bytes(some) for some in copied]

    def restore(self) -> None:
        """Restore the rows by TRUNCATE and COPY in one transaction."""
        with self._engine.begin() as connection:
            # docs/restoring.md asks for it, since rows of open calls are protected otherwise
            connection.execute(text(f"SET LOCAL {OURS} = 'on'"))
            connection.execute(text(f"TRUNCATE {', '.join(self._rows)}"))
            for table, rows in self._rows.items():
                with _driver_cursor(connection) as cursor, cursor.copy(f"COPY {table} FROM STDIN") as copied:
                    for some in rows:
                        copied.write(some)


def _table_names(connection: Connection) -> list[str]:
    names = connection.execute(text("SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"))
    return [str(name) for name in names.scalars()]


def _driver_cursor(connection: Connection) -> Any:
    """Return a cursor of the driver, which supports COPY."""
    return connection.connection.cursor()
