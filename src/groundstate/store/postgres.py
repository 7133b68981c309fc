"""Drives PostgreSQL by psycopg 3: all settings that a transaction needs are sent with its BEGIN, so that they hold behind a pooler as well.

Takes no session-level setting for granted, and holds no session-level lock: those of workers are on a separate connection
(postgres_liveness.py).
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

from groundstate.store import delete_guard, tables
from groundstate.store.driver_guard import keep_psycopg, lets_go_of_what_broke
from groundstate.store.engine_settings import connector, engine_of
from groundstate.store.explicit_begin import TransactionMode, begin_with, transaction
from groundstate.store.postgres_liveness import INCARNATION, STARTED, UP_S
from groundstate.store.silent_server import SilentServerWatch
from groundstate.store.statement_timeouts import Limit, limited
from groundstate.values import keepalive
from groundstate.values.after_fork import forsake_in_child, hang_up, refuse_child
from groundstate.values.errors import StoreRefusedError

with suppress(ImportError):  # `open_store` refuses, with the cure, before anything here is used
    import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from groundstate.store.port import Settings

WAIT = timedelta(seconds=5)  # how long a statement waits for a lock, where the caller does not say
STATEMENT = timedelta(seconds=30)  # how long one of our statements may take; a lock wait beyond WAIT is added
# The longest pause between two statements of a transaction. After it the server ends the session: a stopped process locks no row for ever.
IDLE = timedelta(minutes=5)
OLDEST = 140000  # server_version_num of the oldest version that is supported
WITH_TRANSACTION_TIMEOUT = 170000  # server_version_num of the first version that has transaction_timeout

# Keepalive must notice a host that vanished: a worker that waits for its answer carries out nothing.
_CONNECT = {
    **keepalive.CLIENT,
    "connect_timeout": 10,  # seconds, for each host where there are several
    "application_name": "groundstate",
    "client_encoding": "utf8",  # the server converts from other encodings; without it psycopg returns bytes for SQL_ASCII
}

# The tables by which a database is recognised. The table of rates came later: with it, each upgrade would look like a restore.
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
# pg_control_checkpoint() shows the timeline too, but late: after a promotion it still shows the old one.
_IDENTITY = sql("""
    SELECT (SELECT system_identifier FROM pg_control_system())::text AS system,
           CASE WHEN pg_is_in_recovery() THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END AS timeline,
           (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database,
           (SELECT array_agg(to_regclass(name)::oid::bigint ORDER BY name) FROM unnest(cast(:ours AS text[])) AS name) AS tables
""")


_OF_CALLS = ("groundstate-calls", "groundstate-sync-call", "groundstate-sync-client")  # threads on which the user's code connects


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of psycopg's log says what is not told anyway: the error that it ignored on our threads was raised to us before."""
    return not (
        str(record.msg).startswith("error ignored")
        and str(record.threadName).startswith("groundstate-")
        and record.threadName not in _OF_CALLS
    )


def quiet_driver() -> None:
    """Leave out psycopg's own warnings beside ours, such as "error ignored terminating Pipeline". Those of the app's threads stay."""
    logging.getLogger("psycopg").addFilter(_is_news)  # it is added once, however often this is called


def dress_tables() -> None:
    """Add PostgreSQL's own options and triggers to our tables. Idempotent."""
    # Each transaction inserts and deletes there, so dead rows must be vacuumed long before a fifth of the table (the default) is dead.
    tables.attempt.dialect_options["postgresql"]["with"] = {"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "5000"}
    tables.rate.dialect_options["postgresql"]["with"] = tables.attempt.dialect_options["postgresql"]["with"]
    if not event.contains(tables.attempt, "after_create", delete_guard.create):
        event.listen(tables.attempt, "after_create", delete_guard.create)
    tables.blocks_index.dialect_options["postgresql"]["where"] = tables.blocking


class PostgresDatabase:
    """Implements `port.Database` for one PostgreSQL database."""

    name = "postgresql"
    locks_rows = True
    high_water = None

    insert = staticmethod(insert)

    def __init__(self, settings: Settings) -> None:
        dress_tables()
        quiet_driver()
        self.settings = settings
        self._pid = os.getpid()
        self._checking = threading.Lock()
        self._checked = False
        self._more = ""  # further settings of each transaction, which this server's version or configuration requires
        self.codec = "utf-8"
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        arguments = {**_CONNECT, **settings.connect_args}
        if settings.direct is not None:
            # `direct` is given where `url` leads through a pooler: a prepared statement may then reach a session that does not have it.
            arguments.setdefault("prepare_threshold", None)
        self.engine = engine_of(settings.url, settings.carried, arguments)
        self._arguments = arguments
        self._silence = SilentServerWatch(self.engine, self._connected_apart)
        event.listen(self.engine, "connect", self._prepare)
        lets_go_of_what_broke(self.engine)
        begin_with(self.engine, self._begin("READ WRITE", WAIT))
        forsake_in_child(self)

    def connect(self) -> None:
        """Connect, and check the server's version and that a commit is on disk when it returns. Idempotent.

        Raises:
            StoreRefusedError: the server cannot keep the promises; the message has what was found and the cure.
            OperationalError: the server cannot be reached just now.
        """
        refuse_child(self._pid)
        with self._checking:
            if self._checked:
                return
            with self.reading() as connection:
                found = connection.execute(_FOUND).one()
            _check_server(found.version, found.words, found.fsync)
            self._more = _more(found, self.settings.failover) + self._in_its_schema(found.path)
            with self.reading() as connection:
                _check_tables(connection)
            self.codec = _CODECS.get(found.encoding, "utf-8")
            self._checked = True

    @property
    def server(self) -> ColumnElement[str]:
        """Return SQL for the time at which this server was started; it differs on another server of the same data, and after a crash."""
        return literal_column(STARTED, type_=Text())

    @property
    def server_start(self) -> ColumnElement[str]:
        """Return SQL for JSON that identifies one start, one crash recovery and one timeline of this server."""
        return literal_column(INCARNATION, type_=Text())

    @property
    def up_s(self) -> ColumnElement[float]:
        """Return SQL for the seconds since this server was started or recovered from a crash; a promoted standby takes connections for a
        shorter time.
        """
        return literal_column(UP_S, type_=Float())

    @contextmanager
    def writing(self, *, wait: timedelta | None = None) -> Iterator[Connection]:
        """Open a READ COMMITTED transaction; our lock_timeout and statement_timeout are sent in one message with its BEGIN.

        Raises:
            StoreRefusedError: this server is a standby.
        """
        refuse_child(self._pid)
        self.refuse_silent()
        begun = False
        try:
            with transaction(self.engine, TransactionMode(self._begin("READ WRITE", WAIT if wait is None else wait))) as connection:
                begun = True
                yield connection
        except NotSupportedError as error:
            if begun:
                raise
            raise StoreRefusedError(_STANDBY) from error  # READ WRITE is refused in recovery, and for no other reason

    @contextmanager
    def reading(self, *, wait: timedelta | None = None) -> Iterator[Connection]:
        """Open a READ ONLY transaction: writing in it raises InternalError, 'cannot execute ... in a read-only transaction'."""
        refuse_child(self._pid)
        self.refuse_silent()
        # It ends with COMMIT, which keeps nothing here: after a ROLLBACK psycopg would forget all its prepared statements.
        with transaction(self.engine, TransactionMode(self._begin("READ ONLY", WAIT if wait is None else wait, timedelta()))) as connection:
            yield connection

    def limit(self, connection: Connection, seconds: float) -> AbstractContextManager[Limit]:
        """Cancel a statement that runs for longer than `seconds`, which raises OperationalError, SQLSTATE 57014. Each cancel request is
        made in a thread, since it waits for the server.
        """
        driver: Any = connection.connection.driver_connection
        return limited(seconds, lambda: threading.Thread(target=_cancel, args=(driver,), daemon=True).start())

    def now(self, ahead: timedelta = timedelta()) -> ColumnElement[datetime]:
        """Return SQL for the server's clock at the transaction's begin, moved `ahead`."""
        if not ahead:
            return func.now(type_=tables.UtcDateTime())
        return literal_column(f"(now() + interval '{ahead / timedelta(seconds=1):.3f} seconds')", type_=tables.UtcDateTime())

    def lock(self, select: Select[Any], *of: Any) -> Select[Any]:
        """Return the select with FOR NO KEY UPDATE OF `of` SKIP LOCKED: others may still insert rows that refer to the locked ones."""
        return select.with_for_update(key_share=True, skip_locked=True, of=of or None)

    def refuse_silent(self) -> None:
        """Raise OperationalError while the server takes what is sent to it and does not answer."""
        self._silence.refuse()

    def _connected_apart(self, within_s: float) -> Any:
        """Return a new connection outside of the pool. within_s: its connect timeout, in seconds."""
        arguments = {**self._arguments, "connect_timeout": max(round(within_s), 1)}
        if self.settings.carried.source is not None:
            return connector(self.settings.carried, arguments)()
        url = self.settings.url
        return psycopg.connect(**{**self.engine.dialect.create_connect_args(url)[1], **arguments}, autocommit=True)

    def someone_wrote(self) -> bool:
        """Return True always, since PostgreSQL has no cheap sign of a write."""
        return True

    def identity(self) -> str | None:
        """Return JSON of the system identifier, the timeline (null in recovery, where it is unknown), and the oids of the database and of
        our tables; None if one of those tables is missing.
        """
        with self.reading() as connection:
            row = connection.execute(_IDENTITY, {"ours": _OURS}).one()
        return None if None in row.tables else json.dumps(row._asdict(), sort_keys=True)

    def missing(self) -> None:
        """Return None always: a server creates no database by itself."""

    def refusal(self, error: BaseException | None) -> None:  # `error` is part of the port
        """Return None always: the messages of PostgreSQL need no explanation."""

    def close(self) -> None:
        """Close every connection. `connect` opens them again."""
        if self._pid != os.getpid():
            return
        self._checked = False
        self.engine.dispose()

    def forsake(self) -> None:
        """Close the inherited connections in a forked child without sending anything, so that the parent's locks end with the parent."""
        for connection in list(self._open):
            if not connection.closed:
                hang_up(connection.fileno())
        self.engine.dispose(close=False)

    def _prepare(self, connection: Any, record: Any) -> None:
        connection.autocommit = True  # we send the BEGIN ourselves
        keep_psycopg(connection, record.info)
        self._open.add(connection)

    def _in_its_schema(self, path: str) -> str:
        """Return a search_path setting where the user's engine translates tables without a schema: names in our own SQL are looked up there
        first.
        """
        schema = (self.settings.carried.options.get("schema_translate_map") or {}).get(None)
        if schema is None:
            return ""
        return f"; SET LOCAL search_path = {self.engine.dialect.identifier_preparer.quote_identifier(schema)}, {path}"

    def _begin(self, access: str, wait: timedelta, statement: timedelta = STATEMENT) -> str:
        """Return the BEGIN with all time limits of ours: what is set for the role or the database is meant for others. statement: zero for
        no limit.
        """
        at_most = _milliseconds(statement + max(wait - WAIT, timedelta())) if statement else 0
        return (
            f"BEGIN ISOLATION LEVEL READ COMMITTED {access}; {_UTC}; SET LOCAL statement_timeout = {at_most};"
            f" SET LOCAL lock_timeout = {_milliseconds(wait)};"
            f" SET LOCAL idle_in_transaction_session_timeout = {_milliseconds(IDLE)}{_OURS_IT_IS}{self._more}"
        )


_STANDBY = (
    "this server is a standby (in recovery): it can be read (`groundstate pending`, `why`, `held`), and nothing can be carried out on it."
    " Give the primary's URL, or promote this server"
)
_UTC = "SET LOCAL TimeZone = 'UTC'"
_OURS_IT_IS = "; SET LOCAL groundstate.ours = 'on'"  # triggers that react to other writers skip transactions with this setting
_CODECS = {  # Python's codec for each database encoding that cannot hold every character
    **{f"LATIN{number}": f"iso8859-{of}" for number, of in zip(range(1, 11), (1, 2, 3, 4, 9, 10, 13, 14, 15, 16), strict=True)},
    **{f"ISO_8859_{number}": f"iso8859-{number}" for number in (5, 6, 7, 8)},
    **{f"WIN{number}": f"cp{number}" for number in (866, 874, *range(1250, 1259))},
    "KOI8R": "koi8-r",
    "KOI8U": "koi8-u",
    "EUC_JP": "euc-jp",
    "EUC_KR": "euc-kr",
    "EUC_CN": "gb2312",
}


def _more(found: Any, failover: str) -> str:
    """Return the SET LOCAL statements that a transaction on this server needs besides its time limits."""
    durable = found.durable == "off" or (failover == "lossless" and found.durable in {"local", "remote_write"})
    wanted = {
        "synchronous_commit = on": durable,
        "transaction_timeout = 0": found.version >= WITH_TRANSACTION_TIMEOUT,  # each statement and each pause has a limit of its own
        "DateStyle = 'ISO'": not found.dates.startswith("ISO"),  # psycopg parses no other style
        "IntervalStyle = 'postgres'": found.intervals != "postgres",
    }
    return "".join(f"; SET LOCAL {setting}" for setting, needed in wanted.items() if needed)


def _cancel(driver: Any) -> None:
    with suppress(Exception):  # the statement may have ended, or the server may be gone
        driver.cancel()


def _milliseconds(time: timedelta) -> int:
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


def _check_tables(connection: Connection) -> None:
    lost = connection.execute(_NOT_KEPT, {"ours": _ALL}).scalars().all()
    if lost:
        cures = "; ".join(f"ALTER TABLE {name} SET LOGGED" for name in lost)
        message = f"{', '.join(lost)} would be emptied by a crash of the server, being UNLOGGED or TEMPORARY: {cures} (or make it again)"
        raise StoreRefusedError(message)
