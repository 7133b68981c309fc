"""Drives SQLite: one file on a local disk, in WAL mode with synchronous=FULL, written by BEGIN IMMEDIATE.

Never waits for a lock longer than its time limit, and never changes `foreign_keys`: that stays as SQLite was built, or as a listener sets
it, on the class `Engine` or on the user's own engine.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from sqlalchemy import URL, ColumnElement, Connection, Float, Select, Text, event, literal_column
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError

from groundstate.store.begin_high_water import HighWaterFile, state_folder
from groundstate.store.driver_guard import SqliteConnection, lets_go_of_what_broke
from groundstate.store.engine_settings import connector, engine_of
from groundstate.store.explicit_begin import TransactionMode, begin_with, transaction
from groundstate.store.network_file_systems import MOUNTINFO, refuse_network
from groundstate.store.statement_timeouts import Limit, limited
from groundstate.store.tables import UtcDateTime
from groundstate.values.after_fork import forsake_in_child, refuse_child
from groundstate.values.errors import StoreRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from groundstate.store.port import Settings

WAIT = timedelta(seconds=5)  # how long BEGIN IMMEDIATE waits for the lock, where the caller does not say

# In a forked child: the files that the parent had open. SQLite keeps its view of a file's locks in the process's memory; the child's
# copy of it is wrong, and even new connections use it.
_open_before_fork: set[str] = set()
# In a forked child: the pools of the parent, kept so that none of their connections is closed, which could remove the parent's WAL.
_inherited: list[object] = []


def sqlite_path(url: URL) -> str:
    """Return the path of the database file with links resolved, so that all processes that open it lock the same file beside it."""
    database = url.database or ""
    if database.startswith("file:"):
        database = unquote(database.removeprefix("file:").partition("?")[0])
        if database.startswith("//"):
            database = "/" + database.removeprefix("//").partition("/")[2]
    return os.path.realpath(database)


class SqliteDatabase:
    """Implements `port.Database` for one SQLite file."""

    name = "sqlite"
    locks_rows = False
    codec = "utf-8"
    server: ColumnElement[str | None] = literal_column("NULL", type_=Text())
    server_start: ColumnElement[str | None] = literal_column("NULL", type_=Text())
    up_s: ColumnElement[float | None] = literal_column("NULL", type_=Float())

    insert = staticmethod(insert)

    def __init__(self, settings: Settings, *, mountinfo: Path = MOUNTINFO) -> None:
        self.settings = settings
        self.path = sqlite_path(settings.url)
        self.high_water = HighWaterFile(state_folder() if settings.state is None else Path(settings.state), self.path, mountinfo=mountinfo)
        self._mountinfo = mountinfo
        self._pid = os.getpid()
        self._checked = False
        self._opened: tuple[int, int] | None = None  # device and inode of the file that is open
        self._watching: sqlite3.Connection | None = None
        self._version: int | None = None
        given = {key: value for key, value in settings.connect_args.items() if key != "autocommit"}
        self._arguments = {"factory": SqliteConnection, **given, "isolation_level": None, "check_same_thread": False}
        self.engine = engine_of(settings.url, settings.carried, self._arguments)
        event.listen(self.engine, "connect", _prepare)
        lets_go_of_what_broke(self.engine)
        begin_with(self.engine, "BEGIN")
        forsake_in_child(self)

    def connect(self) -> None:
        """Open the file (created where there is none), and check where it lies and that it can be written durably. Idempotent.

        Raises:
            StoreRefusedError: the file cannot keep the promises; the message has what was found and the cure.
            OperationalError: another process keeps it locked just now.
        """
        refuse_child(self._pid)
        if self._checked:
            return
        if self.path in _open_before_fork:
            message = f"{self.path} was open in this process's parent when it was forked, and SQLite does not survive that: {_AFTER_FORK}"
            raise StoreRefusedError(message)
        refuse_network(self.path, self._mountinfo)
        try:
            with self.engine.connect() as connection:
                _check_mode(connection, self.path)
                _check_writable(connection)
        except (DBAPIError, sqlite3.Error) as error:
            self.engine.dispose()
            why = refusal(self.path, error.orig if isinstance(error, DBAPIError) else error)
            if why is None:
                raise
            raise why from error
        self._checked, self._opened = True, _which(self.path)

    @contextmanager
    def writing(self, *, wait: timedelta | None = None) -> Iterator[Connection]:
        """Open a transaction by BEGIN IMMEDIATE. A lock that is not free within `wait` raises SQLAlchemy's OperationalError, 'database is
        locked'.
        """
        refuse_child(self._pid)
        self.refuse_silent()
        manner = _WRITING if wait is None else replace(_WRITING, before=_busy_timeout(wait), after=_busy_timeout(WAIT))
        with transaction(self.engine, manner) as connection:
            yield connection

    @contextmanager
    def reading(self, *, wait: timedelta | None = None) -> Iterator[Connection]:  # noqa: ARG002  # `wait` is the port's: a reader waits for no lock
        """Open a snapshot under `query_only`: writing in it raises OperationalError, 'attempt to write a readonly database'."""
        refuse_child(self._pid)
        with transaction(self.engine, _READING) as connection:
            yield connection

    def limit(self, connection: Connection, seconds: float) -> AbstractContextManager[Limit]:
        """Interrupt a statement that runs for longer than `seconds`, which raises OperationalError, 'interrupted'."""
        driver: Any = connection.connection.driver_connection
        return limited(seconds, driver.interrupt)

    def now(self, ahead: timedelta = timedelta()) -> ColumnElement[datetime]:
        """Return SQL for the host's clock in UTC, to the millisecond, as the very text that `UtcDateTime` stores, so that it compares with
        columns.
        """
        moved = f", '{ahead / timedelta(seconds=1):+.3f} seconds'" if ahead else ""
        return literal_column(f"(strftime('%Y-%m-%d %H:%M:%f', 'now'{moved}) || '000')", type_=UtcDateTime())

    def lock(self, select: Select[Any], *_of: Any) -> Select[Any]:
        """Return the select as it is, since BEGIN IMMEDIATE has locked the whole database."""
        return select

    def refuse_silent(self) -> None:
        """Raise StoreRefusedError if the open file is no longer the one that has its name. There is no server that could be silent."""
        if self._opened is None:
            return
        there = _which(self.path)
        if there != self._opened:
            what = "was removed" if there is None else "was replaced by another file"
            raise StoreRefusedError(
                f"{self.path} {what} while it was open, and what is written now is in no file of that name: {_AFTER_REPLACED}"
            )

    def someone_wrote(self) -> bool:
        """Return whether any connection, those of this process included, committed since the last call; True at the first. For one thread
        only.
        """
        refuse_child(self._pid)
        watching = self._watching
        if watching is None:
            watching = self._watching = self._connect()
        (version,) = watching.execute("PRAGMA data_version").fetchone()
        before, self._version = self._version, version
        return bool(before != version)

    def _connect(self) -> sqlite3.Connection:
        """Return a new connection outside of the pool."""
        carried = self.settings.carried
        if carried.source is not None:
            made: sqlite3.Connection = connector(carried, self._arguments)()
            return made
        arguments, options = self.engine.dialect.create_connect_args(self.settings.url)
        connect: Any = sqlite3.connect  # untyped, as are the arguments that SQLAlchemy makes for it
        return connect(*arguments, **{**options, **self._arguments})  # type: ignore[no-any-return]  # `connect` is untyped

    def identity(self) -> str | None:
        """Return None always: nothing in a SQLite file tells it from an older copy of itself. The witness does, and the high-water mark."""
        return None

    def missing(self) -> str | None:
        """Return the path of the file if it does not exist yet, otherwise None."""
        return None if Path(self.path).exists() else self.path

    def refusal(self, error: BaseException | None) -> StoreRefusedError | None:
        """Return the refusal that SQLite's error code stands for, with its cure; None where it says nothing against the file."""
        return refusal(self.path, error)

    def close(self) -> None:
        """Close every connection. `connect` opens them again."""
        if self._pid != os.getpid():
            return
        if self._watching is not None:
            self._watching.close()
        self._watching, self._version, self._checked, self._opened = None, None, False, None
        self.high_water.close()
        self.engine.dispose()

    def forsake(self) -> None:
        """Keep the inherited connections untouched for ever in a forked child, and refuse to open the file there."""
        if self._checked or self._watching is not None:
            _open_before_fork.add(self.path)
        _inherited.extend((self.engine.pool, self._watching))
        self._watching = None
        self.engine.dispose(close=False)


