"""The interface of the lab's scratch databases; `scratch_sqlite` and `scratch_postgres` implement it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, TableClause, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Mapper, Session, make_transient

from groundstate.app.app import App
from groundstate.app.store import Store
from groundstate.rules.sql_statements import describe_write, transaction_ending_keyword
from groundstate.store import engine_settings
from groundstate.store.port import StoreSettings
from groundstate.values.errors import StateRefusedError

Bound = type[Any] | Mapper[Any] | TableClause | str


class Place(Protocol):
    """The scratch databases of one `Lab.crash_everywhere`: one database for each store of the app."""

    settings: Sequence[StoreSettings]  # settings for each of the app's stores; for a sharded store, the settings of its first shard
    locks_rows: bool  # whether statements can wait in the database for locks: True for PostgreSQL, False for SQLite

    def commit_as_other_program(self, act: Callable[[Session], object]) -> bool:
        """Call `act(session)` and commit, as another program would. Return False if the transaction would have to wait for a lock."""

    def would_write_nothing(self, act: Callable[[Session], object]) -> bool:
        """Return whether the transaction `act` would surely write nothing if another program ran it now. This check writes nothing."""

    def copy(self) -> Any:
        """Return a copy of the committed content of the databases."""

    def restore_copy(self, copy: Any) -> None:
        """Replace the content of the databases by `copy`; called only when all processes of the run are dead."""

    def waits_for_lock(self, connection: Any) -> bool:
        """Return whether the statement that runs on this driver connection waits for a lock."""

    def closing_connections(self, connections: Sequence[Any]) -> AbstractContextManager[None]:
        """Return a context in which to close a killed process's connections. When the block ends, the server has released the locks of
        these connections.
        """

    def content_hash(self) -> object:
        """Return a value that differs whenever the content of the databases differs."""

    def state(self) -> object:
        """Return everything in the databases and in the files beside them that a worker could notice. Equal states have equal reprs."""

    def reset(self) -> None:
        """Reset the databases to the content that `fill` wrote, for the next run."""

    def connect(self, store: int) -> Connection:
        """Return a connection to the committed content of this store."""

    def query_rows(self, store: int, query: str) -> Sequence[Sequence[Any]]:
        """Run a plain SELECT on the committed content and return its rows. The method is called very often, so it bypasses
        SQLAlchemy, which would be slower.
        """

    def session(self) -> Session:
        """Return a session such as another program would use. It is bound to all stores: each table to the database of its store."""

    def fill(self, app: App, rows: Sequence[object]) -> None:
        """Create the tables, accept all reactions as a person would, and insert these rows."""

    def close(self) -> None:
        """Remove the scratch databases and all their files."""


def stores_of_app(app: App) -> list[Store]:
    """Return the stores for which a lab creates scratch databases.

    Of a sharded store, only the first shard is included: no shard sees another, so one shard is enough for the test.
    """
    return [store.databases[0] for store in app.stores]


def values_of(store: Store, on: str) -> dict[str, Any]:
    """Return the `create_engine` arguments that make the lab's engine for this store convert values as the user's engine does.

    on: the kind of database on which the lab runs, "sqlite" or "postgresql".
    """
    engine = store.databases[0].engine
    return {} if engine is None else engine_settings.dialect_arguments(engine.dialect, on)


class redirect_stores:  # noqa: N801  # lower case, since it is used like a function: `with redirect_stores(...)`
    """A context manager: inside its block, the app's stores use the given settings, which lead to the scratch databases."""

    def __init__(self, app: App, settings: Sequence[StoreSettings]) -> None:
        self._stores: Sequence[Store] = stores_of_app(app)
        self._settings = settings

    def __enter__(self) -> None:
        for store, settings in zip(self._stores, self._settings, strict=True):
            vars(store)["settings"] = lambda settings=settings: settings

    def __exit__(self, *_: object) -> None:
        for store in self._stores:
            with suppress(KeyError):
                del vars(store)["settings"]


def insert_first_rows(place: Place, rows: Sequence[object]) -> None:
    """Insert the rows that exist when a run begins. Then make the objects transient, so that they can be inserted into another database
    too.
    """
    with place.session() as session, session.begin():
        session.add_all(rows)
    for row in rows:
        make_transient(row)


class ReadOnlyEngines:
    """Engines that raise an error for each writing statement before it reaches the database."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = [engine.execution_options() for engine in engines]
        self._read = self._refused = 0
        for engine in self.engines:
            event.listen(engine, "before_cursor_execute", self._refuse_write)

    def would_write_nothing(self, session: Session, act: Callable[[Session], object]) -> bool:
        """Return whether the transaction `act`, run in this session on these engines, reads something and tries to write nothing."""
        self._read = self._refused = 0
        with suppress(_WriteRefused, Exception), session:
            act(session)
            session.flush()
            # If `act` reads nothing through these engines, it may reach the database in another way.
            return self._read > 0 and not self._refused
        return False

    def _refuse_write(self, connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if transaction_ending_keyword(statement, postgres=(postgres := connection.dialect.name == "postgresql")) or statement.startswith(
            "SET LOCAL"
        ):
            return
        if describe_write(statement, postgres=postgres):
            self._refused += 1
            raise _WriteRefused
        self._read += 1


class OtherProgram:
    """Runs transactions on the scratch databases as a program other than the app would. Base class of SqlitePlace and PostgresPlace, which
    set its attributes.
    """

    _stores: Sequence[Store]
    _engines: Sequence[Engine]
    _read_only_engines: ReadOnlyEngines

    def session(self) -> Session:
        """Return a session such as another program would use, with each table bound to the database of its store."""
        return Session(self._engines[0], binds=_session_binds(self._stores, self._engines), expire_on_commit=False)

    def commit_as_other_program(self, act: Callable[[Session], object]) -> bool:
        """Call `act(session)` and commit, as another program would. Return False if it would have to wait for a lock.

        If groundstate refuses a flush, the transaction is rolled back. The result is then True as well, since no lock was waited for.
        """
        try:
            with self.session() as session, session.begin():
                act(session)
        except StateRefusedError:
            return True
        except OperationalError as error:
            if not _is_lock_error(error):
                raise
            return False
        return True

    def would_write_nothing(self, act: Callable[[Session], object]) -> bool:
        """Return whether the transaction `act` would surely write nothing if another program ran it now. This check writes nothing."""
        return self._read_only_engines.would_write_nothing(
            Session(self._read_only_engines.engines[0], binds=_session_binds(self._stores, self._read_only_engines.engines)), act
        )


class _WriteRefused(BaseException):
    """Raised in place of a statement that would write."""


def _session_binds(stores: Sequence[Store], engines: Sequence[Engine]) -> dict[Bound, Engine | Connection]:
    """Return the `binds` of a session: for each table, the engine of its store."""
    found: dict[Bound, Engine | Connection] = {}
    for store, engine in zip(stores, engines, strict=True):
        for metadata in store.metadatas:
            found.update(dict.fromkeys(metadata.tables.values(), engine))
    return found


def _is_lock_error(error: OperationalError) -> bool:
    """Return whether this error was raised because another transaction holds a lock."""
    return "locked" in str(error) or "lock timeout" in str(error)
