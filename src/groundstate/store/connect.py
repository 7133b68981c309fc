"""Turns the user's database argument into settings, and settings into a database object. It does not connect, and its errors show no
password.
"""

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
from groundstate.store.engine_settings import Carried, connect_args_of, make_connector, settings_carried_by
from groundstate.store.port import Liveness, Opened, StoreSettings
from groundstate.store.sqlite_liveness import make_file_liveness
from groundstate.values.driver_arguments import (
    filter_psycopg_arguments,
    move_hosts_to_query,
    translate_asyncpg_arguments,
    translate_psycopg2_arguments,
)
from groundstate.values.errors import DeclarationError, StoreRefusedError


class AsyncEngineLike(Protocol):
    """AsyncEngineLike declares the one attribute of SQLAlchemy's AsyncEngine that is used here.

    AsyncEngine itself is not imported, since that would import greenlet.
    """

    @property
    def sync_engine(self) -> Engine:
        """Return the sync Engine that the AsyncEngine wraps."""


_SQLITE = {"sqlite", "sqlite+pysqlite", "sqlite+aiosqlite"}
_POSTGRES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "postgresql": translate_psycopg2_arguments,
    "postgres": translate_psycopg2_arguments,
    "postgresql+psycopg2": translate_psycopg2_arguments,
    "postgresql+psycopg": filter_psycopg_arguments,
    "postgresql+psycopg_async": filter_psycopg_arguments,
    "postgresql+asyncpg": translate_asyncpg_arguments,
}
# How to make a connection: a pair (arguments, function to call with them). If the function is None, call psycopg's `connect`.
ConnectBy = tuple[dict[str, Any], Callable[..., Any] | None]
_SQLITE_REFUSED = {  # parameters of an SQLite `file:` URI that groundstate refuses, each with the reason
    "immutable": "takes the file for one that nobody writes",
    "nolock": "turns locks off",
    "vfs": "may lock in another way than other processes do",
    "cache": "lets connections see each other's unfinished work",
}


