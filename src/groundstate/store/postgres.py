"""The driver for PostgreSQL, by psycopg 3: what must hold in a transaction is said in its BEGIN, so that it holds behind a pooler as well.

Never takes a session-level setting for granted, and holds no session-level lock: those are the lives', on a connection of their own.
"""

from __future__ import annotations

import json
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

from groundstate.store import kept_rows, tables
from groundstate.store.carried import connector, engine_of
from groundstate.store.kept_open import keep_psycopg, lets_go_of_what_broke
from groundstate.store.limits import Limit, limited
from groundstate.store.session_locks import INCARNATION, STARTED, UP_S
from groundstate.store.silence import Silence
from groundstate.store.transactions import Manner, begin_with, transaction
from groundstate.values import keepalive
from groundstate.values.errors import StoreRefused
from groundstate.values.forks import forsake_in_child, hang_up, refuse_child

with suppress(ImportError):  # `opening` refuses with the cure before anything here is used
    import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from groundstate.store.port import Settings

WAIT = timedelta(seconds=5)
STATEMENT = timedelta(seconds=30)  # how long one statement of ours may take, beside a longer wait for a lock
IDLE = timedelta(minutes=5)  # between two statements of a transaction, which the server ends then: a stopped process keeps no row for ever
OLDEST = 140000
WITH_TRANSACTION_TIMEOUT = 170000

# A host that is gone without a word must be missed: a worker that waits for its answer carries out nothing.
_CONNECT = {
    **keepalive.CLIENT,
    "connect_timeout": 10,  # for each of several hosts
    "application_name": "groundstate",
    "client_encoding": "utf8",  # in a database of another encoding the server converts; psycopg would give bytes for SQL_ASCII
}

# Those by which a database is known again. The table of rates came later: counting it would make each upgrade look like a restore.
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
# pg_control_checkpoint() tells the timeline too, but late: after a promotion it still names the old one.
_IDENTITY = sql("""
    SELECT (SELECT system_identifier FROM pg_control_system())::text AS system,
           CASE WHEN pg_is_in_recovery() THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END AS timeline,
           (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database,
           (SELECT array_agg(to_regclass(name)::oid::bigint ORDER BY name) FROM unnest(cast(:ours AS text[])) AS name) AS tables
""")


