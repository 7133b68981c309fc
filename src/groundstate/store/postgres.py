"""Implements `port.Database` for PostgreSQL with psycopg 3.

All settings that a transaction needs are sent with its BEGIN, so that it works behind a pooler too: it depends on no setting or lock of the
session. The locks of workers are on a separate connection (postgres_liveness.py).
"""

from __future__ import annotations

import json
import logging
import os
import threading
import weakref
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, Float, Select, Text, event, func, literal_column
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import NotSupportedError

from groundstate.clock import SYSTEM_CLOCK, SYSTEM_DICE, Clock, Dice
from groundstate.store import delete_guard, tables
from groundstate.store.driver_guard import allow_closing_when_invalidated, guard_psycopg
from groundstate.store.engine_settings import make_connector, make_engine
from groundstate.store.explicit_begin import TransactionMode, begin_transaction, set_begin_statement
from groundstate.store.postgres_liveness import INCARNATION, STARTED, UP_S
from groundstate.store.released_savepoints import release_savepoints_after_rollback
from groundstate.store.silent_server import SilentServerWatch
from groundstate.store.statement_timeouts import Limit, time_limited
from groundstate.values import keepalive
from groundstate.values.after_fork import abandon_in_child, redirect_to_devnull, refuse_use_in_child
from groundstate.values.errors import StoreRefusedError

with suppress(ImportError):  # without psycopg, `open_store` raises an error that names the cure, before this module is used
    import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from groundstate.store.port import StoreSettings

WAIT = timedelta(seconds=5)  # how long a statement waits for a lock, unless the caller gives another time
# How long a statement may take. If a caller lets a statement wait for a lock longer than WAIT, the limit grows by the difference.
STATEMENT = timedelta(seconds=30)
# The longest pause between two statements of a transaction. After such a pause the server ends the session, so that a stopped process frees
# its rows.
IDLE = timedelta(minutes=5)
OLDEST = 140000  # server_version_num of the oldest supported version
WITH_TRANSACTION_TIMEOUT = 170000  # server_version_num of the first version with the setting transaction_timeout

# Keepalive detects that the server's host vanished; without it a worker would wait for an answer forever.
_CONNECT = {
    **keepalive.CLIENT,
    "connect_timeout": 10,  # in seconds; if the URL names several hosts, each host gets this time
    "application_name": "groundstate",
    # The server converts text from other encodings to UTF-8. Without this setting, psycopg returns bytes from SQL_ASCII databases.
    "client_encoding": "utf8",
}

# Names of the tables that identify a database. The table of rates was added later: if it were here, an upgrade would look like a restore.
_OURS = [table.name for table in (tables.attempt, tables.reaction, tables.worker)]
_ALL = [table.name for table in tables.metadata.sorted_tables]

_FOUND = sql("""
    SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS words,
           current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS durable,
           current_setting('DateStyle') AS dates, current_setting('IntervalStyle') AS intervals,
           current_setting('server_encoding') AS encoding, current_setting('search_path') AS path
""")
_NOT_KEPT = sql("""
    SELECT relname FROM pg_class
    WHERE oid IN (SELECT to_regclass(name) FROM unnest(cast(:ours AS text[])) AS name) AND relpersistence <> 'p' ORDER BY relname
""")
# The timeline is not read from pg_control_checkpoint(), which shows the old timeline for a while after a promotion.
_IDENTITY = sql("""
    SELECT (SELECT system_identifier FROM pg_control_system())::text AS system,
           CASE WHEN pg_is_in_recovery() THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END AS timeline,
           (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database,
           (SELECT array_agg(to_regclass(name)::oid::bigint ORDER BY name) FROM unnest(cast(:ours AS text[])) AS name) AS tables
""")


