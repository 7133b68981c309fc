"""Implements `port.Database` for SQLite: one file on a local disk, in WAL mode with synchronous=FULL, written by BEGIN IMMEDIATE.

This module never sets `PRAGMA foreign_keys`. The setting stays at SQLite's default, unless an event listener of the user sets it.
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

from groundstate.clock import SYSTEM_CLOCK, SYSTEM_DICE, Clock, Dice
from groundstate.store.begin_high_water import HighWaterFile, state_folder
from groundstate.store.driver_guard import SqliteConnection, allow_closing_when_invalidated
from groundstate.store.engine_settings import make_connector, make_engine
from groundstate.store.explicit_begin import TransactionMode, begin_transaction, set_begin_statement
from groundstate.store.network_file_systems import MOUNTINFO, refuse_network_file_system
from groundstate.store.statement_timeouts import Limit, time_limited
from groundstate.store.tables import UtcDateTime
from groundstate.values.after_fork import abandon_in_child, refuse_use_in_child
from groundstate.values.errors import StoreRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from groundstate.store.port import StoreSettings

WAIT = timedelta(seconds=5)  # how long BEGIN IMMEDIATE waits for the lock, unless the caller gives another time

# In a forked child: paths of the files that the parent had open, and that the child must not open. SQLite keeps a list of its locks in the
# memory of the process. The child's copy of this list is wrong, and would affect even new connections of the child.
_open_before_fork: set[str] = set()
# In a forked child: the parent's pools. They are kept here so that their connections are never closed. Closing a connection could remove
# the WAL file of the parent.
_inherited: list[object] = []


def sqlite_path(url: URL) -> str:
    """Return the path of the database file with links resolved, so that all processes that open the file compute one path for its lock
    file.
    """
    database = url.database or ""
    if database.startswith("file:"):
        database = unquote(database.removeprefix("file:").partition("?")[0])
        if database.startswith("//"):
            database = "/" + database.removeprefix("//").partition("/")[2]
    return os.path.realpath(database)


class SqliteDatabase:
    """An SqliteDatabase implements `port.Database` for one SQLite file."""

    name = "sqlite"
    locks_rows = False
    codec = "utf-8"
    server_id_sql: ColumnElement[str | None] = literal_column("NULL", type_=Text())
    server_start: ColumnElement[str | None] = literal_column("NULL", type_=Text())
    uptime_s: ColumnElement[float | None] = literal_column("NULL", type_=Float())

    insert_function = staticmethod(insert)

    def __init__(self, settings: StoreSettings, *, mountinfo: Path = MOUNTINFO) -> None:
        self.settings = settings
        self.clock: Clock = SYSTEM_CLOCK
        self.dice: Dice = SYSTEM_DICE
        self.path = sqlite_path(settings.url)
        self.high_water = HighWaterFile(state_folder() if settings.state is None else Path(settings.state), self.path, mountinfo=mountinfo)
        self._mountinfo = mountinfo
        self._pid = os.getpid()
        self._checked = False
        self._opened: tuple[int, int] | None = None  # pair (device, inode) of the file that `connect` opened; None before
        self._watching: sqlite3.Connection | None = None
        self._version: int | None = None
        given = {key: value for key, value in settings.connect_args.items() if key != "autocommit"}
        self._arguments = {"factory": SqliteConnection, **given, "isolation_level": None, "check_same_thread": False}
        self.engine = make_engine(settings.url, settings.carried, self._arguments)
        event.listen(self.engine, "connect", _prepare_connection)
        allow_closing_when_invalidated(self.engine)
        set_begin_statement(self.engine, "BEGIN")
        abandon_in_child(self)

    def connect(self) -> None:
        """Open the file, or create it, and check that it is on a local disk and can be written durably. A second call does nothing.

        Raises:
            StoreRefusedError: the file is unsuitable; the message says why, and names the cure.
            OperationalError: another process keeps the file locked now.
        """
        refuse_use_in_child(self._pid)
        if self._checked:
            return
        if self.path in _open_before_fork:
            message = f"{self.path} was open in this process's parent when it was forked, and SQLite does not survive that: {_AFTER_FORK}"
            raise StoreRefusedError(message)
        refuse_network_file_system(self.path, self._mountinfo)
        try:
            with self.engine.connect() as connection:
                _check_wal_mode(connection, self.path)
                _check_writable(connection)
        except (DBAPIError, sqlite3.Error) as error:
            self.engine.dispose()
            why = refusal_for_error(self.path, error.orig if isinstance(error, DBAPIError) else error)
            if why is None:
                raise
            raise why from error
        self._checked, self._opened = True, _file_identity(self.path)

    @contextmanager
    def writing(self, *, wait: timedelta | None = None) -> Iterator[Connection]:
        """Open a transaction by BEGIN IMMEDIATE; yield its connection. If the lock is not free within `wait` (None means WAIT), raise
        OperationalError, 'database is locked'.
        """
        refuse_use_in_child(self._pid)
        self.raise_if_unusable()
        manner = _WRITING if wait is None else replace(_WRITING, before=_busy_timeout_pragma(wait), after=_busy_timeout_pragma(WAIT))
        with begin_transaction(self.engine, manner) as connection:
            yield connection

    @contextmanager
    def reading(self, *, wait: timedelta | None = None) -> Iterator[Connection]:  # noqa: ARG002  # `wait` is unused, since a reader waits for no lock
        """Open a read-only transaction; yield its connection. A write raises OperationalError, 'attempt to write a readonly database'."""
        refuse_use_in_child(self._pid)
        with begin_transaction(self.engine, _READING) as connection:
            yield connection

    def limit_statement(self, connection: Connection, seconds: float) -> AbstractContextManager[Limit]:
        """Limit the block to `seconds` seconds: after that time a running statement is interrupted, and raises OperationalError."""
        driver: Any = connection.connection.driver_connection
        return time_limited(seconds, driver.interrupt)

    def now(self, ahead: timedelta = timedelta()) -> ColumnElement[datetime]:
        """Return SQL for the host's time plus `ahead`, in UTC, to the millisecond, in the text format of `UtcDateTime` columns."""
        moved = f", '{ahead / timedelta(seconds=1):+.3f} seconds'" if ahead else ""
        return literal_column(f"(strftime('%Y-%m-%d %H:%M:%f', 'now'{moved}) || '000')", type_=UtcDateTime())

    def with_row_locks(self, select: Select[Any], *_of: Any) -> Select[Any]:
        """Return the select unchanged, since BEGIN IMMEDIATE has locked the whole database."""
        return select

    def raise_if_unusable(self) -> None:
        """Raise StoreRefusedError if the open file was removed or replaced by another file."""
        if self._opened is None:
            return
        there = _file_identity(self.path)
        if there != self._opened:
            what = "was removed" if there is None else "was replaced by another file"
            raise StoreRefusedError(f"{self.path} {what} while it was open, so that what is written now would be lost: {_AFTER_REPLACED}")

    def has_someone_written(self) -> bool:
        """Return whether any connection of any process committed since the last call of this method; True at the first call.

        Call it from one thread only.
        """
        refuse_use_in_child(self._pid)
        watching = self._watching
        if watching is None:
            watching = self._watching = self._connect_outside_pool()
        (version,) = watching.execute("PRAGMA data_version").fetchone()
        before, self._version = self._version, version
        return bool(before != version)

    def _connect_outside_pool(self) -> sqlite3.Connection:
        """Return a new connection outside of the pool."""
        carried = self.settings.carried
        if carried.source is not None:
            made: sqlite3.Connection = make_connector(carried, self._arguments)()
            return made
        arguments, options = self.engine.dialect.create_connect_args(self.settings.url)
        connect: Any = sqlite3.connect  # typed as Any, since SQLAlchemy's arguments for it have no types
        return connect(*arguments, **{**options, **self._arguments})  # type: ignore[no-any-return]  # `connect` is typed as Any

    def identity(self) -> str | None:
        """Return None, since an SQLite file does not show whether it was restored. Counters that are kept outside of the file show
        restores.
        """
        return None

    def missing_file(self) -> str | None:
        """Return the path of the database file if the file does not exist yet; otherwise None."""
        return None if Path(self.path).exists() else self.path

    def refusal_for_error(self, error: BaseException | None) -> StoreRefusedError | None:
        """Return a StoreRefusedError, which names the cure, if SQLite's error shows that the file is unusable; else None."""
        return refusal_for_error(self.path, error)

    def close(self) -> None:
        """Close every connection. `connect` may be called again afterwards."""
        if self._pid != os.getpid():
            return
        if self._watching is not None:
            self._watching.close()
        self._watching, self._version, self._checked, self._opened = None, None, False, None
        self.high_water.close()
        self.engine.dispose()

    def abandon_after_fork(self) -> None:
        """Keep a forked child from using or closing the inherited connections, and from opening the file."""
        if self._checked or self._watching is not None:
            _open_before_fork.add(self.path)
        _inherited.extend((self.engine.pool, self._watching))
        self._watching = None
        self.engine.dispose(close=False)