def dress_tables() -> None:
    """Adds to our tables what is PostgreSQL's alone. Idempotent."""
    # Each transaction inserts and deletes there: dead rows must go long before a fifth of the table is dead.
    tables.attempt.dialect_options["postgresql"]["with"] = {"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "5000"}
    tables.rate.dialect_options["postgresql"]["with"] = tables.attempt.dialect_options["postgresql"]["with"]
    if not event.contains(tables.attempt, "after_create", kept_rows.create):
        event.listen(tables.attempt, "after_create", kept_rows.create)
    tables.blocks_index.dialect_options["postgresql"]["where"] = tables.blocking


class PostgresDatabase:
    """One PostgreSQL database, by the promises of `port.Database`."""

    name = "postgresql"
    locks_rows = True
    high_water = None

    insert = staticmethod(insert)

    def __init__(self, settings: Settings) -> None:
        dress_tables()
        self.settings = settings
        self._pid = os.getpid()
        self._checking = threading.Lock()
        self._checked = False
        self._more = ""  # what each transaction sets besides, because of what this server has or was told
        self.codec = "utf-8"
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        arguments = {**_CONNECT, **settings.connect_args}
        if settings.direct is not None:
            # `direct` is given because `url` leads through a pooler, where a prepared statement may meet a server that has none.
            arguments.setdefault("prepare_threshold", None)
        self.engine = engine_of(settings.url, settings.carried, arguments)
        self._arguments = arguments
        self._silence = Silence(self.engine, self._connected_apart)
        event.listen(self.engine, "connect", self._prepare)
        lets_go_of_what_broke(self.engine)
        begin_with(self.engine, self._begin("READ WRITE", WAIT))
        forsake_in_child(self)

    def connect(self) -> None:
        """Connects, and checks the version and that a commit is on disk when it returns. Idempotent.

        Raises:
            StoreRefused: with what was found and the cure.
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
        """When this server was started: another one of the same data, or the same one after its crash, was started at another time."""
        return literal_column(STARTED, type_=Text())

    @property
    def incarnation(self) -> ColumnElement[str]:
        """One start, one recovery and one timeline of this server."""
        return literal_column(INCARNATION, type_=Text())

    @property
    def up_s(self) -> ColumnElement[float]:
        """For how long this server takes connections, as far as it says so: a standby that was promoted was started long before."""
        return literal_column(UP_S, type_=Float())

    @contextmanager
    def writing(self, *, wait: timedelta | None = None) -> Iterator[Connection]:
        """READ COMMITTED, with our own lock_timeout and statement_timeout, sent in one message with the BEGIN.

        Raises:
            StoreRefused: this is a standby.
        """
        refuse_child(self._pid)
        self.refuse_silent()
        begun = False
        try:
            with transaction(self.engine, Manner(self._begin("READ WRITE", WAIT if wait is None else wait))) as connection:
                begun = True
                yield connection
        except NotSupportedError as error:
            if begun:
                raise
            raise StoreRefused(_STANDBY) from error  # READ WRITE is refused in recovery, and for no other reason

    @contextmanager
    def reading(self, *, wait: timedelta | None = None) -> Iterator[Connection]:
        """READ ONLY: writing in it raises InternalError, 'cannot execute ... in a read-only transaction'."""
        refuse_child(self._pid)
        self.refuse_silent()
        # Where nothing can be written COMMIT keeps nothing, and after a ROLLBACK psycopg forgets all its prepared statements.
        with transaction(self.engine, Manner(self._begin("READ ONLY", WAIT if wait is None else wait, timedelta()))) as connection:
            yield connection

    def limit(self, connection: Connection, seconds: float) -> AbstractContextManager[Limit]:
        """By requests to cancel it: OperationalError, SQLSTATE 57014. A thread of its own makes each, since it waits for the server."""
        driver: Any = connection.connection.driver_connection
        return limited(seconds, lambda: threading.Thread(target=_cancel, args=(driver,), daemon=True).start())

    def now(self, ahead: timedelta = timedelta()) -> ColumnElement[datetime]:
        """The server's clock at the transaction's begin."""
        if not ahead:
            return func.now(type_=tables.Instant())
        return literal_column(f"(now() + interval '{ahead / timedelta(seconds=1):.3f} seconds')", type_=tables.Instant())

    def lock(self, select: Select[Any], *of: Any) -> Select[Any]:
        """FOR NO KEY UPDATE OF `of` SKIP LOCKED: others may still insert rows that refer to these."""
        return select.with_for_update(key_share=True, skip_locked=True, of=of or None)

    def refuse_silent(self) -> None:
        """Raises OperationalError while the server takes what is sent to it and does not answer."""
        self._silence.refuse()

    def _connected_apart(self, within_s: float) -> Any:
        """A connection outside of the pool."""
        arguments = {**self._arguments, "connect_timeout": max(round(within_s), 1)}
        if self.settings.carried.source is not None:
            return connector(self.settings.carried, arguments)()
        url = self.settings.url
        return psycopg.connect(**{**self.engine.dialect.create_connect_args(url)[1], **arguments}, autocommit=True)

    def someone_wrote(self) -> bool:
        """Always True: there is no cheap sign of it."""
        return True

    def identity(self) -> str | None:
        """JSON of system identifier, timeline (null in recovery, where it is not known), and the oids of the database and our tables."""
        with self.reading() as connection:
            row = connection.execute(_IDENTITY, {"ours": _OURS}).one()
        return None if None in row.tables else json.dumps(row._asdict(), sort_keys=True)

    def missing(self) -> None:
        """None: a server makes no database by itself."""

    def refusal(self, error: BaseException | None) -> None:  # the port's
        """None: what PostgreSQL says is plain."""

    def close(self) -> None:
        """Closes every connection. `connect` opens it again."""
        if self._pid != os.getpid():
            return
        self._checked = False
        self.engine.dispose()

    def forsake(self) -> None:
        """In a forked child: hangs up on the parent's connections without a word, so that its locks end when it does."""
        for connection in list(self._open):
            if not connection.closed:
                hang_up(connection.fileno())
        self.engine.dispose(close=False)

    def _prepare(self, connection: Any, record: Any) -> None:
        connection.autocommit = True  # the BEGIN is ours
        keep_psycopg(connection, record.info)
        self._open.add(connection)

    def _in_its_schema(self, path: str) -> str:
        """Where the user's engine translates tables without a schema: names in SQL of ours are looked for there first."""
        schema = (self.settings.carried.options.get("schema_translate_map") or {}).get(None)
        if schema is None:
            return ""
        return f"; SET LOCAL search_path = {self.engine.dialect.identifier_preparer.quote_identifier(schema)}, {path}"

    def _begin(self, access: str, wait: timedelta, statement: timedelta = STATEMENT) -> str:
        """With every time limit of our own: what a DBA set for the role or the database is for others. No `statement`: no limit."""
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
_OURS_IT_IS = "; SET LOCAL groundstate.ours = 'on'"  # triggers that tell who wrote leave us out
_CODECS = {  # Python's names for a database's encoding, where it is not UTF-8 and cannot hold every character
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
    """What each transaction sets beside its time limits, on this server."""
    durable = found.durable == "off" or (failover == "lossless" and found.durable in {"local", "remote_write"})
    wanted = {
        "synchronous_commit = on": durable,
        "transaction_timeout = 0": found.version >= WITH_TRANSACTION_TIMEOUT,  # each statement has a limit, and so has each pause
        "DateStyle = 'ISO'": not found.dates.startswith("ISO"),  # psycopg reads no other
        "IntervalStyle = 'postgres'": found.intervals != "postgres",
    }
    return "".join(f"; SET LOCAL {setting}" for setting, needed in wanted.items() if needed)


def _cancel(driver: Any) -> None:
    with suppress(Exception):  # it is over, or the server is not there to ask
        driver.cancel()


def _milliseconds(time: timedelta) -> int:
    return max(1, round(time / timedelta(milliseconds=1)))  # 0 would mean: wait for ever


def _check_server(version: int, words: str, fsync: str) -> None:
    if version < OLDEST:
        message = f"this is PostgreSQL {words}, and groundstate needs 14 or newer: upgrade the server"
        raise StoreRefused(message)
    if fsync == "off":
        message = (
            "this PostgreSQL runs with fsync = off, so that a power cut loses what was committed, begun calls among it:"
            " set fsync = on in postgresql.conf and reload the server"
        )
        raise StoreRefused(message)


def _check_tables(connection: Connection) -> None:
    lost = connection.execute(_NOT_KEPT, {"ours": _ALL}).scalars().all()
    if lost:
        cures = "; ".join(f"ALTER TABLE {name} SET LOGGED" for name in lost)
        message = f"{', '.join(lost)} would be emptied by a crash of the server, being UNLOGGED or TEMPORARY: {cures} (or make it again)"
        raise StoreRefused(message)
