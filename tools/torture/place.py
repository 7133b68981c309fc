"""The shop's database in a run: a SQLite file or a PostgreSQL of our own, on a disk that can be full."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from tools.servers.postgres import PostgresServer, ServerError
from tools.torture.beside import ProxyProcess
from tools.torture.copies import Copy, DataCopy, FolderCopy
from tools.torture.disk import LEFT_FREE, Disk, create_disk, unmount_tmpfs

SIZE_MB = {"sqlite": 128, "postgres": 400}
RECOVERS_WITHIN_S = 60  # seconds: the database must answer again by then
ROOM_AFTER_S = 5  # seconds after which a full disk is freed if the database does not answer
WAITS_S = 10  # seconds of waiting for a lock of SQLite


@dataclass
class Place:
    """The database, how the judge and the workers reach it, and what can be done to it.

    url: for the judge and for workers that start as a separate interpreter.
    through: for forked workers; on PostgreSQL it leads through the proxy.
    copy: a copy of all content, to be restored later.
    """

    store: str
    url: str
    through: str
    version: str
    disk: Disk | None
    engine: Engine
    dice: Random
    copy: Copy
    server: PostgresServer | None = None
    proxy: ProxyProcess | None = None
    done: Counter[str] = field(default_factory=Counter)

    def can_cause(self, trouble: str) -> bool:
        """Return whether this trouble can be made on this machine."""
        return self.disk is not None if trouble == "fill the disk" else True

    def fill_disk(self) -> None:
        """Fill the disk, except for a few bytes."""
        if self.store == "sqlite":
            with suppress(DBAPIError), self.engine.connect() as connection:  # otherwise its log keeps room that it fills repeatedly
                connection.execute(text("PRAGMA busy_timeout = 200"))  # a suspended worker may hold the lock and continue only after us
                connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
                connection.execute(text(f"PRAGMA busy_timeout = {WAITS_S * 1000}"))
        if self.disk is not None:
            self.disk.fill(self.dice.choice(LEFT_FREE))

    def free_disk(self) -> None:
        """Free the disk, and start a server that ended for want of room."""
        if self.disk is not None:
            self.disk.free()
        self.wait_for_recovery()

    def kill_server(self, also: Callable[[], None] = lambda: None) -> None:
        """Kill all processes of PostgreSQL by SIGKILL, and start it again after a moment. also: called while it is down."""
        if self.server is not None:
            self.server.kill()
            also()
            time.sleep(self.dice.choice([0, 0, 0.3, 1.0]))
            self.wait_for_recovery()

    def kill_backend(self) -> None:
        """Kill one backend of PostgreSQL by SIGKILL: the server ends all others and recovers by itself."""
        if self.server is not None and (backends := self.server.backends()):
            with suppress(ProcessLookupError):
                os.kill(self.dice.choice(backends), signal.SIGKILL)
            self.wait_for_recovery()

    def restart_server(self, how: str) -> None:
        """Stop PostgreSQL in the mode `fast` or `immediate`, and start it again at once."""
        if self.server is not None:
            (self.server.stop if how == "fast" else self.server.stop_at_once)()
            self.wait_for_recovery()

    def wait_for_recovery(self) -> None:
        """Wait until the database answers; start PostgreSQL if it is down. Raises TimeoutError if it does not come back."""
        started = time.monotonic()
        while True:
            if self.server is not None and not self.server.running:
                self.done["PostgreSQL started again"] += 1
                self._start_server(self.server)
            try:
                with self.engine.connect() as connection:
                    connection.execute(text("SELECT 1")).scalar_one()
            except DBAPIError:
                if self.disk is not None and time.monotonic() > started + ROOM_AFTER_S:
                    self.disk.free()  # a server that runs on a full disk may accept no connection
                if time.monotonic() > started + RECOVERS_WITHIN_S:
                    raise TimeoutError(f"the database does not come back within {RECOVERS_WITHIN_S} s") from None
                time.sleep(0.05)
            else:
                return

    def _start_server(self, server: PostgresServer) -> None:
        """Start PostgreSQL, which writes while it recovers; if the disk has no room for that, free it and start once more."""
        try:
            server.start()
        except ServerError:
            if self.disk is None:
                raise
            self.done["PostgreSQL had no room to start"] += 1
            self.disk.free()
            server.start()


@contextmanager
def create_place(folder: Path, store: str, dice: Random) -> Iterator[Place]:
    """Create a database in the run's own folder, and remove it after the block."""
    room = folder / "disk"
    room.mkdir()
    folder.chmod(0o755)  # PostgreSQL's account must be able to enter it
    disk = create_disk(room, SIZE_MB[store], by_limit=store == "sqlite")
    try:
        with (_create_sqlite if store == "sqlite" else _create_postgres)(room, disk, dice) as place:
            yield place
    finally:
        unmount_tmpfs(room)


@contextmanager
def _create_sqlite(room: Path, disk: Disk | None, dice: Random) -> Iterator[Place]:
    url = f"sqlite:///{room / 'torture.db'}"
    engine = create_engine(url, connect_args={"timeout": WAITS_S})

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")  # the judge's own writes need not survive a power cut

    try:
        copy = FolderCopy(room, room.parent / "copy", engine)
        yield Place("sqlite", url, url, f"SQLite {sqlite3.sqlite_version}", disk, engine, dice, copy)
    finally:
        engine.dispose()


@contextmanager
def _create_postgres(room: Path, disk: Disk | None, dice: Random) -> Iterator[Place]:
    settings = {"max_wal_size": "64MB", "min_wal_size": "32MB"}
    with PostgresServer(max_connections=200, within=room, settings=settings) as server:
        url = server.create_database()
        engine = create_engine(url, pool_pre_ping=True)
        with engine.connect() as connection:
            version = str(connection.execute(text("SHOW server_version")).scalar_one())
        if server.port is None:
            raise RuntimeError("a started server has a port")
        try:
            with ProxyProcess(server.port, dice.randrange(2**32)) as proxy:
                through = url.replace(f":{server.port}/", f":{proxy.port}/")
                yield Place("postgres", url, through, f"PostgreSQL {version}", disk, engine, dice, DataCopy(engine), server, proxy)
        finally:
            engine.dispose()
            if disk is not None:
                disk.free()
