"""Scratch databases on SQLite: a file for each store, filled once and reset to that content for each run."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, QueuePool, create_engine, event, make_url
from sqlalchemy.orm import Session

from groundstate.app.app import App
from groundstate.store.engine_settings import Carried
from groundstate.store.port import Settings
from groundstate.testing.databases.scratch_db import Reading, add, binds, committed, stores_at, stores_of, values_of

Copy = list[bytes]


class SqlitePlace:
    """One SQLite file for each store of the app, in a folder of its own that `close` removes."""

    locks_rows = False

    def __init__(self, app: App) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="groundstate-lab-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))  # noqa: S108  # otherwise the temporary folder
        self._state = self.folder / "state"  # The lab must not write groundstate's state files to the home folder of its user.
        self._stores = stores_of(app)
        self._filled: Copy = []
        self._asking: dict[int, sqlite3.Connection] = {}
        self.settings: Sequence[Settings] = [
            Settings(self._url(number), {}, state=str(self._state), carried=Carried(dialect=values_of(store, "sqlite")))
            for number, store in enumerate(self._stores)
        ]
        # All runs use one engine, so that a statement is compiled once; its connections lead to the file of the current run.
        self._engines = [
            create_engine("sqlite://", creator=partial(self._connected, number), poolclass=QueuePool, **values_of(store, "sqlite"))
            for number, store in enumerate(self._stores)
        ]
        for engine in self._engines:
            event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        self._reading = Reading(self._engines)

    def _url(self, number: int) -> URL:
        return make_url(f"sqlite:///{self.folder / f'store-{number}.db'}")

    def fill(self, app: App, rows: Sequence[object]) -> None:
        """Create the tables, accept all reactions, and write the rows; each later run begins with this content."""
        with stores_at(app, self.settings):
            app.init(tables=True, accept=True)
        add(self, rows)
        self._filled = self.copy()
        self._close_engines()

    def begin_anew(self) -> None:
        """Write the filled content to a fresh file for the next run."""
        self._write(self._filled, keep="")

    def connect(self, store: int) -> Connection:
        """Return a connection to the committed content of this store."""
        return self._engines[store].connect()

    def ask(self, store: int, query: str) -> Sequence[Sequence[Any]]:
        """Run a plain SELECT through sqlite3 and return its rows."""
        if store not in self._asking:
            self._asking[store] = self._connected(store)
        return self._asking[store].execute(query).fetchall()

    def session(self) -> Session:
        """Return a session of another program, which is bound to each store by the tables of the store."""
        return Session(self._engines[0], binds=binds(self._stores, self._engines), expire_on_commit=False)

    def someone_else(self, act: Callable[[Session], object]) -> bool:
        """Commit `act(session)` as a transaction of another program; return False where a lock keeps it out.

        A flush that groundstate refuses counts as a transaction that did not happen, and returns True.
        """
        return committed(self.session(), act)

    def is_idle(self, act: Callable[[Session], object]) -> bool:
        """Return whether `act` as a transaction of another program would surely write nothing now; its writes are never carried out."""
        return self._reading.is_idle(Session(self._reading.engines[0], binds=binds(self._stores, self._reading.engines)), act)

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

    def put_back(self, copy: Copy) -> None:
        self._write(copy, keep="-witness-")

    def mark(self) -> object:
        """Return a hash of the database files, and the content of the witness and state files beside them."""
        beside = tuple(
            (path.name, path.read_bytes()) for path in [*sorted(self.folder.glob("*-witness-*")), *sorted(self._state.glob("*"))]
        )
        return tuple(hashlib.sha256(content).digest() for content in self.copy()), beside

    def state(self) -> object:
        """Return the same value as `mark`: the bytes of an SQLite file are its whole state."""
        return self.mark()

    def waits(self, _connection: Any) -> bool:
        return False

    def leaving(self, _connections: Sequence[Any]) -> AbstractContextManager[None]:
        """Return a block that does nothing, since closing an SQLite file releases its locks at once."""
        return nullcontext()

    def close(self) -> None:
        """Remove the database files and their folder."""
        self._close_engines()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, copy: Copy, *, keep: str) -> None:
        """Write the copy to the database files.

        keep: files whose names contain this stay, as does the state folder, since a backup does not hold them; '' removes them all.
        """
        self._close_engines()
        if not keep:
            shutil.rmtree(self._state, ignore_errors=True)
        for path in self.folder.iterdir():
            if path != self._state and (not keep or keep not in path.name):
                path.unlink()
        for one, content in zip(self.settings, copy, strict=True):
            Path(str(one.url.database)).write_bytes(content)

    def _connected(self, store: int) -> sqlite3.Connection:
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
