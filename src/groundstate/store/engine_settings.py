"""Takes over what a user's engine carries besides its URL: the dialect's settings, execution options, listeners, `creator=`.

Where the engine's driver is one that we use, our connections are made by the user's engine as its own are, and belong to no pool of it.
Where it is another one (psycopg2, an async one) we connect by the URL, and what cannot be taken over then is refused by name.
"""

from __future__ import annotations

import inspect
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from sqlalchemy import URL, Connection, Dialect, Engine, QueuePool, Table, create_engine, event

from groundstate.values.errors import StoreRefusedError

OURS = {("sqlite", "pysqlite"), ("postgresql", "psycopg")}
# Execution options that are not taken over, since they would change how our transactions run or what our statements return.
_NOT_TAKEN = frozenset({
    "autocommit", "compiled_cache", "isolation_level", "logging_token", "max_row_buffer", "no_parameters", "postgresql_deferrable",
    "postgresql_readonly", "preserve_rowcount", "stream_results", "yield_per",
})  # fmt: skip
_OURS_ALONE = frozenset({"check_same_thread", "isolation_level"})  # sqlite3 arguments in which ours override the user's
_INET_AS_TEXT = frozenset({"psycopg2", "psycopg2cffi"})
_LISTENED = ("connect", "first_connect", "checkout")  # pool events in which a user may prepare connections
_WATCHES = ("opentelemetry", "sentry_sdk", "ddtrace")  # listeners of these packages only observe connections


@dataclass(frozen=True)
class Carried:
    """Holds what is taken over from one engine.

    source: the engine that makes our connections and has our dialect; None where we connect by its URL. dialect: arguments of
    `create_engine` for a dialect of our own, where there is no source. options: execution options. unheard: the engine's listeners that
    prepare its transactions, but are not called for ours.
    """

    source: Engine | None = None
    dialect: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    hide_parameters: bool = False
    unheard: tuple[str, ...] = ()


def carried_by(engine: Engine, shown: str) -> Carried:
    """Return what this engine carries. shown: its URL without secrets, for messages.

    Raises:
        StoreRefusedError: something cannot be taken over; the message has its name and the cure.
    """
    options = {name: value for name, value in engine.get_execution_options().items() if name not in _NOT_TAKEN}
    _check_schemas(engine.dialect, options.get("schema_translate_map") or {}, shown)
    if (engine.dialect.name, engine.dialect.driver) in OURS and not engine.dialect.is_async:
        if not engine.url.database:
            message = f"{shown}: its URL names no database, by which it is told from others: write it into the URL as well, beside creator="
            raise StoreRefusedError(message)
        return Carried(engine, {}, options, engine.hide_parameters, _unheard(engine))
    _refuse_listeners(engine, shown)
    return Carried(None, values_of(engine.dialect, engine.dialect.name), options, engine.hide_parameters, _unheard(engine))


def engine_of(url: URL, carried: Carried, arguments: Mapping[str, Any]) -> Engine:
    """Return an engine of our own, with a pool of its own. arguments: the driver's arguments, from us and from the user's connect_args."""
    if carried.source is None:
        more = {"execution_options": dict(carried.options), "hide_parameters": carried.hide_parameters, **carried.dialect}
        return create_engine(url, connect_args=dict(arguments), poolclass=QueuePool, **more)
    source = carried.source
    pool = QueuePool(connector(carried, arguments), dialect=source.dialect)
    return Engine(pool, source.dialect, url, execution_options=dict(carried.options), hide_parameters=carried.hide_parameters)


def connector(carried: Carried, arguments: Mapping[str, Any]) -> Callable[[], Any]:
    """Return a function that makes driver connections as the source engine makes its own, by its creator and its listeners. They are in no
    pool.

    arguments: the driver's, for what the source leaves open. A `creator=` does not get them.
    """
    source = carried.source
    assert source is not None  # noqa: S101  # not called where we connect by a URL
    pool = source.pool.recreate()  # a separate pool: neither side ever waits for a connection of the other
    _tell_the_creator(source)

    def connect() -> Any:
        with _saying(arguments):
            lent = pool.connect()
        lent.detach()
        connection: Any = lent.dbapi_connection
        (_rest_sqlite if source.dialect.name == "sqlite" else _rest_psycopg)(connection, arguments)
        return connection

    return connect


def _rest_sqlite(connection: Any, _arguments: Mapping[str, Any]) -> None:
    """Bring the connection into the state between two transactions, since we send every BEGIN ourselves."""
    connection.commit()  # a listener may have begun a transaction
    if hasattr(connection, "autocommit"):  # only since Python 3.12
        connection.autocommit = sqlite3.LEGACY_TRANSACTION_CONTROL  # type: ignore[attr-defined]  # newer than mypy's Python
    connection.isolation_level = None


def _rest_psycopg(connection: Any, arguments: Mapping[str, Any]) -> None:
    connection.commit()
    connection.autocommit = True
    if "prepare_threshold" in arguments:
        connection.prepare_threshold = arguments["prepare_threshold"]


def schema_of(connection: Connection, table: Table) -> str | None:
    """Return the schema of this table on this connection, as its engine translates schemas; for queries that name the table in SQL text."""
    translated: Mapping[str | None, str | None] = connection.get_execution_options().get("schema_translate_map") or {}
    return translated.get(table.schema, table.schema)


