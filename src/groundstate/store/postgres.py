"""The driver for PostgreSQL, by psycopg 3: what must hold in a transaction is said in its BEGIN, so that it holds behind a pooler as well.

Never takes a session-level setting for granted, and holds no session-level lock: those are the lives', on a connection of their own.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, QueuePool, Select, create_engine, event, func, literal_column
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import NotSupportedError

from groundstate.store import tables
from groundstate.store.forks import forsake_in_child, hang_up, refuse_child
from groundstate.store.transactions import Manner, begin_with, transaction
from groundstate.values.errors import StoreRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from groundstate.store.port import Settings

WAIT = timedelta(seconds=5)
STATEMENT = timedelta(seconds=30)  # how long one statement of ours may take, beside a longer wait for a lock
OLDEST = 140000

# Those by which a database is known again. The table of rates came later: counting it would make each upgrade look like a restore.
_OURS = [table.name for table in (tables.attempt, tables.reaction, tables.worker)]
_ALL = [table.name for table in tables.metadata.sorted_tables]

_FOUND = sql("""
    SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS words,
           current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS durable
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
    tables.blocks_index.dialect_options["postgresql"]["where"] = tables.blocking


class PostgresDatabase:
    """One PostgreSQL database, by the promises of `port.Database`."""

    name = "postgresql"
    locks_rows = True

    insert = staticmethod(insert)

    def __init__(self, settings: Settings) -> None:
        dress_tables()
        self.settings = settings
        self._pid = os.getpid()
        self._checking = threading.Lock()
        self._checked = False
        self._durable = ""
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        arguments = {"application_name": "groundstate", **settings.connect_args}
        if settings.direct is not None:
            # `direct` is given because `url` leads through a pooler, where a prepared statement may meet a server that has none.
            arguments.setdefault("prepare_threshold", None)
        self.engine = create_engine(settings.url, connect_args=arguments, poolclass=QueuePool)
        event.listen(self.engine, "connect", self._prepare)
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
                _check_tables(connection)
            if found.durable == "off":
                self._durable = "; SET LOCAL synchronous_commit = on"
            self._checked = True

    @contextmanager
    def writing(self, *, wait: timedelta | None = None) -> Iterator[Connection]:
        """READ COMMITTED, with our own lock_timeout and statement_timeout, sent in one message with the BEGIN.

        Raises:
            StoreRefused: this is a standby.
        """
        refuse_child(self._pid)
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
    def reading(self) -> Iterator[Connection]:
        """READ ONLY: writing in it raises InternalError, 'cannot execute ... in a read-only transaction'."""
        refuse_child(self._pid)
        # Where nothing can be written COMMIT keeps nothing, and after a ROLLBACK psycopg forgets all its prepared statements.
        with transaction(self.engine, Manner(f"BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; {_UTC}")) as connection:
            yield connection

    def now(self, ahead: timedelta = timedelta()) -> ColumnElement[datetime]:
        """The server's clock at the transaction's begin."""
        if not ahead:
            return func.now(type_=tables.Instant())
        return literal_column(f"(now() + interval '{ahead / timedelta(seconds=1):.3f} seconds')", type_=tables.Instant())

    def lock(self, select: Select[Any], *of: Any) -> Select[Any]:
        """FOR NO KEY UPDATE OF `of` SKIP LOCKED: others may still insert rows that refer to these."""
        return select.with_for_update(key_share=True, skip_locked=True, of=of or None)

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

    def _prepare(self, connection: Any, _record: object) -> None:
        connection.autocommit = True  # the BEGIN is ours
        self._open.add(connection)

    def _begin(self, access: str, wait: timedelta) -> str:
        statement = STATEMENT if wait <= WAIT else STATEMENT + wait
        return (
            f"BEGIN ISOLATION LEVEL READ COMMITTED {access}; {_UTC}; SET LOCAL lock_timeout = {_milliseconds(wait)};"
            f" SET LOCAL statement_timeout = {_milliseconds(statement)}{self._durable}"
        )


_STANDBY = (
    "this server is a standby (in recovery): it can be read (`groundstate pending`, `why`, `held`), and nothing can be carried out on it."
    " Give the primary's URL, or promote this server"
)
_UTC = "SET LOCAL TimeZone = 'UTC'"


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
