"""Scratch databases on a PostgreSQL server: one for each store, emptied and filled again for each run, and removed at the end.

All runs use one set of databases: a new database has another identity, so groundstate would take it for a restored backup.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, func, select, text
from sqlalchemy.pool import NullPool

from groundstate.app.app import App
from groundstate.clock import SYSTEM_CLOCK, SYSTEM_DICE, Clock
from groundstate.store import tables as ours
from groundstate.store.connect import resolve_settings
from groundstate.store.engine_settings import Carried
from groundstate.store.port import StoreSettings
from groundstate.store.wrote_column import SAME
from groundstate.testing.databases.scratch_db import (
    OtherProgram,
    ReadOnlyEngines,
    insert_first_rows,
    redirect_stores,
    stores_of_app,
    values_of,
)

LOCK_MS = 20  # milliseconds after which another program's transaction gives up waiting for a locked row
GONE_WITHIN_S = 60.0  # seconds within which the server must have released the locks of dead processes

_LEFT = text("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(:pids)")
_END = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = ANY(:pids)")
_WAITS = text("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = :pid")
_LOCKED = text("""
    SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
    WHERE locktype = 'advisory' AND datname = ANY(:names)
""")
_SEQUENCES = "SELECT format('%%I.%%I', schemaname, sequencename), start_value, last_value FROM pg_sequences"
_PLAINLY = {
    table.name: f"SELECT {', '.join(one.name for one in table.columns if one.name != 'wrote')}, {SAME.format(table.name)} FROM {table.name}"  # noqa: S608  # the table's name is groundstate's own
    for table in (ours.reaction, ours.worker)
}
_TRIGGERS = "SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal"


@dataclass(frozen=True)
class Content:
    """All rows of one database, each table in the format of COPY, and the positions of its sequences."""

    tables: dict[str, bytes]
    sequences: tuple[tuple[str, int, int | None], ...]


class PostgresPlace(OtherProgram):
    """One scratch database for each store of the app, on the server of the URL, whose user must be allowed to create databases."""

    locks_rows = True

    def __init__(self, app: App, url: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._server = create_engine(resolve_settings(url).url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._stores = stores_of_app(app)
        self._names = [f"groundstate_lab_{SYSTEM_DICE.randbytes(6).hex()}" for _ in stores_of_app(app)]
        self._filled: list[Content] = []
        with self._server.connect() as connection:
            for name in self._names:
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
        self.settings: Sequence[StoreSettings] = [
            StoreSettings(self._server.url.set(database=name), {}, carried=Carried(dialect=values_of(store, "postgresql")))
            for name, store in zip(self._names, self._stores, strict=True)
        ]
        self._engines = [create_engine(one.url, **one.carried.dialect) for one in self.settings]
        # The readers run a query after each commit. With autocommit, a query costs three round trips less than in a transaction.
        self._readers = [create_engine(one.url, isolation_level="AUTOCOMMIT", **one.carried.dialect) for one in self.settings]
        for engine in self._engines:
            event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_MS}"))
        self._read_only_engines = ReadOnlyEngines(self._engines)
        self._looking: Connection | None = None
        self._asking: dict[int, Connection] = {}

    def fill(self, app: App, rows: Sequence[object]) -> None:
        """Create the tables, accept all reactions as a person would, and insert these rows. Each run begins with this content."""
        with redirect_stores(app, self.settings):
            app.init(tables=True, accept=True)
        insert_first_rows(self, rows)
        self._advance_sequences()
        self._filled = self.copy()

    def reset(self) -> None:
        """Set all tables back to the content that `fill` wrote. First wait until no advisory lock of an earlier run is left, since a
        PostgreSQL session ends a moment after its connection was closed.
        """
        look, end = self._server_connection(), self._clock.monotonic() + GONE_WITHIN_S
        while look.execute(_LOCKED, {"names": self._names}).scalar_one():
            if self._clock.monotonic() > end:
                raise TimeoutError(f"locks of the run before are still there after {GONE_WITHIN_S:g} s")
            self._clock.sleep(0.001)
        self.restore_copy(self._filled)

    def connect(self, store: int) -> Connection:
        """Return a connection to the committed content of this store."""
        return self._readers[store].connect()

    def query_rows(self, store: int, query: str) -> Sequence[Sequence[Any]]:
        """Run a plain SELECT through psycopg and return its rows."""
        if store not in self._asking:
            engine = create_engine(self.settings[store].url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
            self._asking[store] = engine.connect()
        asked: Sequence[Sequence[Any]] = _driver_connection(self._asking[store]).execute(query).fetchall()
        return asked

    def copy(self) -> list[Content]:
        """Return all rows that are committed now."""
        return [self._read_content(number) for number, _ in enumerate(self._engines)]

    def restore_copy(self, copy: Sequence[Content]) -> None:
        """Empty all tables and write the rows of `copy`."""
        for engine, content in zip(self._engines, copy, strict=True):
            with engine.begin() as connection:
                connection.exec_driver_sql("SET LOCAL lock_timeout = 5000")
                self._write_content(connection, content)

    def content_hash(self) -> object:
        """Return None: on PostgreSQL the content is not compared. The caller assumes that each commit that wrote something changed the
        content.
        """
        return None

    def state(self) -> object:
        """Return all rows of all tables in their physical order.

        Transaction ids are left out, since they always grow. Instead, the state says for each row of groundstate's
        tables whether something else wrote the row last.
        """
        found: list[object] = []
        for number, _ in enumerate(self._engines):
            found += [
                (table, self.query_rows(number, _PLAINLY.get(table, f"SELECT * FROM {table}")))  # noqa: S608  # the table's name is the scratch database's
                for table in self._table_names(number)
            ]
            found.append(self.query_rows(number, _SEQUENCES.replace("%%", "%")))
        return found

    def waits_for_lock(self, connection: Any) -> bool:
        """Return whether the statement on this psycopg connection waits for a lock."""
        with suppress(Exception):  # raised if the connection is closed
            return self._server_connection().execute(_WAITS, {"pid": connection.info.backend_pid}).scalar_one_or_none() is True
        return False

    @contextmanager
    def closing_connections(self, connections: Sequence[Any]) -> Iterator[None]:
        """Terminate the server processes of these connections. At the end of the block, wait until the server has released their locks."""
        pids = []
        for connection in connections:
            with suppress(Exception):  # raised if the connection is closed
                pids.append(connection.info.backend_pid)
        look = self._server_connection()
        look.execute(_END, {"pids": pids})
        yield
        end = self._clock.monotonic() + GONE_WITHIN_S
        while pids and look.execute(_LEFT, {"pids": pids}).scalar_one():
            if self._clock.monotonic() > end:
                raise TimeoutError(f"backends {pids} of a dead process are still there after {GONE_WITHIN_S:g} s")
            self._clock.sleep(0.001)

    def close(self) -> None:
        """Drop the scratch databases."""
        for one in [*self._asking.values(), *([self._looking] if self._looking is not None else [])]:
            one.close()
        self._asking, self._looking = {}, None
        for engine in [*self._engines, *self._readers]:
            engine.dispose()
        with self._server.connect() as connection:
            for name in self._names:
                connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _advance_sequences(self) -> None:
        """Advance the sequences past the primary keys of the rows that `fill` inserted, so that new rows get free keys. (SQLite needs no
        sequences.)
        """
        for store, engine in zip(self._stores, self._engines, strict=True):
            with engine.begin() as connection:
                for table in (table for metadata in store.metadatas for table in metadata.sorted_tables):
                    column = table.autoincrement_column
                    if column is not None:
                        name = engine.dialect.identifier_preparer.format_table(table)
                        sequence = func.pg_get_serial_sequence(name, column.name)
                        connection.execute(select(func.setval(sequence, func.max(column))).having(func.max(column).is_not(None)))

    # ---- content -------------------------------------------------------------------------------------------------------------------
    def _table_names(self, number: int) -> list[str]:
        """Return the names of all tables, each table after those that its foreign keys refer to."""
        some: list[Table] = [table for metadata in self._stores[number].metadatas for table in metadata.sorted_tables]
        quote: Engine = self._engines[number]
        return [
            quote.dialect.identifier_preparer.format_table(table)
            for table in dict.fromkeys([*some, ours.attempt, ours.reaction, ours.worker, ours.rate])
        ]

    def _read_content(self, number: int) -> Content:
        with self._engines[number].begin() as connection:
            driver = _driver_connection(connection)
            found = {}
            for table in self._table_names(number):
                with driver.cursor().copy(f"COPY {table} TO STDOUT") as out:
                    found[table] = b"".join(bytes(part) for part in out)
            sequences = tuple(tuple(row) for row in connection.exec_driver_sql(_SEQUENCES))
        return Content(found, sequences)

    def _write_content(self, connection: Connection, content: Content) -> None:
        driver = _driver_connection(connection)
        with_triggers = [str(row[0]) for row in connection.exec_driver_sql(_TRIGGERS)]
        for table in with_triggers:
            connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        for table in reversed(content.tables):
            connection.exec_driver_sql(f"DELETE FROM {table}")  # noqa: S608  # the table's name is the scratch database's
        for table, rows in content.tables.items():
            if rows:
                with driver.cursor().copy(f"COPY {table} FROM STDIN") as into:
                    into.write(rows)
        # This restore stands for the restore of a disk snapshot, after which the numbers in `wrote` still match. Here the rows are inserted
        # again by other transactions, so `wrote` is set to match.
        for table in (ours.reaction.name, ours.worker.name):
            connection.exec_driver_sql(f"UPDATE {table} SET wrote = pg_current_xact_id() WHERE wrote IS NOT NULL")  # noqa: S608  # the table's name is groundstate's own
        for name, start, last in content.sequences:
            connection.exec_driver_sql("SELECT setval(%s, %s, %s)", (name, start if last is None else last, last is not None))
        for table in with_triggers:
            connection.exec_driver_sql(f"ALTER TABLE {table} ENABLE TRIGGER USER")

    def _server_connection(self) -> Connection:
        if self._looking is None:
            self._looking = self._server.connect()
        return self._looking


def _driver_connection(connection: Connection) -> Any:
    return connection.connection.driver_connection
