"""What a scratch database does for the lab. Promises only; the drivers are `sqlite_place` and `postgres_place`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, TableClause, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Mapper, Session, make_transient

from groundstate.app.app import App
from groundstate.app.store import Store
from groundstate.rules.statements import what_ends_it, what_it_writes
from groundstate.store import carried
from groundstate.store.port import Settings
from groundstate.values.errors import StateRefused

Bound = type[Any] | Mapper[Any] | TableClause | str


class Place(Protocol):
    """The scratch database of a run."""

    settings: Sequence[Settings]  # of each of the app's stores; of a sharded one's first shard
    locks_rows: bool  # whether a statement may wait for another's lock inside the database

    def someone_else(self, act: Callable[[Session], object]) -> bool:
        """Someone else's transaction; False where a lock keeps it out for now."""

    def is_idle(self, act: Callable[[Session], object]) -> bool:
        """Whether someone else's transaction would surely write nothing now. None of what it would write is written."""

    def copy(self) -> Any:
        """The database as it is now."""

    def put_back(self, copy: Any) -> None:
        """Brings the database to where it was. No process lives."""

    def waits(self, connection: Any) -> bool:
        """Whether the statement on this driver's connection waits for a lock."""

    def leaving(self, connections: Sequence[Any]) -> AbstractContextManager[None]:
        """Around the end of a process with these connections: afterwards the database knows that they are gone."""

    def mark(self) -> object:
        """What tells one state of it from another."""

    def state(self) -> object:
        """All that stands in it and beside it, as a worker that starts could tell it from another; equal ones have the same repr."""

    def begin_anew(self) -> None:
        """The database as it was filled, for the next run."""

    def connect(self, store: int) -> Connection:
        """A connection to what is committed now."""

    def ask(self, store: int, query: str) -> Sequence[Sequence[Any]]:
        """The answer to a plain query of what is committed now, by the driver: often asked, so not by way of SQLAlchemy."""

    def session(self) -> Session:
        """A session of somebody else, bound to each store by its tables."""

    def fill(self, app: App, rows: Sequence[object]) -> None:
        """Makes the tables, accepts all reactions, and writes the rows."""

    def close(self) -> None:
        """Removes everything."""


def stores_of(app: App) -> list[Store]:
    """The databases that a lab makes: of a sharded store one shard stands for all, since none knows of another."""
    return [store.parts[0] for store in app.stores]


def values_of(store: Store, on: str) -> dict[str, Any]:
    """How a lab's database of this store writes and reads values: as the user's engine does. Arguments of `create_engine`.

    on: what the lab runs on, "sqlite" or "postgresql".
    """
    engine = store.parts[0].engine
    return {} if engine is None else carried.values_of(engine.dialect, on)


class stores_at:  # noqa: N801  # used as a with statement's word
    """While the block runs, the app's stores lead to these databases."""

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
    """Writes the rows that are there when a run begins. They may be given again afterwards."""
    with place.session() as session, session.begin():
        session.add_all(rows)
    for row in rows:
        make_transient(row)


class Reading:
    """Engines on which nothing is written: the first statement that would is refused before the database hears of it."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = [engine.execution_options() for engine in engines]
        self._read = self._refused = 0
        for engine in self.engines:
            event.listen(engine, "before_cursor_execute", self._look)

    def is_idle(self, session: Session, act: Callable[[Session], object]) -> bool:
        """Whether the act, in this session on these engines, asks something and writes nothing."""
        self._read = self._refused = 0
        with suppress(_Refused, Exception), session:
            act(session)
            session.flush()
            return self._read > 0 and not self._refused  # what asks nothing by SQLAlchemy goes ways that are not seen here
        return False

    def _look(self, connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if what_ends_it(statement, postgres=(postgres := connection.dialect.name == "postgresql")) or statement.startswith("SET LOCAL"):
            return
        if what_it_writes(statement, postgres=postgres):
            self._refused += 1
            raise _Refused
        self._read += 1


class _Refused(BaseException):
    """It would write."""


def binds(stores: Sequence[Store], engines: Sequence[Engine]) -> dict[Bound, Engine | Connection]:
    """Which engine a session of somebody else asks for each table."""
    found: dict[Bound, Engine | Connection] = {}
    for store, engine in zip(stores, engines, strict=True):
        for metadata in store.metadatas:
            found.update(dict.fromkeys(metadata.tables.values(), engine))
    return found


def committed(session: Session, act: Callable[[Session], object]) -> bool:
    """Someone else's transaction. False where a lock keeps it out; where groundstate refuses its flush it did not happen."""
    try:
        with session, session.begin():
            act(session)
    except StateRefused:
        return True
    except OperationalError as error:
        if not _kept_out(error):
            raise
        return False
    return True


def _kept_out(error: OperationalError) -> bool:
    """Whether a lock of somebody else was the reason."""
    return "locked" in str(error) or "lock timeout" in str(error)