_OF_CALLS = ("groundstate-calls", "groundstate-sync-call", "groundstate-sync-client")  # names of threads that run the user's calls


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Return False for psycopg's log line about an error that it ignored on one of groundstate's own threads. Return True for any other
    line.

    The line is not needed, since an error was raised on that thread before. Threads that run the user's calls do not count as groundstate's
    own: their lines are kept.
    """
    return not (
        str(record.msg).startswith("error ignored")
        and str(record.threadName).startswith("groundstate-")
        and record.threadName not in _OF_CALLS
    )


def silence_driver_warnings() -> None:
    """Suppress psycopg's warnings of ignored errors ("error ignored ...") on groundstate's threads, but not on threads of the app."""
    logging.getLogger("psycopg").addFilter(_is_worth_logging)  # a second call adds nothing


def add_postgres_options() -> None:
    """Add options and triggers that only PostgreSQL has to the declarations of groundstate's tables. A second call changes nothing."""
    # Each transaction inserts and deletes rows, so dead rows must be vacuumed long before a fifth of the table (the default) is dead.
    tables.attempt.dialect_options["postgresql"]["with"] = {"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "5000"}
    tables.rate.dialect_options["postgresql"]["with"] = tables.attempt.dialect_options["postgresql"]["with"]
    if not event.contains(tables.attempt, "after_create", delete_guard.create_triggers):
        event.listen(tables.attempt, "after_create", delete_guard.create_triggers)
    tables.blocks_index.dialect_options["postgresql"]["where"] = tables.blocking


class PostgresDatabase:
    """A PostgresDatabase implements `port.Database` for one PostgreSQL database."""

    name = "postgresql"
    locks_rows = True
    high_water = None

    insert_function = staticmethod(insert)

    def __init__(self, settings: StoreSettings) -> None:
        add_postgres_options()
        silence_driver_warnings()
        self.settings = settings
        self.clock: Clock = SYSTEM_CLOCK
        self.dice: Dice = SYSTEM_DICE
        self._pid = os.getpid()
        self._checking = threading.Lock()
        self._checked = False
        self._more = ""  # SQL that is added to each BEGIN because of this server's version or configuration
        self.codec = "utf-8"
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        arguments = {**_CONNECT, **settings.connect_args}
        if settings.direct is not None:
            # If `direct` is given, `url` leads through a pooler, where a session may not have the statement that another session prepared.
            arguments.setdefault("prepare_threshold", None)
        self.engine = make_engine(settings.url, settings.carried, arguments)
        self._arguments = arguments
        self._silence = SilentServerWatch(self.engine, self._connect_outside_pool)
        event.listen(self.engine, "connect", self._prepare_connection)
        allow_closing_when_invalidated(self.engine)
        release_savepoints_after_rollback(self.engine)
        set_begin_statement(self.engine, self._begin_statement("READ WRITE", WAIT))
        abandon_in_child(self)

    def connect(self) -> None:
        """Connect. Check the server's version, and check that COMMIT returns only after the commit is on disk. A second call does nothing.

        Raises:
            StoreRefusedError: the server is unsuitable; the message says why, and names the cure.
            OperationalError: the server cannot be reached now.
        """
        refuse_use_in_child(self._pid)
        with self._checking:
            if self._checked:
                return
            with self.reading() as connection:
                found = connection.execute(_FOUND).one()
            _check_server(found.version, found.words, found.fsync)
            self._more = _additional_settings(found, self.settings.failover) + self._search_path_setting(found.path)
            with self.reading() as connection:
                _refuse_unlogged_tables(connection)
            self.codec = _CODECS.get(found.encoding, "utf-8")
            self._checked = True

    @property
    def server_id_sql(self) -> ColumnElement[str]:
        """Return SQL for a text with the start time of this server. A restart changes the text, and other servers have other texts."""
        return literal_column(STARTED, type_=Text())

    @property
    def server_start(self) -> ColumnElement[str]:
        """Return SQL for JSON text that identifies the server's start, its last crash recovery and its timeline."""
        return literal_column(INCARNATION, type_=Text())

    @property
    def uptime_s(self) -> ColumnElement[float]:
        """Return SQL for the seconds since this server started or recovered from a crash. The promotion of a standby does not count as a
        start.
        """
        return literal_column(UP_S, type_=Float())

    @contextmanager
    def writing(self, *, wait: timedelta | None = None) -> Iterator[Connection]:
        """Open a READ COMMITTED transaction that may write; yield its connection. Its time limits are sent in one message with its BEGIN.

        wait: how long a statement waits for a lock; None means WAIT.

        Raises:
            StoreRefusedError: this server is a standby.
        """
        refuse_use_in_child(self._pid)
        self.raise_if_unusable()
        begun = False
        try:
            with begin_transaction(
                self.engine, TransactionMode(self._begin_statement("READ WRITE", WAIT if wait is None else wait))
            ) as connection:
                begun = True
                yield connection
        except NotSupportedError as error:
            if begun:
                raise
            raise StoreRefusedError(_STANDBY) from error  # only a standby refuses BEGIN ... READ WRITE

    @contextmanager
    def reading(self, *, wait: timedelta | None = None) -> Iterator[Connection]:
        """Open a READ ONLY transaction; yield its connection. A write raises InternalError.

        wait: how long a statement waits for a lock; None means WAIT.
        """
        refuse_use_in_child(self._pid)
        self.raise_if_unusable()
        # The transaction ends with COMMIT, since after a ROLLBACK psycopg would forget all its prepared statements.
        with begin_transaction(
            self.engine, TransactionMode(self._begin_statement("READ ONLY", WAIT if wait is None else wait, timedelta()))
        ) as connection:
            yield connection

    def limit_statement(self, connection: Connection, seconds: float) -> AbstractContextManager[Limit]:
        """Limit the block to `seconds` seconds: after that time a running statement is cancelled, and raises OperationalError (SQLSTATE
        57014).

        A request to cancel waits for the server, so it is sent in a thread.
        """
        driver: Any = connection.connection.driver_connection
        return time_limited(seconds, lambda: threading.Thread(target=_cancel_statement, args=(driver,), daemon=True).start())

    def now(self, ahead: timedelta = timedelta()) -> ColumnElement[datetime]:
        """Return SQL for the server's time at the BEGIN of the transaction, plus `ahead`."""
        if not ahead:
            return func.now(type_=tables.UtcDateTime())
        return literal_column(f"(now() + interval '{ahead / timedelta(seconds=1):.3f} seconds')", type_=tables.UtcDateTime())

    def with_row_locks(self, select: Select[Any], *of: Any) -> Select[Any]:
        """Return the select with FOR NO KEY UPDATE SKIP LOCKED, which locks the rows of the tables `of`.

        Others may still insert rows that refer to the locked rows.
        """
        return select.with_for_update(key_share=True, skip_locked=True, of=of or None)

    def raise_if_unusable(self) -> None:
        """Raise OperationalError while the server accepts statements but does not answer them."""
        self._silence.raise_if_unusable()

    def _connect_outside_pool(self, within_s: float) -> Any:
        """Return a new connection outside of the pool. within_s: the timeout for connecting, in seconds."""
        arguments = {**self._arguments, "connect_timeout": max(round(within_s), 1)}
        if self.settings.carried.source is not None:
            return make_connector(self.settings.carried, arguments)()
        url = self.settings.url
        return psycopg.connect(**{**self.engine.dialect.create_connect_args(url)[1], **arguments}, autocommit=True)

    def has_someone_written(self) -> bool:
        """Return True always, since PostgreSQL has no cheap way to tell whether others wrote."""
        return True

    def identity(self) -> str | None:
        """Return JSON text with the server's system identifier and timeline (null on a standby), and the oids of the database and of
        groundstate's tables. Return None if one of these tables is missing.
        """
        with self.reading() as connection:
            row = connection.execute(_IDENTITY, {"ours": _OURS}).one()
        return None if None in row.tables else json.dumps(row._asdict(), sort_keys=True)

    def missing_file(self) -> None:
        """Return None always, since a PostgreSQL database is no single file."""

    def refusal_for_error(self, error: BaseException | None) -> None:  # `error` is unused, but the protocol has it
        """Return None always, since PostgreSQL's own error messages are clear."""

    def close(self) -> None:
        """Close every connection. `connect` may be called again afterwards."""
        if self._pid != os.getpid():
            return
        self._checked = False
        self.engine.dispose()

    def abandon_after_fork(self) -> None:
        """Close the inherited connections in a forked child, but send nothing to the server, so that the parent can go on using them."""
        for connection in list(self._open):
            if not connection.closed:
                redirect_to_devnull(connection.fileno())
        self.engine.dispose(close=False)

    def _prepare_connection(self, connection: Any, record: Any) -> None:
        connection.autocommit = True  # psycopg must send no BEGIN, since groundstate sends its own
        guard_psycopg(connection, record.info)
        self._open.add(connection)

    def _search_path_setting(self, path: str) -> str:
        """Return '; SET LOCAL search_path = ...' if the user's engine translates the schema None to another; else ''."""
        schema = (self.settings.carried.options.get("schema_translate_map") or {}).get(None)
        if schema is None:
            return ""
        return f"; SET LOCAL search_path = {self.engine.dialect.identifier_preparer.quote_identifier(schema)}, {path}"

    def _begin_statement(self, access: str, wait: timedelta, statement: timedelta = STATEMENT) -> str:
        """Return the SQL of a BEGIN with all settings and time limits. They override the limits of the role and of the database.

        access: 'READ WRITE' or 'READ ONLY'. wait: how long a statement waits for a lock. statement: how long a statement may take; zero for
        no limit.
        """
        at_most = _in_milliseconds(statement + max(wait - WAIT, timedelta())) if statement else 0
        return (
            f"BEGIN ISOLATION LEVEL READ COMMITTED {access}; {_UTC}; SET LOCAL statement_timeout = {at_most};"
            f" SET LOCAL lock_timeout = {_in_milliseconds(wait)};"
            f" SET LOCAL idle_in_transaction_session_timeout = {_in_milliseconds(IDLE)}{_OURS_IT_IS}{self._more}"
        )


_STANDBY = (
    "this server is a standby (in recovery): it can be read (`groundstate pending`, `why`, `held`), and nothing can be carried out on it."
    " Give the primary's URL, or promote this server"
)
_UTC = "SET LOCAL TimeZone = 'UTC'"
_OURS_IT_IS = "; SET LOCAL groundstate.ours = 'on'"  # groundstate's triggers, which watch other programs, ignore these transactions
_CODECS = {  # name of Python's codec for each database encoding that cannot hold every character
    **{f"LATIN{number}": f"iso8859-{of}" for number, of in zip(range(1, 11), (1, 2, 3, 4, 9, 10, 13, 14, 15, 16), strict=True)},
    **{f"ISO_8859_{number}": f"iso8859-{number}" for number in (5, 6, 7, 8)},
    **{f"WIN{number}": f"cp{number}" for number in (866, 874, *range(1250, 1259))},
    "KOI8R": "koi8-r",
    "KOI8U": "koi8-u",
    "EUC_JP": "euc-jp",
    "EUC_KR": "euc-kr",
    "EUC_CN": "gb2312",
}


def _additional_settings(found: Any, failover: str) -> str:
    """Return the SET LOCAL statements, as one text, that a transaction on this server needs besides its time limits; '' if none.

    found: the row of settings that the server reported.
    """
    durable = found.durable == "off" or (failover == "lossless" and found.durable in {"local", "remote_write"})
    wanted = {
        "synchronous_commit = on": durable,
        # 0 for no limit: each statement and each pause has its own limit.
        "transaction_timeout = 0": found.version >= WITH_TRANSACTION_TIMEOUT,
        "DateStyle = 'ISO'": not found.dates.startswith("ISO"),  # psycopg can parse only ISO dates
        "IntervalStyle = 'postgres'": found.intervals != "postgres",
    }
    return "".join(f"; SET LOCAL {setting}" for setting, needed in wanted.items() if needed)


def _cancel_statement(driver: Any) -> None:
    with suppress(Exception):  # the statement may have ended, or the server may be gone
        driver.cancel()


def _in_milliseconds(time: timedelta) -> int:
    return max(1, round(time / timedelta(milliseconds=1)))  # at least 1, since 0 means no limit


def _check_server(version: int, words: str, fsync: str) -> None:
    if version < OLDEST:
        message = f"this is PostgreSQL {words}, and groundstate needs 14 or newer: upgrade the server"
        raise StoreRefusedError(message)
    if fsync == "off":
        message = (
            "this PostgreSQL runs with fsync = off, so that a power cut loses what was committed, begun calls among it:"
            " set fsync = on in postgresql.conf and reload the server"
        )
        raise StoreRefusedError(message)


def _refuse_unlogged_tables(connection: Connection) -> None:
    lost = connection.execute(_NOT_KEPT, {"ours": _ALL}).scalars().all()
    if lost:
        cures = "; ".join(f"ALTER TABLE {name} SET LOGGED" for name in lost)
        message = f"{', '.join(lost)} would be emptied by a crash of the server, being UNLOGGED or TEMPORARY: {cures} (or create it again)"
        raise StoreRefusedError(message)
