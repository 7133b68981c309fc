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
from groundstate.rules.sql_statements import what_ends_it, what_it_writes
from groundstate.store import engine_settings
from groundstate.store.port import Settings
from groundstate.values.errors import StateRefusedError

Bound = type[Any] | Mapper[Any] | TableClause | str


class Place(Protocol):
    """The scratch databases of one `Lab.trial`: one database for each store of the app."""

    settings: Sequence[Settings]  # one for each of the app's stores; a sharded store is represented by its first shard
    locks_rows: bool  # whether a statement can wait inside the database for a lock of another transaction

    def someone_else(self, act: Callable[[Session], object]) -> bool:
        """Commit `act(session)` as a transaction of another program; return False where a lock keeps it out for now."""

    def is_idle(self, act: Callable[[Session], object]) -> bool:
        """Return whether `act` as a transaction of another program would surely write nothing now; its writes are never carried out."""

    def copy(self) -> Any:
        """Return a copy of the committed content of the databases."""

    def put_back(self, copy: Any) -> None:
        """Replace the content of the databases by `copy`; called only while no process of the run is alive."""

    def waits(self, connection: Any) -> bool:
        """Return whether the statement that runs on this driver connection waits for a lock."""

    def leaving(self, connections: Sequence[Any]) -> AbstractContextManager[None]:
        """Close the connections of a killed process within the block; after it the server has released their locks."""

    def mark(self) -> object:
        """Return a value that differs wherever the content of the databases differs."""

    def state(self) -> object:
        """Return all content of the databases and the files beside them that a starting worker could notice; equal states have the same
        repr.
        """

    def begin_anew(self) -> None:
        """Reset the databases to the content that `fill` wrote, for the next run."""

    def connect(self, store: int) -> Connection:
        """Return a connection to the committed content of this store."""

    def ask(self, store: int, query: str) -> Sequence[Sequence[Any]]:
        """Run a plain SELECT on the committed content and return its rows. It bypasses SQLAlchemy because it runs very often."""

    def session(self) -> Session:
        """Return a session of another program, which is bound to each store by the tables of the store."""

    def fill(self, app: App, rows: Sequence[object]) -> None:
        """Create the tables, accept all reactions, and write the rows."""

    def close(self) -> None:
        """Remove the scratch databases and all files of them."""


def stores_of(app: App) -> list[Store]:
    """Return the databases for which a lab makes scratch databases.

    One shard represents a sharded store, since no shard knows of another.
    """
    return [store.databases[0] for store in app.stores]


def values_of(store: Store, on: str) -> dict[str, Any]:
    """Return the `create_engine` arguments that make the lab's engine of this store write and read values as the user's engine does.

    on: the kind of database on which the lab runs, "sqlite" or "postgresql".
    """
    engine = store.databases[0].engine
    return {} if engine is None else engine_settings.values_of(engine.dialect, on)


class stores_at:  # noqa: N801  # lower case, since it is used as a context manager like a function
    """Within the block, the app's stores use these settings, that is the scratch databases."""

    def __init__(self, app: App, settings: Sequence[Settings]) -> None:
        self._stores: Sequence[Store] = stores_of(app)
        self._settings = settings

    def __enter__(self) -> None:
        for store, settings in zip(self._stores, self._settings, strict=True):
            vars(store)["settings"] = lambda settings=settings: settings

    def __exit__(self, *_: object) -> None:
        for store in self._stores:
            with suppress(KeyError):
                del vars(store)["settings"]


def add(place: Place, rows: Sequence[object]) -> None:
    """Write the rows that exist when a run begins, and make them transient so that they can be added again for another database."""
    with place.session() as session, session.begin():
        session.add_all(rows)
    for row in rows:
        make_transient(row)


class Reading:
    """Engines that refuse each statement that would write before it reaches the database."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = [engine.execution_options() for engine in engines]
        self._read = self._refused = 0
        for engine in self.engines:
            event.listen(engine, "before_cursor_execute", self._look)

    def is_idle(self, session: Session, act: Callable[[Session], object]) -> bool:
        """Return whether `act`, run in this session on these engines, reads something and writes nothing."""
        self._read = self._refused = 0
        with suppress(_Refused, Exception), session:
            act(session)
            session.flush()
            # An act that reads nothing by SQLAlchemy may use ways that these engines do not see.
            return self._read > 0 and not self._refused
        return False

    def _look(self, connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if what_ends_it(statement, postgres=(postgres := connection.dialect.name == "postgresql")) or statement.startswith("SET LOCAL"):
            return
        if what_it_writes(statement, postgres=postgres):
            self._refused += 1
            raise _Refused
        self._read += 1


class _Refused(BaseException):
    """Raised in place of a statement that would write."""


def binds(stores: Sequence[Store], engines: Sequence[Engine]) -> dict[Bound, Engine | Connection]:
    """Map each table to the engine of its store, as the `binds` of a session."""
    found: dict[Bound, Engine | Connection] = {}
    for store, engine in zip(stores, engines, strict=True):
        for metadata in store.metadatas:
            found.update(dict.fromkeys(metadata.tables.values(), engine))
    return found


def committed(session: Session, act: Callable[[Session], object]) -> bool:
    """Commit `act(session)` as a transaction of another program; return False where a lock keeps it out.

    A flush that groundstate refuses counts as a transaction that did not happen, and returns True.
    """
    try:
        with session, session.begin():
            act(session)
    except StateRefusedError:
        return True
    except OperationalError as error:
        if not _kept_out(error):
            raise
        return False
    return True


def _kept_out(error: OperationalError) -> bool:
    """Return whether the error says that a lock of another transaction was the reason."""
    return "locked" in str(error) or "lock timeout" in str(error)