_AFTER_FORK = "open it in the child alone, or start the child with the 'spawn' method (gunicorn: without preload)"
_WRITING = TransactionMode("BEGIN IMMEDIATE")
_READING = TransactionMode("BEGIN", keep=False, before="PRAGMA query_only=ON", after="PRAGMA query_only=OFF")


def _busy_timeout(wait: timedelta) -> str:
    return f"PRAGMA busy_timeout={max(0, round(wait / timedelta(milliseconds=1)))}"


def _prepare(connection: sqlite3.Connection, record: Any) -> None:
    if isinstance(connection, SqliteConnection):  # a user's `creator=` may make another class
        connection.info_of_pool = record.info
    connection.execute(_busy_timeout(WAIT))
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA fullfsync=ON")  # takes effect on macOS, where a plain fsync does not reach the disk


def _check_mode(connection: Connection, path: str) -> None:
    mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
    if mode != "wal":
        message = f"{path} cannot be brought into WAL mode (it is in {mode!r}): use a local disk, and no URL options that forbid it"
        raise StoreRefusedError(message)


def _check_writable(connection: Connection) -> None:
    driver: Any = connection.connection.driver_connection
    connection.rollback()
    try:
        driver.execute(_busy_timeout(timedelta()))
        driver.execute("BEGIN IMMEDIATE")  # succeeds on a read-only file as well, unlike the write in the next line
        driver.execute(f"PRAGMA user_version={driver.execute('PRAGMA user_version').fetchone()[0]}")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:  # busy: another connection is writing, so the file can be written
            raise
    finally:
        driver.rollback()
        driver.execute(_busy_timeout(WAIT))


