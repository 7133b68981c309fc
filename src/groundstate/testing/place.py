"""Scratch databases for the lab: filled once, and as they were then for each run. Carries out nothing.

SQLite by default, a file a store. On PostgreSQL the tables are emptied and filled again, in a database that is the lab's own.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, QueuePool, TableClause, create_engine, event, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Mapper, Session

from groundstate.app.app import App
from groundstate.app.store import Store
from groundstate.store.port import Settings
from groundstate.values.errors import StateRefused

Copy = list[bytes]


class SqlitePlace:
    """One file for each store of the app, in a folder of its own that is removed at `close`."""

    locks_rows = False

    def __init__(self, app: App) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="groundstate-lab-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))  # noqa: S108  # else the temporary folder
        self._stores = app.stores
        self._runs = 0
        self._filled: Copy = []
        self.settings: Sequence[Settings] = [
            Settings(_sqlite(self.folder / f"filled-{number}.db"), {}) for number, _ in enumerate(app.stores)
        ]
        # One engine for all runs, so that a statement is compiled once; it leads to the file of the run.
        self._engines = [
            create_engine("sqlite://", creator=partial(self._connected, number), poolclass=QueuePool) for number, _ in enumerate(app.stores)
        ]
        for engine in self._engines:
            event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))

    def fill(self, app: App, rows: Sequence[object]) -> None:
        """Makes the tables, accepts all reactions, and writes the rows. Afterwards every run begins with this."""
        with stores_at(app, self.settings):
            app.init(tables=True, accept=True)
        self.someone_else(lambda session: session.add_all(rows))
        self._filled = self.copy()
        self._close_engines()

    def begin_anew(self) -> None:
        """A fresh database for the next run: a copy of what was filled."""
        self._close_engines()
        self._runs += 1
        folder = self.folder / f"run-{self._runs}"
        folder.mkdir()
        shutil.rmtree(self.folder / f"run-{self._runs - 1}", ignore_errors=True)
        self.settings = [replace(one, url=_sqlite(folder / f"store-{number}.db")) for number, one in enumerate(self.settings)]
        self._write(self._filled)

    def connect(self, store: int) -> Connection:
        """A connection to what is committed now."""
        return self._engines[store].connect()

    def session(self) -> Session:
        """A session of somebody else, bound to each store by its tables."""
        binds: dict[type[Any] | Mapper[Any] | TableClause | str, Engine | Connection] = {}
        for store, engine in zip(self._stores, self._engines, strict=True):
            for metadata in store.metadatas:
                binds.update(dict.fromkeys(metadata.tables.values(), engine))
        return Session(self._engines[0], binds=binds, expire_on_commit=False)

    def someone_else(self, act: Callable[..., None]) -> bool:
        """Someone else's transaction. False where a lock keeps it out; where groundstate refuses its flush it did not happen."""
        try:
            with self.session() as session, session.begin():
                act(session)
        except StateRefused:
            return True
        except OperationalError as error:
            if not _locked(error):
                raise
            return False
        return True

    def copy(self) -> Copy:
        """The files as they are now."""
        made: Copy = []
        for engine in self._engines:
            raw = engine.raw_connection()
            try:
                driver: Any = raw.driver_connection
                made.append(driver.serialize())
            finally:
                raw.close()
        return made

    def put_back(self, copy: Copy) -> None:
        self._close_engines()
        self._write(copy)

    def waits(self, _connection: Any) -> bool:
        return False

    def gone(self, _connections: Sequence[Any]) -> None:
        """A closed file is closed."""

    def close(self) -> None:
        """Removes everything."""
        self._close_engines()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, copy: Copy) -> None:
        for one, content in zip(self.settings, copy, strict=True):
            path = Path(str(one.url.database))
            for suffix in ("-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            path.write_bytes(content)

    def _connected(self, store: int) -> sqlite3.Connection:
        connection = sqlite3.connect(str(self.settings[store].url.database), isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA busy_timeout=0")
        return connection

    def _close_engines(self) -> None:
        for engine in self._engines:
            engine.dispose()


def _sqlite(path: Path) -> URL:
    return make_url(f"sqlite:///{path}")


def _locked(error: OperationalError) -> bool:
    return "locked" in str(error) or "lock timeout" in str(error)


class stores_at:  # noqa: N801  # used as a with statement's word
    """While the block runs, the app's stores lead to these databases."""

    def __init__(self, app: App, settings: Sequence[Settings]) -> None:
        self._stores: Sequence[Store] = app.stores
        self._settings = settings

    def __enter__(self) -> None:
        for store, settings in zip(self._stores, self._settings, strict=True):
            vars(store)["settings"] = lambda settings=settings: settings

    def __exit__(self, *_: object) -> None:
        for store in self._stores:
            with suppress(KeyError):
                del vars(store)["settings"]
