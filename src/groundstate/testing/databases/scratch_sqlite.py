"""Scratch databases on SQLite: a file for each store, which is filled once, and set back to that content for each run."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, QueuePool, create_engine, event, make_url

from groundstate.app.app import App
from groundstate.store.engine_settings import Carried
from groundstate.store.port import StoreSettings
from groundstate.testing.databases.scratch_db import (
    OtherProgram,
    ReadOnlyEngines,
    insert_first_rows,
    redirect_stores,
    stores_of_app,
    values_of,
)

Copy = list[bytes]


class SqlitePlace(OtherProgram):
    """One SQLite file for each store of the app, in a folder of its own that `close` removes."""

    locks_rows = False

    def __init__(self, app: App) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="groundstate-lab-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))  # noqa: S108  # in memory if it can be
        self._state = self.folder / "state"  # used by the app in place of the state folder in the user's home
        self._stores = stores_of_app(app)
        self._filled: Copy = []
        self._asking: dict[int, sqlite3.Connection] = {}
        self.settings: Sequence[StoreSettings] = [
            StoreSettings(self._url(number), {}, state=str(self._state), carried=Carried(dialect=values_of(store, "sqlite")))
            for number, store in enumerate(self._stores)
        ]
        # All runs use one engine for a store, so that each statement is compiled only once.
        self._engines = [
            create_engine("sqlite://", creator=partial(self._open_connection, number), poolclass=QueuePool, **values_of(store, "sqlite"))
            for number, store in enumerate(self._stores)
        ]
        for engine in self._engines:
            event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        self._read_only_engines = ReadOnlyEngines(self._engines)

    def _url(self, number: int) -> URL:
        return make_url(f"sqlite:///{self.folder / f'store-{number}.db'}")

    def fill(self, app: App, rows: Sequence[object]) -> None:
        """Create the tables, accept all reactions as a person would, and insert these rows. Each run begins with this content."""
        with redirect_stores(app, self.settings):
            app.init(tables=True, accept=True)
        insert_first_rows(self, rows)
        self._filled = self.copy()
        self._close_engines()

    def reset(self) -> None:
        """Write the content that `fill` wrote to a fresh file for each store, for the next run."""
        self._write_files(self._filled, keep="")

    def connect(self, store: int) -> Connection:
        """Return a connection to the committed content of this store."""
        return self._engines[store].connect()

    def query_rows(self, store: int, query: str) -> Sequence[Sequence[Any]]:
        """Run a plain SELECT through sqlite3 and return its rows."""
        if store not in self._asking:
            self._asking[store] = self._open_connection(store)
        return self._asking[store].execute(query).fetchall()

    def copy(self) -> Copy:
        """Return the bytes of the database files."""
        made: Copy = []
        for engine in self._engines:
            raw = engine.raw_connection()
            try:
                driver: Any = raw.driver_connection
                made.append(driver.serialize())
            finally:
                raw.close()
        return made

    def restore_copy(self, copy: Copy) -> None:
        self._write_files(copy, keep="-witness-")

    def content_hash(self) -> object:
        """Return a hash of the database files, together with the content of the witness and state files, which workers write beside
        them.
        """
        beside = tuple(
            (path.name, path.read_bytes()) for path in [*sorted(self.folder.glob("*-witness-*")), *sorted(self._state.glob("*"))]
        )
        return tuple(hashlib.sha256(content).digest() for content in self.copy()), beside

    def state(self) -> object:
        """Return what `content_hash` returns: the bytes of the files are everything that a worker could notice."""
        return self.content_hash()

    def waits_for_lock(self, _connection: Any) -> bool:
        return False

    def closing_connections(self, _connections: Sequence[Any]) -> AbstractContextManager[None]:
        """Return a context that does nothing, since closing an SQLite file releases its locks at once."""
        return nullcontext()

    def close(self) -> None:
        """Remove the database files and their folder."""
        self._close_engines()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_files(self, copy: Copy, *, keep: str) -> None:
        """Write the copy to the database files, and remove the other files.

        keep: files whose names contain this text stay, and so does the state folder. A restore keeps the files that a backup does not
            contain. With '' everything is removed first.
        """
        self._close_engines()
        if not keep:
            shutil.rmtree(self._state, ignore_errors=True)
        for path in self.folder.iterdir():
            if path != self._state and (not keep or keep not in path.name):
                path.unlink()
        for one, content in zip(self.settings, copy, strict=True):
            Path(str(one.url.database)).write_bytes(content)

    def _open_connection(self, store: int) -> sqlite3.Connection:
        connection = sqlite3.connect(str(self.settings[store].url.database), isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA busy_timeout=0")
        return connection

    def _close_engines(self) -> None:
        while self._asking:
            self._asking.popitem()[1].close()
        for engine in self._engines:
            engine.dispose()
