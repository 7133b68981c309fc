"""What a scratch database does for the lab. Promises only; the drivers are `sqlite_place` and `postgres_place`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, TableClause
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Mapper, Session, make_transient

from groundstate.app.app import App
from groundstate.app.store import Store
from groundstate.store.port import Settings
from groundstate.values.errors import StateRefused

Bound = type[Any] | Mapper[Any] | TableClause | str


class Place(Protocol):
    """The scratch database of a run."""

    settings: Sequence[Settings]  # of each of the app's stores; of a sharded one's first shard
    locks_rows: bool  # whether a statement may wait for another's lock inside the database

    def someone_else(self, act: Callable[[Session], object]) -> bool:
        """Someone else's transaction; False where a lock keeps it out for now."""

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