def resolve_settings(
    database: str | URL | Engine | AsyncEngineLike,
    direct: str | URL | None = None,
    witness: str | os.PathLike[str] | None = None,
    failover: str = "lossy",
    state: str | os.PathLike[str] | None = None,
) -> StoreSettings:
    """Turn the arguments of a `Store` into StoreSettings, with a URL and arguments for a driver that groundstate uses: pysqlite or psycopg.

    Args:
        database: a URL or an engine. groundstate connects by an engine of its own, which takes over the given engine's configuration.
        direct: PostgreSQL only: a URL that bypasses a pooler, for the lock that shows which worker is alive.
        witness: a folder on another disk than the database, for a count of the calls that each worker has begun.
        failover: "lossy", or "lossless" if no failover of this database can lose a commit.
        state: SQLite only: a folder for the count of begun calls, outside of the database's folder; None for the user's state folder.

    Raises:
        StoreRefusedError: groundstate cannot work safely on this database; the message names the cure.
        DeclarationError: an argument has no meaning for this database.
    """
    if failover not in {"lossy", "lossless"}:
        message = f"failover={failover!r}: it is 'lossy', or 'lossless' where no failover can lose a commit"
        raise DeclarationError(message)
    url, arguments, carried = _url_and_arguments(database)
    if carried.source is not None and arguments is None and direct is not None:
        message = (
            f"{_safe_url(url)}: the engine connects by a function of yours (creator= or a do_connect listener), and direct= is connected to"
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
        return StoreSettings(_checked_sqlite_url(url, arguments), _sqlite_arguments(arguments), None, folder, failover, kept, carried)
    if state is not None:
        message = "state= is a folder for what SQLite cannot know of itself, and PostgreSQL has signs of its own: leave it out"
        raise DeclarationError(message)
    if url.drivername not in _POSTGRES:
        message = f"{_safe_url(url)}: groundstate works on SQLite and PostgreSQL; give a URL that begins with sqlite:/// or postgresql://"
        raise StoreRefusedError(message)
    past = None if direct is None else _psycopg_url(_parse_url(direct))[0]
    ours, by_url = _psycopg_url(url)
    return StoreSettings(ours, {**by_url, **_POSTGRES[url.drivername](arguments)}, past, folder, failover, carried=carried)


def sqlite_dialect_of(database: object) -> Dialect | None:
    """Return SQLAlchemy's SQLite dialect if `database` is the URL or engine of an SQLite database. Return None for anything else, such as a
    function.
    """
    url = _url_or_none(database)
    return _make_dialect("sqlite") if url is not None and url.drivername in _SQLITE else None


def dialect_of(database: object) -> Dialect | None:
    """Return SQLAlchemy's dialect for the URL or engine `database`; None for a URL that cannot be used, and for a function."""
    url = _url_or_none(database)
    if url is not None and url.get_backend_name() == "postgresql":
        return _make_dialect("postgresql+psycopg")
    return sqlite_dialect_of(database)


def _url_or_none(database: object) -> URL | None:
    given = getattr(database, "sync_engine", database)
    try:
        url = given if isinstance(given, URL) else make_url(given) if isinstance(given, str) else getattr(given, "url", None)
    except (ArgumentError, ValueError):  # the URL names several hosts, or is invalid and will be refused when the store is opened
        return None
    return url if isinstance(url, URL) else None


@lru_cache(maxsize=2)
def _make_dialect(name: str) -> Dialect:
    dialect: Dialect = make_url(f"{name}://").get_dialect()()
    return dialect


def open_store(settings: StoreSettings) -> Opened:
    """Return a triple (Database, function that makes a Liveness, Witness or None). It does not connect.

    Raises:
        StoreRefusedError: psycopg is needed, and cannot be imported.
    """
    # The driver is imported here, so that an app on one database does not wait for the import of the other database's driver.
    if settings.url.get_backend_name() == "sqlite":
        return _open_sqlite(settings)
    _require_psycopg()
    way = _arguments_past_poolers(settings)
    witness = None if settings.witness is None else FileWitness(settings.witness, settings.url.database or "")
    postgres, session_locks = import_module("groundstate.store.postgres"), import_module("groundstate.store.postgres_liveness")
    database = postgres.PostgresDatabase(settings)
    return database, lambda: session_locks.SessionLiveness(*way, clock=database.clock), witness


def hint_connection_arguments(settings: StoreSettings) -> ConnectBy | None:
    """Return how to make a connection that listens for hints (messages that say where to look), as a pair (arguments, function or None).

    Return None for SQLite, where `PRAGMA data_version` shows that other connections wrote.
    """
    return None if settings.url.get_backend_name() == "sqlite" else _arguments_past_poolers(settings)


def _arguments_past_poolers(settings: StoreSettings) -> ConnectBy:
    """Return how to make a psycopg connection that bypasses any pooler, as a pair (arguments, function to call or None)."""
    carried, path = settings.carried, settings.direct or settings.url
    if carried.source is not None and settings.direct is None:
        return {}, lambda **arguments: make_connector(carried, arguments)()
    return {**path.get_dialect()().create_connect_args(path)[1], **settings.connect_args}, None


def _open_sqlite(settings: StoreSettings) -> Opened:
    database = import_module("groundstate.store.sqlite").SqliteDatabase(settings)
    folder, name = os.path.split(database.path)

    def make_liveness() -> Liveness:
        return make_file_liveness(database.path)

    return database, make_liveness, FileWitness(settings.witness or folder, name)


def _require_psycopg() -> None:
    try:
        import_module("psycopg")
    except ImportError as error:  # psycopg is missing, or the library libpq that psycopg needs
        message = f"PostgreSQL needs psycopg 3, which cannot be imported ({error}): pip install 'groundstate[postgres]'"
        raise StoreRefusedError(message) from error


def _url_and_arguments(database: str | URL | Engine | AsyncEngineLike) -> tuple[URL, Mapping[str, Any] | None, Carried]:
    """Return a triple (URL, connect_args, rest of the engine's configuration). connect_args is None if a function of the user connects."""
    if isinstance(database, (str, URL)):
        return _parse_url(database), {}, Carried()
    engine = cast("Engine | None", getattr(database, "sync_engine", database))
    if not isinstance(engine, Engine):
        message = f"a store is made from a URL or a SQLAlchemy engine, not from a {type(database).__name__}"
        raise DeclarationError(message)
    if isinstance(engine.pool, StaticPool):
        message = f"{_safe_url(engine.url)}: StaticPool has one connection for all, and groundstate's must be its own: use another pool"
        raise StoreRefusedError(message)
    carried, arguments = settings_carried_by(engine, _safe_url(engine.url)), connect_args_of(engine)
    if arguments is None and carried.source is None:
        message = (
            f"{_safe_url(engine.url)}: the engine connects by a function of yours (creator= or a do_connect listener), and groundstate"
            " does not use its driver: give Store a sync engine of sqlite:/// or postgresql+psycopg://, or the URL with all that is needed"
        )
        raise StoreRefusedError(message)
    return engine.url, arguments, carried


def _parse_url(url: str | URL) -> URL:
    try:
        return make_url(move_hosts_to_query(url) if isinstance(url, str) else url)
    except (ArgumentError, ValueError):
        message = (
            "the store's URL cannot be read: write sqlite:///app.db or postgresql://user@host/name, with @ : / in a password as %40 %3A %2F"
        )
        raise StoreRefusedError(message) from None  # `from None`, since the original error shows the URL, which may hold a password


def _checked_sqlite_url(url: URL, arguments: Mapping[str, Any]) -> URL:
    path = url.database or ""
    query: dict[str, Any] = dict(url.query)
    if path.startswith("file:"):
        query |= parse_qsl(path.partition("?")[2])
    if path in {"", ":memory:"} or path.startswith("file::memory:") or query.get("mode") == "memory":
        message = f"{_safe_url(url)}: a database in memory dies with the process, and nothing would be left to carry out: use a file, sqlite:///app.db"
        raise StoreRefusedError(message)
    for name in sorted(_SQLITE_REFUSED.keys() & query.keys()):
        message = f"{_safe_url(url)}: {name}= {_SQLITE_REFUSED[name]}: leave it out"
        raise StoreRefusedError(message)
    uri = path.startswith("file:") and (arguments.get("uri") or str(query.get("uri")).lower() in {"true", "1"})
    absolute = url if uri else url.set(database=str(Path(path).resolve()))
    return absolute.set(drivername="sqlite+pysqlite")


def _sqlite_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    ours = {"autocommit", "check_same_thread", "isolation_level", "iter_chunk_size", "loop", "timeout"}
    return {name: value for name, value in arguments.items() if name not in ours}


def _psycopg_url(url: URL) -> tuple[URL, dict[str, Any]]:
    """Return a pair (URL for psycopg, arguments). The arguments are the URL's options that psycopg does not accept in a URL."""
    if url.drivername not in _POSTGRES:
        message = f"{_safe_url(url)}: direct= is a URL of the same PostgreSQL, past the pooler: postgresql://..."
        raise StoreRefusedError(message)
    query: dict[str, Any] = dict(url.query)
    arguments: dict[str, Any] = {}
    if url.drivername == "postgresql+asyncpg":
        places: dict[str, Any] = {
            name: query.pop(name) for name in ("host", "port") if name in query
        }  # the options with which SQLAlchemy names several hosts
        query = {**places, **translate_asyncpg_arguments(query)}
        if "prepare_threshold" in query:
            arguments["prepare_threshold"] = query.pop("prepare_threshold")
        query = {name: value if isinstance(value, tuple) else str(value) for name, value in query.items()}
    return url.set(drivername="postgresql+psycopg", query=query), arguments


def _safe_url(url: URL) -> str:
    # The URL's query is left out, since it may hold secrets (?password=, ?sslpassword=).
    if url.drivername in _SQLITE:  # SQLAlchemy would escape the path, and show ":memory:" as "%3Amemory%3A"
        return f"{url.drivername}:///{url.database or ''}"
    return url.set(query={}).render_as_string(hide_password=True)