_AFTER_FORK = "open it in the child alone, or start the child with the 'spawn' method (gunicorn: without preload)"
_WRITING = TransactionMode("BEGIN IMMEDIATE")
_READING = TransactionMode("BEGIN", keep=False, before="PRAGMA query_only=ON", after="PRAGMA query_only=OFF")


def _busy_timeout_pragma(wait: timedelta) -> str:
    return f"PRAGMA busy_timeout={max(0, round(wait / timedelta(milliseconds=1)))}"


def _prepare_connection(connection: sqlite3.Connection, record: Any) -> None:
    if isinstance(connection, SqliteConnection):  # the user's `creator=` may make a connection of another class
        connection.info_of_pool = record.info
    connection.execute(_busy_timeout_pragma(WAIT))
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA fullfsync=ON")  # for macOS, where a plain fsync may leave data in the cache of the disk


def _check_wal_mode(connection: Connection, path: str) -> None:
    mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
    if mode != "wal":
        message = f"{path} cannot be brought into WAL mode (it is in {mode!r}): use a local disk, and no URL options that forbid it"
        raise StoreRefusedError(message)


def _check_writable(connection: Connection) -> None:
    driver: Any = connection.connection.driver_connection
    connection.rollback()
    try:
        driver.execute(_busy_timeout_pragma(timedelta()))
        driver.execute("BEGIN IMMEDIATE")  # this succeeds even on a read-only file; the write in the next line does not
        driver.execute(f"PRAGMA user_version={driver.execute('PRAGMA user_version').fetchone()[0]}")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:  # SQLITE_BUSY: another connection writes, so the file is writable
            raise
    finally:
        driver.rollback()
        driver.execute(_busy_timeout_pragma(WAIT))


