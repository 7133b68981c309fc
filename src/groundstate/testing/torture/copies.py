"""Copies of the shop's database, taken at one moment and put back later: the whole folder of a SQLite file, or a PostgreSQL's rows alone.

While one is taken or put back nobody else works on the database; the caller sees to that.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, text

from groundstate.testing.torture.disk import BALLAST

OURS = "groundstate.ours"  # the setting by which PostgreSQL lets somebody write rows of calls that are open


class Copy(Protocol):
    """A database that can be copied and put back. Raises OSError or DBAPIError where there is no room."""

    def take(self) -> None:
        """Remembers all that is there now."""

    def put_back(self) -> None:
        """As it was when it was taken."""


class FolderCopy:
    """As a snapshot of the disk has it: the file, its log, the witnesses beside it, and whatever else lies there."""

    def __init__(self, folder: Path, beside: Path, engine: Engine) -> None:
        self._folder, self._copy, self._engine = folder, beside, engine

    def take(self) -> None:
        """Remembers all files."""
        self._engine.dispose()  # to close a file that SQLite has open in this process would let go of its locks
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._folder, self._copy, ignore=shutil.ignore_patterns(BALLAST))

    def put_back(self) -> None:
        """No file but the copied ones is there then."""
        self._engine.dispose()
        for path in self._folder.iterdir():
            if path.name != BALLAST:
                path.unlink()
        shutil.copytree(self._copy, self._folder, dirs_exist_ok=True)


class DataCopy:
    """As `pg_dump --data-only` has it: the rows of all tables. The tables themselves, and so their oids, stay as they are."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rows: dict[str, list[bytes]] = {}

    def take(self) -> None:
        """Remembers all rows, as of one moment."""
        with self._engine.connect() as connection:
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            for table in _tables(connection):
                with _cursor(connection) as cursor, cursor.copy(f"COPY {table} TO STDOUT") as copied:
                    self._rows[table] = [bytes(some) for some in copied]

    def put_back(self) -> None:
        """TRUNCATE and COPY, in one transaction."""
        with self._engine.begin() as connection:
            connection.execute(text(f"SET LOCAL {OURS} = 'on'"))  # as docs/restoring.md tells it: else rows of open calls are kept
            connection.execute(text(f"TRUNCATE {', '.join(self._rows)}"))
            for table, rows in self._rows.items():
                with _cursor(connection) as cursor, cursor.copy(f"COPY {table} FROM STDIN") as copied:
                    for some in rows:
                        copied.write(some)


def _tables(connection: Connection) -> list[str]:
    names = connection.execute(text("SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"))
    return [str(name) for name in names.scalars()]


def _cursor(connection: Connection) -> Any:
    """The driver's own, which can COPY."""
    return connection.connection.cursor()