# ---- our driver arguments, while one of our connections is made -------------------------------------------------------------------
_said: ContextVar[Mapping[str, Any] | None] = ContextVar("groundstate_connects", default=None)
_told: WeakSet[Dialect] = WeakSet()


@contextmanager
def _saying(arguments: Mapping[str, Any]) -> Iterator[None]:
    token = _said.set(arguments)
    try:
        yield
    finally:
        _said.reset(token)


def _tell_the_creator(engine: Engine) -> None:
    if engine.dialect not in _told:
        _told.add(engine.dialect)
        event.listen(engine, "do_connect", _add_what_is_said)


def _add_what_is_said(_dialect: Any, _record: object, _cargs: list[Any], cparams: dict[str, Any]) -> None:
    """Add our driver arguments to a connection that the source engine makes for us; to its own connections, nothing is added."""
    for name, value in (_said.get() or {}).items():
        if name in _OURS_ALONE or name not in cparams:
            cparams[name] = value


def listens_to_connecting(dialect: Dialect) -> bool:
    """Return whether the user has a `do_connect` listener, which makes this dialect's connections or changes their arguments."""
    return any(fn is not _add_what_is_said for fn in dialect.dispatch.do_connect)


# ---- what cannot be taken over -----------------------------------------------------------------------------------------------------
def _check_schemas(dialect: Dialect, schemas: Mapping[str | None, str | None], shown: str) -> None:
    for name, schema in schemas.items():
        if name not in (None, "_none", schema):  # SQLAlchemy itself adds '_none' beside None once the map was used
            message = (
                f"{shown}: schema_translate_map puts {schema!r} in the place of {name!r}, and groundstate asks for tables by the schema"
                " that they are declared with: declare them without one, and translate None"
            )
            raise StoreRefusedError(message)
        if schema not in (name, None, "main") and dialect.name == "sqlite":
            message = (
                f"{shown}: schema_translate_map leads to {schema!r}, and on SQLite groundstate works in the file's own schema: leave it out"
            )
            raise StoreRefusedError(message)


def _unheard(engine: Engine) -> tuple[str, ...]:
    """Return this engine's listeners that our transactions do not call. On SQLite, `begin` listeners are left out: they send the BEGIN, as
    we do.
    """
    names = ("engine_connect",) if engine.dialect.name == "sqlite" else ("engine_connect", "begin")
    dispatch: Any = engine.dispatch
    heard = [(name, fn) for name in names for fn in getattr(dispatch, name).listeners]
    return tuple(f"{fn.__module__}.{fn.__qualname__} ({name!r})" for name, fn in heard if not fn.__module__.startswith(_WATCHES))


def _refuse_listeners(engine: Engine, shown: str) -> None:
    for name in _LISTENED:
        theirs = [fn for fn in getattr(engine.pool.dispatch, name) if fn.__module__ != "sqlalchemy.engine.create"]
        if name == "connect":
            theirs = theirs[1:]  # the first is create_engine's own, for the first connection
        for fn in theirs:
            if not fn.__module__.startswith(_WATCHES):
                message = (
                    f"{shown}: {fn.__module__}.{fn.__qualname__} listens to {name!r} of an engine whose driver groundstate does not use,"
                    f" so that our connections would go without: give Store a sync engine ({_of_ours(engine.dialect)}) that it listens to,"
                    " or, where groundstate does not need it, the URL"
                )
                raise StoreRefusedError(message)


def _of_ours(dialect: Dialect) -> str:
    return "sqlite:///" if dialect.name == "sqlite" else "postgresql+psycopg://"


def values_of(dialect: Dialect, on: str) -> dict[str, Any]:
    """Return arguments of `create_engine` for a dialect of our own that writes and reads JSON, INET and CIDR as this one does.

    on: the backend of our dialect, "sqlite" or "postgresql".
    """
    found = {name: getattr(dialect, f"_{name}", None) for name in ("json_serializer", "json_deserializer")}
    if on == dialect.name == "postgresql":
        # psycopg2 always reads INET and CIDR as text; the other drivers read them as objects, unless configured otherwise.
        found["native_inet_types"] = False if dialect.driver in _INET_AS_TEXT else getattr(dialect, "_native_inet_types", None)
    return {name: value for name, value in found.items() if value is not None}


# ---- connect_args ------------------------------------------------------------------------------------------------------------------
def connect_args_of(engine: Engine) -> Mapping[str, Any] | None:
    """Return the connect_args that `create_engine` was given; None where a function of the user's makes the connections.

    SQLAlchemy keeps them only in the closure of the function that connects, so they are read from there.
    """
    creator = engine.pool._creator  # noqa: SLF001
    kept = inspect.getclosurevars(creator).nonlocals if inspect.isfunction(creator) else {}
    if "cparams" not in kept or creator.__module__ != "sqlalchemy.engine.create" or listens_to_connecting(engine.dialect):
        return None
    by_url = engine.dialect.create_connect_args(engine.url)[1]
    return {name: value for name, value in kept["cparams"].items() if name not in by_url or by_url[name] != value}
