"""Scratch databases on a PostgreSQL server: one for each store, emptied and filled again for each run, and removed at the end.

All runs use the same databases, since a new database has another identity, which groundstate takes for a backup that was put back.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, func, select, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from groundstate.app.app import App
from groundstate.store import tables as ours
from groundstate.store.connect import settings_of
from groundstate.store.engine_settings import Carried
from groundstate.store.port import Settings
from groundstate.store.wrote_column import SAME
from groundstate.testing.databases.scratch_db import Reading, add, binds, committed, stores_at, stores_of, values_of

LOCK_MS = 20  # milliseconds: a transaction of another program waits this long for a row that a process of the run has locked
GONE_WITHIN_S = 60.0  # seconds: locks of an earlier run must be gone by then

_LEFT = text("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(:pids)")
_END = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = ANY(:pids)")
_WAITS = text("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = :pid")
_LOCKED = text("""
    SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
    WHERE locktype = 'advisory' AND datname = ANY(:names)
""")
_SEQUENCES = "SELECT format('%%I.%%I', schemaname, sequencename), start_value, last_value FROM pg_sequences"
_PLAINLY = {
    table.name: f"SELECT {', '.join(one.name for one in table.columns if one.name != 'wrote')}, {SAME.format(table.name)} FROM {table.name}"  # noqa: S608  # the table is groundstate's own
    for table in (ours.reaction, ours.worker)
}
_TRIGGERS = "SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal"


@dataclass(frozen=True)
class Content:
    """All rows of one database, each table in the format of COPY, and the positions of its sequences."""

    tables: dict[str, bytes]
    sequences: tuple[tuple[str, int, int | None], ...]


class PostgresPlace:
    """One scratch database for each store of the app, on the server of this URL; its user must be allowed to create databases."""

    locks_rows = True

    def __init__(self, app: App, url: str) -> None:
        self._server = create_engine(settings_of(url).url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._stores = stores_of(app)
        self._names = [f"groundstate_lab_{uuid.uuid4().hex[:12]}" for _ in stores_of(app)]
        self._filled: list[Content] = []
        with self._server.connect() as connection:
            for name in self._names:
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
        self.settings: Sequence[Settings] = [
            Settings(self._server.url.set(database=name), {}, carried=Carried(dialect=values_of(store, "postgresql")))
            for name, store in zip(self._names, self._stores, strict=True)
        ]
        self._engines = [create_engine(one.url, **one.carried.dialect) for one in self.settings]
        # The readers are used after each commit, so they have autocommit: a transaction for each query would cost three more round trips.
        self._readers = [create_engine(one.url, isolation_level="AUTOCOMMIT", **one.carried.dialect) for one in self.settings]
        for engine in self._engines:
            event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_MS}"))
        self._reading = Reading(self._engines)
        self._looking: Connection | None = None
        self._asking: dict[int, Connection] = {}

    def fill(self, app: App, rows: Sequence[object]) -> None:
        """Create the tables, accept all reactions, and write the rows; each later run begins with this content."""
        with stores_at(app, self.settings):
            app.init(tables=True, accept=True)
        add(self, rows)
        self._move_sequences_on()
        self._filled = self.copy()

    def begin_anew(self) -> None:
        """Reset all tables to the content that `fill` wrote, once no advisory lock of an earlier run is left.

        It waits for these locks because a PostgreSQL session ends a moment after its connection was closed.
        """
        look, end = self._look(), time.monotonic() + GONE_WITHIN_S
        while look.execute(_LOCKED, {"names": self._names}).scalar_one():
            if time.monotonic() > end:
                raise TimeoutError(f"locks of the run before are still there after {GONE_WITHIN_S:g} s")
            time.sleep(0.001)
        self.put_back(self._filled)

    def connect(self, store: int) -> Connection:
        """Return a connection to the committed content of this store."""
        return self._readers[store].connect()

    def ask(self, store: int, query: str) -> Sequence[Sequence[Any]]:
        """Run a plain SELECT through psycopg and return its rows."""
        if store not in self._asking:
            engine = create_engine(self.settings[store].url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
            self._asking[store] = engine.connect()
        asked: Sequence[Sequence[Any]] = _driver(self._asking[store]).execute(query).fetchall()
        return asked

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

    def copy(self) -> list[Content]:
        """Return all rows that are committed now."""
        return [self._content(number) for number, _ in enumerate(self._engines)]

    def put_back(self, copy: Sequence[Content]) -> None:
        """Empty all tables and write the rows of `copy`."""
        for engine, content in zip(self._engines, copy, strict=True):
            with engine.begin() as connection:
                connection.exec_driver_sql("SET LOCAL lock_timeout = 5000")
                self._write(connection, content)

    def mark(self) -> object:
        """Return None, since on PostgreSQL the lab tells one state from another by whether a commit wrote."""
        return None

    def state(self) -> object:
        """Return all rows in their physical order.

        Transaction ids are left out because they always grow; whether a row is unchanged since groundstate wrote it is kept.
        """
        found: list[object] = []
        for number, _ in enumerate(self._engines):
            found += [(table, self.ask(number, _PLAINLY.get(table, f"SELECT * FROM {table}"))) for table in self._tables(number)]  # noqa: S608  # the table is one of the scratch database
            found.append(self.ask(number, _SEQUENCES.replace("%%", "%")))
        return found

    def waits(self, connection: Any) -> bool:
        """Return whether the statement on this psycopg connection waits for a lock."""
        with suppress(Exception):  # the connection is closed
            return self._look().execute(_WAITS, {"pid": connection.info.backend_pid}).scalar_one_or_none() is True
        return False

    @contextmanager
    def leaving(self, connections: Sequence[Any]) -> Iterator[None]:
        """Terminate the backends of these connections, and after the block wait until the server has released their locks."""
        pids = []
        for connection in connections:
            with suppress(Exception):  # the connection is closed
                pids.append(connection.info.backend_pid)
        look = self._look()
        look.execute(_END, {"pids": pids})
        yield
        end = time.monotonic() + GONE_WITHIN_S
        while pids and look.execute(_LEFT, {"pids": pids}).scalar_one():
            if time.monotonic() > end:
                raise TimeoutError(f"backends {pids} of a dead process are still there after {GONE_WITHIN_S:g} s")
            time.sleep(0.001)

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

    def _move_sequences_on(self) -> None:
        """Advance the sequences past the primary keys that rows were given, as SQLite does by itself, so that new rows get free ones."""
        for store, engine in zip(self._stores, self._engines, strict=True):
            with engine.begin() as connection:
                for table in (table for metadata in store.metadatas for table in metadata.sorted_tables):
                    column = table.autoincrement_column
                    if column is not None:
                        name = engine.dialect.identifier_preparer.format_table(table)
                        sequence = func.pg_get_serial_sequence(name, column.name)
                        connection.execute(select(func.setval(sequence, func.max(column))).having(func.max(column).is_not(None)))

    # ---- content -------------------------------------------------------------------------------------------------------------------
    def _tables(self, number: int) -> list[str]:
        """Return the names of all tables in an order that satisfies foreign keys: a table comes after those that it refers to."""
        some: list[Table] = [table for metadata in self._stores[number].metadatas for table in metadata.sorted_tables]
        quote: Engine = self._engines[number]
        return [
            quote.dialect.identifier_preparer.format_table(table)
            for table in dict.fromkeys([*some, ours.attempt, ours.reaction, ours.worker, ours.rate])
        ]

    def _content(self, number: int) -> Content:
        with self._engines[number].begin() as connection:
            driver = _driver(connection)
            found = {}
            for table in self._tables(number):
                with driver.cursor().copy(f"COPY {table} TO STDOUT") as out:
                    found[table] = b"".join(bytes(part) for part in out)
            sequences = tuple(tuple(row) for row in connection.exec_driver_sql(_SEQUENCES))
        return Content(found, sequences)

    def _write(self, connection: Connection, content: Content) -> None:
        driver = _driver(connection)
        with_triggers = [str(row[0]) for row in connection.exec_driver_sql(_TRIGGERS)]
        for table in with_triggers:
            connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        for table in reversed(content.tables):
            connection.exec_driver_sql(f"DELETE FROM {table}")  # noqa: S608  # the table is one of the scratch database
        for table, rows in content.tables.items():
            if rows:
                with driver.cursor().copy(f"COPY {table} FROM STDIN") as into:
                    into.write(rows)
        # A snapshot of the disk keeps `wrote` valid, so here nothing may reveal that the rows were written anew.
        for table in (ours.reaction.name, ours.worker.name):
            connection.exec_driver_sql(f"UPDATE {table} SET wrote = pg_current_xact_id() WHERE wrote IS NOT NULL")  # noqa: S608  # the table is groundstate's own
        for name, start, last in content.sequences:
            connection.exec_driver_sql("SELECT setval(%s, %s, %s)", (name, start if last is None else last, last is not None))
        for table in with_triggers:
            connection.exec_driver_sql(f"ALTER TABLE {table} ENABLE TRIGGER USER")

    def _look(self) -> Connection:
        if self._looking is None:
            self._looking = self._server.connect()
        return self._looking


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection
