"""Resolves what the user gave as a database to settings, and those to drivers. Connects to nothing, and shows no password in its errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl

from sqlalchemy import URL, Dialect, Engine, StaticPool, make_url
from sqlalchemy.exc import ArgumentError

from groundstate.store.begin_counter_file import FileWitness
from groundstate.store.engine_settings import Carried, carried_by, connect_args_of, connector
from groundstate.store.port import Liveness, Opened, Settings
from groundstate.store.sqlite_liveness import file_lives
from groundstate.values.driver_arguments import from_asyncpg, from_psycopg, from_psycopg2, with_hosts_in_the_query
from groundstate.values.errors import DeclarationError, StoreRefusedError


class AsyncEngineLike(Protocol):
    """Describes SQLAlchemy's AsyncEngine by the one attribute that we need, so that its module, which imports greenlet, is not imported."""

    @property
    def sync_engine(self) -> Engine:
        """Return the sync engine inside."""


_SQLITE = {"sqlite", "sqlite+pysqlite", "sqlite+aiosqlite"}
_POSTGRES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "postgresql": from_psycopg2,
    "postgres": from_psycopg2,
    "postgresql+psycopg2": from_psycopg2,
    "postgresql+psycopg": from_psycopg,
    "postgresql+psycopg_async": from_psycopg,
    "postgresql+asyncpg": from_asyncpg,
}
# Arguments of psycopg's connect, and a function that is called with them in its place, or None.
Way = tuple[dict[str, Any], Callable[..., Any] | None]
_SQLITE_REFUSED = {  # refused parameters of SQLite's file: URIs, and why
    "immutable": "takes the file for one that nobody writes",
    "nolock": "turns locks off",
    "vfs": "may lock in another way than other processes do",
    "cache": "lets connections see each other's unfinished work",
}


def settings_of(
    database: str | URL | Engine | AsyncEngineLike,
    direct: str | URL | None = None,
    witness: str | os.PathLike[str] | None = None,
    failover: str = "lossy",
    state: str | os.PathLike[str] | None = None,
) -> Settings:
    """Resolve what a `Store` was given to a URL and arguments of a driver that we use: pysqlite or psycopg.

    Args:
        database: a URL or an engine. groundstate connects by an engine of its own, which takes over what the given one carries.
        direct: PostgreSQL only: a URL past a pooler, for the lock that shows which worker is alive.
        witness: a folder on another disk than the database's, for the begin counter of each worker incarnation.
        failover: "lossy", or "lossless" where no failover of this database can lose a commit.
        state: SQLite only: a folder for the count of begun calls, apart from the database's own; the user's state folder where None.

    Raises:
        StoreRefusedError: this database cannot keep the promises; the message has the cure.
        DeclarationError: an argument has no meaning for this database.
    """
    if failover not in {"lossy", "lossless"}:
        message = f"failover={failover!r}: it is 'lossy', or 'lossless' where no failover can lose a commit"
        raise DeclarationError(message)
    url, arguments, carried = _given(database)
    if carried.source is not None and arguments is None and direct is not None:
        message = (
            f"{_shown(url)}: the engine connects by a function of yours (creator= or a do_connect listener), and direct= is connected to"
            " by its URL alone: give an engine that leads past the pooler, and no direct="
        )
        raise StoreRefusedError(message)
    arguments = arguments or {}
    folder = None if witness is None else str(Path(witness).resolve())
    if url.drivername in _SQLITE:
        if direct is not None:
            message = "direct= leads past a pooler, and SQLite has none: leave it out"
            raise DeclarationError(message)
        kept = None if state is None else str(Path(state).resolve())
        return Settings(_sqlite_url(url, arguments), _sqlite_arguments(arguments), None, folder, failover, kept, carried)
    if state is not None:
        message = "state= is a folder for what SQLite cannot know of itself, and PostgreSQL has signs of its own: leave it out"
        raise DeclarationError(message)
    if url.drivername not in _POSTGRES:
        message = f"{_shown(url)}: groundstate works on SQLite and PostgreSQL; give a URL that begins with sqlite:/// or postgresql://"
        raise StoreRefusedError(message)
    past = None if direct is None else _postgres_url(_parsed(direct))[0]
    ours, by_url = _postgres_url(url)
    return Settings(ours, {**by_url, **_POSTGRES[url.drivername](arguments)}, past, folder, failover, carried=carried)


def sqlite_dialect(database: object) -> Dialect | None:
    """Return SQLAlchemy's SQLite dialect if this surely is SQLite; None if it is not, or is a function that was not called yet."""
    url = _url_of(database)
    return _dialect("sqlite") if url is not None and url.drivername in _SQLITE else None


def dialect_of(database: object) -> Dialect | None:
    """Return SQLAlchemy's dialect for this database; None if it is a function that was not called yet, or its URL is refused."""
    url = _url_of(database)
    if url is not None and url.get_backend_name() == "postgresql":
        return _dialect("postgresql+psycopg")
    return sqlite_dialect(database)


def _url_of(database: object) -> URL | None:
    given = getattr(database, "sync_engine", database)
    try:
        url = given if isinstance(given, URL) else make_url(given) if isinstance(given, str) else getattr(given, "url", None)
    except (ArgumentError, ValueError):  # a URL of several hosts, or one that is refused when the store is opened
        return None
    return url if isinstance(url, URL) else None


@lru_cache(maxsize=2)
def _dialect(name: str) -> Dialect:
    dialect: Dialect = make_url(f"{name}://").get_dialect()()
    return dialect


def open_store(settings: Settings) -> Opened:
    """Return the drivers for these settings: the database, a maker of liveness, and the witness if there is one. Nothing is connected yet.

    Raises:
        StoreRefusedError: psycopg is not installed.
    """
    # Each driver is imported only when it is used: an app's start must not wait for the driver and dialect of the other database.
    if settings.url.get_backend_name() == "sqlite":
        return _open_sqlite(settings)
    _need_psycopg()
    way = _past_poolers(settings)
    witness = None if settings.witness is None else FileWitness(settings.witness, settings.url.database or "")
    postgres, session_locks = import_module("groundstate.store.postgres"), import_module("groundstate.store.postgres_liveness")
    return postgres.PostgresDatabase(settings), lambda: session_locks.SessionLiveness(*way), witness


def listening(settings: Settings) -> Way | None:
    """Return how to make a connection on which hints arrive; None for SQLite, which shows by itself that another process wrote."""
    return None if settings.url.get_backend_name() == "sqlite" else _past_poolers(settings)


def _past_poolers(settings: Settings) -> Way:
    """Return how psycopg makes a connection past any pooler."""
    carried, path = settings.carried, settings.direct or settings.url
    if carried.source is not None and settings.direct is None:
        return {}, lambda **arguments: connector(carried, arguments)()
    return {**path.get_dialect()().create_connect_args(path)[1], **settings.connect_args}, None


def _open_sqlite(settings: Settings) -> Opened:
    database = import_module("groundstate.store.sqlite").SqliteDatabase(settings)
    folder, name = os.path.split(database.path)

    def make_liveness() -> Liveness:
        return file_lives(database.path)

    return database, make_liveness, FileWitness(settings.witness or folder, name)


def _need_psycopg() -> None:
    try:
        import_module("psycopg")
    except ImportError as error:  # psycopg itself is missing, or the libpq that it needs
        message = f"PostgreSQL needs psycopg 3, which cannot be imported ({error}): pip install 'groundstate[postgres]'"
        raise StoreRefusedError(message) from error


def _given(database: str | URL | Engine | AsyncEngineLike) -> tuple[URL, Mapping[str, Any] | None, Carried]:
    """Return the URL, the connect_args (None where a function of the user's connects), and what an engine carries besides."""
    if isinstance(database, (str, URL)):
        return _parsed(database), {}, Carried()
    engine = cast("Engine | None", getattr(database, "sync_engine", database))
    if not isinstance(engine, Engine):
        message = f"a store is made from a URL or a SQLAlchemy engine, not from a {type(database).__name__}"
        raise DeclarationError(message)
    if isinstance(engine.pool, StaticPool):
        message = f"{_shown(engine.url)}: StaticPool has one connection for all, and groundstate's must be its own: use another pool"
        raise StoreRefusedError(message)
    carried, arguments = carried_by(engine, _shown(engine.url)), connect_args_of(engine)
    if arguments is None and carried.source is None:
        message = (
            f"{_shown(engine.url)}: the engine connects by a function of yours (creator= or a do_connect listener), and groundstate"
            " does not use its driver: give Store a sync engine of sqlite:/// or postgresql+psycopg://, or the URL with all that is needed"
        )
        raise StoreRefusedError(message)
    return engine.url, arguments, carried


def _parsed(url: str | URL) -> URL:
    try:
        return make_url(with_hosts_in_the_query(url) if isinstance(url, str) else url)
    except (ArgumentError, ValueError):
        message = (
            "the store's URL cannot be read: write sqlite:///app.db or postgresql://user@host/name, with @ : / in a password as %40 %3A %2F"
        )
        raise StoreRefusedError(message) from None  # the original error shows the URL, which may hold a password


def _sqlite_url(url: URL, arguments: Mapping[str, Any]) -> URL:
    path = url.database or ""
    query: dict[str, Any] = dict(url.query)
    if path.startswith("file:"):
        query |= parse_qsl(path.partition("?")[2])
    if path in {"", ":memory:"} or path.startswith("file::memory:") or query.get("mode") == "memory":
        message = f"{_shown(url)}: a database in memory dies with the process, and nothing would be left to carry out: use a file, sqlite:///app.db"
        raise StoreRefusedError(message)
    for name in sorted(_SQLITE_REFUSED.keys() & query.keys()):
        message = f"{_shown(url)}: {name}= {_SQLITE_REFUSED[name]}: leave it out"
        raise StoreRefusedError(message)
    uri = path.startswith("file:") and (arguments.get("uri") or str(query.get("uri")).lower() in {"true", "1"})
    absolute = url if uri else url.set(database=str(Path(path).resolve()))
    return absolute.set(drivername="sqlite+pysqlite")


def _sqlite_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    ours = {"autocommit", "check_same_thread", "isolation_level", "iter_chunk_size", "loop", "timeout"}
    return {name: value for name, value in arguments.items() if name not in ours}


def _postgres_url(url: URL) -> tuple[URL, dict[str, Any]]:
    """Return the URL for psycopg, and those of its options that psycopg takes as arguments only."""
    if url.drivername not in _POSTGRES:
        message = f"{_shown(url)}: direct= is a URL of the same PostgreSQL, past the pooler: postgresql://..."
        raise StoreRefusedError(message)
    query: dict[str, Any] = dict(url.query)
    arguments: dict[str, Any] = {}
    if url.drivername == "postgresql+asyncpg":
        places: dict[str, Any] = {
            name: query.pop(name) for name in ("host", "port") if name in query
        }  # SQLAlchemy's own options for several hosts
        query = {**places, **from_asyncpg(query)}
        if "prepare_threshold" in query:
            arguments["prepare_threshold"] = query.pop("prepare_threshold")
        query = {name: value if isinstance(value, tuple) else str(value) for name, value in query.items()}
    return url.set(drivername="postgresql+psycopg", query=query), arguments


def _shown(url: URL) -> str:
    # The query may hold secrets as well (?password=, ?sslpassword=).
    if url.drivername in _SQLITE:  # SQLAlchemy would show its path as in a URL, ":memory:" as "%3Amemory%3A"
        return f"{url.drivername}:///{url.database or ''}"
    return url.set(query={}).render_as_string(hide_password=True)