def _file_identity(path: str) -> tuple[int, int] | None:
    """Return a pair (device, inode) of the file at this path; None if there is no file."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


_AFTER_REPLACED = (
    "stop every process that has it open, put the right file there, and start them anew (with --after-restore, where it is a backup)"
)


def refusal_for_error(path: str, error: BaseException | None) -> StoreRefusedError | None:
    """Return a StoreRefusedError, which names the cure, if SQLite's error shows that the file is unusable; else None."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreRefusedError(_cannot_open_message(path))
    if code == sqlite3.SQLITE_READONLY:
        return StoreRefusedError(f"{path} is read-only: let this user write to the file and to its folder, and leave out mode=ro")
    if code == sqlite3.SQLITE_NOTADB:
        return StoreRefusedError(f"{path} is not a SQLite database: another file has its name, or it is encrypted; give the right path")
    if code == sqlite3.SQLITE_CORRUPT:
        return StoreRefusedError(f"{path} is damaged ({error}): put back a backup, then run `groundstate run --after-restore`")
    return None


def _cannot_open_message(path: str) -> str:
    folder = Path(path).parent
    if Path(path).is_dir():
        return f"{path} is a folder, not a database file: give the path of a file in it, such as {Path(path) / 'app.db'}"
    if not folder.is_dir():
        return f"the folder {folder} does not exist: create it; the database file itself is then made by groundstate"
    return f"{path} cannot be opened: let this user read and write the file and its folder, in which SQLite keeps its write-ahead log"