def _which(path: str) -> tuple[int, int] | None:
    """Return device and inode of the file that has this name; None where there is none."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


_AFTER_REPLACED = (
    "stop every process that has it open, put the right file there, and start them anew (with --after-restore, where it is a backup)"
)


def refusal(path: str, error: BaseException | None) -> StoreRefusedError | None:
    """Return the refusal that an error of SQLite stands for, with its cure; None where it says nothing against the file."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreRefusedError(_cannot_open(path))
    if code == sqlite3.SQLITE_READONLY:
        return StoreRefusedError(f"{path} is read-only: let this user write to the file and to its folder, and leave out mode=ro")
    if code == sqlite3.SQLITE_NOTADB:
        return StoreRefusedError(f"{path} is not a SQLite database: another file has its name, or it is encrypted; give the right path")
    if code == sqlite3.SQLITE_CORRUPT:
        return StoreRefusedError(f"{path} is damaged ({error}): put back a backup, then run `groundstate run --after-restore`")
    return None


def _cannot_open(path: str) -> str:
    folder = Path(path).parent
    if Path(path).is_dir():
        return f"{path} is a folder, not a database file: give the path of a file in it, such as {Path(path) / 'app.db'}"
    if not folder.is_dir():
        return f"the folder {folder} does not exist: create it; the database file itself is then made by groundstate"
    return f"{path} cannot be opened: let this user read and write the file and its folder, in which SQLite keeps its write-ahead log"
