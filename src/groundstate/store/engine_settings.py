"""Takes over the configuration of a user's engine besides its URL: the dialect's settings, execution options, listeners, `creator=`.

If the engine has a driver that groundstate uses, the engine makes groundstate's connections as it makes its own, but in another pool. If it
has another driver (psycopg2, or an async one), groundstate connects by the URL, and refuses by name what it cannot take over.
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
# Execution options that are not taken over: they would change how groundstate's transactions run, or what its statements return.
_NOT_TAKEN = frozenset({
    "autocommit", "compiled_cache", "isolation_level", "logging_token", "max_row_buffer", "no_parameters", "postgresql_deferrable",
    "postgresql_readonly", "preserve_rowcount", "stream_results", "yield_per",
})  # fmt: skip
_OURS_ALONE = frozenset({"check_same_thread", "isolation_level"})  # arguments of sqlite3 for which groundstate's values override the user's
_INET_AS_TEXT = frozenset({"psycopg2", "psycopg2cffi"})
_LISTENED = ("connect", "first_connect", "checkout")  # names of pool events whose listeners may prepare connections
_WATCHES = ("opentelemetry", "sentry_sdk", "ddtrace")  # packages whose listeners only observe connections, and so may be left out


@dataclass(frozen=True)
class Carried:
    """A Carried holds what groundstate takes over from a user's engine.

    source: the engine, if it makes groundstate's connections; None if groundstate connects by the URL. dialect: if source is None, the
    arguments of `create_engine` that take over the engine's JSON and INET settings. options: the engine's execution options. unheard: names
    of the engine's listeners that prepare its transactions, but are not called for groundstate's transactions.
    """

    source: Engine | None = None
    dialect: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    hide_parameters: bool = False
    unheard: tuple[str, ...] = ()


def settings_carried_by(engine: Engine, shown: str) -> Carried:
    """Return the configuration to take over from this engine. shown: the engine's URL without secrets, for messages.

    Raises:
        StoreRefusedError: a part of the configuration cannot be taken over; the message names that part and the cure.
    """
    options = {name: value for name, value in engine.get_execution_options().items() if name not in _NOT_TAKEN}
    _refuse_schema_translations(engine.dialect, options.get("schema_translate_map") or {}, shown)
    if (engine.dialect.name, engine.dialect.driver) in OURS and not engine.dialect.is_async:
        if not engine.url.database:
            message = f"{shown}: its URL names no database, by which it is told from others: write it into the URL as well, beside creator="
            raise StoreRefusedError(message)
        return Carried(engine, {}, options, engine.hide_parameters, _listeners_not_called(engine))
    _refuse_listeners(engine, shown)
    return Carried(
        None, dialect_arguments(engine.dialect, engine.dialect.name), options, engine.hide_parameters, _listeners_not_called(engine)
    )


def make_engine(url: URL, carried: Carried, arguments: Mapping[str, Any]) -> Engine:
    """Return an engine for groundstate, with a pool of its own. arguments: arguments of the driver, including the user's connect_args."""
    if carried.source is None:
        more = {"execution_options": dict(carried.options), "hide_parameters": carried.hide_parameters, **carried.dialect}
        return create_engine(url, connect_args=dict(arguments), poolclass=QueuePool, **more)
    source = carried.source
    pool = QueuePool(make_connector(carried, arguments), dialect=source.dialect)
    return Engine(pool, source.dialect, url, execution_options=dict(carried.options), hide_parameters=carried.hide_parameters)


def make_connector(carried: Carried, arguments: Mapping[str, Any]) -> Callable[[], Any]:
    """Return a function that makes driver connections as the user's engine does, with its `creator=` and listeners, but not in its pool.

    arguments: arguments of the driver, used where the engine sets none of the same name. A `creator=` does not get these arguments.
    """
    source = carried.source
    assert source is not None  # noqa: S101  # callers check it
    pool = source.pool.recreate()  # a separate pool, so that groundstate and the user's code never wait for each other's connections
    _listen_to_connecting(source)

    def connect() -> Any:
        with _connecting_with(arguments):
            lent = pool.connect()
        lent.detach()
        connection: Any = lent.dbapi_connection
        (_make_idle_sqlite if source.dialect.name == "sqlite" else _make_idle_psycopg)(connection, arguments)
        return connection

    return connect


def _make_idle_sqlite(connection: Any, _arguments: Mapping[str, Any]) -> None:
    """End any transaction of the connection, and turn off the BEGIN that sqlite3 sends, since groundstate sends every BEGIN itself."""
    connection.commit()  # ends a transaction that a listener may have begun
    if hasattr(connection, "autocommit"):  # Python 3.12 or newer
        connection.autocommit = sqlite3.LEGACY_TRANSACTION_CONTROL  # type: ignore[attr-defined]  # mypy checks for an older Python
    connection.isolation_level = None


def _make_idle_psycopg(connection: Any, arguments: Mapping[str, Any]) -> None:
    connection.commit()
    connection.autocommit = True
    if "prepare_threshold" in arguments:
        connection.prepare_threshold = arguments["prepare_threshold"]


def translated_schema(connection: Connection, table: Table) -> str | None:
    """Return the schema to which the connection's schema_translate_map translates the table's schema; None for the default schema."""
    translated: Mapping[str | None, str | None] = connection.get_execution_options().get("schema_translate_map") or {}
    return translated.get(table.schema, table.schema)


# ---- our driver arguments, while one of our connections is made -------------------------------------------------------------------
_said: ContextVar[Mapping[str, Any] | None] = ContextVar("groundstate_connects", default=None)
_told: WeakSet[Dialect] = WeakSet()


@contextmanager
def _connecting_with(arguments: Mapping[str, Any]) -> Iterator[None]:
    token = _said.set(arguments)
    try:
        yield
    finally:
        _said.reset(token)


def _listen_to_connecting(engine: Engine) -> None:
    if engine.dialect not in _told:
        _told.add(engine.dialect)
        event.listen(engine, "do_connect", _add_our_arguments)


def _add_our_arguments(_dialect: Any, _record: object, _cargs: list[Any], cparams: dict[str, Any]) -> None:
    """Add groundstate's driver arguments to the arguments in `cparams`, if the user's engine makes this connection for groundstate.

    It is a `do_connect` listener. For other connections of the engine it adds nothing.
    """
    for name, value in (_said.get() or {}).items():
        if name in _OURS_ALONE or name not in cparams:
            cparams[name] = value


def has_connect_listener(dialect: Dialect) -> bool:
    """Return whether the user has added a `do_connect` listener, which may make the connections itself or change their arguments."""
    return any(fn is not _add_our_arguments for fn in dialect.dispatch.do_connect)


# ---- what cannot be taken over -----------------------------------------------------------------------------------------------------
def _refuse_schema_translations(dialect: Dialect, schemas: Mapping[str | None, str | None], shown: str) -> None:
    for name, schema in schemas.items():
        if name not in (None, "_none", schema):  # when a map is used, SQLAlchemy adds the key '_none' to it, which stands for None
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


def _listeners_not_called(engine: Engine) -> tuple[str, ...]:
    """Return the names of the engine's listeners that are not called for groundstate's transactions.

    On SQLite, `begin` listeners are left out: they usually send the BEGIN, and groundstate sends its own.
    """
    names = ("engine_connect",) if engine.dialect.name == "sqlite" else ("engine_connect", "begin")
    dispatch: Any = engine.dispatch
    heard = [(name, fn) for name in names for fn in getattr(dispatch, name).listeners]
    return tuple(f"{fn.__module__}.{fn.__qualname__} ({name!r})" for name, fn in heard if not fn.__module__.startswith(_WATCHES))


def _refuse_listeners(engine: Engine, shown: str) -> None:
    for name in _LISTENED:
        theirs = [fn for fn in getattr(engine.pool.dispatch, name) if fn.__module__ != "sqlalchemy.engine.create"]
        if name == "connect":
            theirs = theirs[1:]  # the first listener was added by create_engine, and not by the user
        for fn in theirs:
            if not fn.__module__.startswith(_WATCHES):
                message = (
                    f"{shown}: {fn.__module__}.{fn.__qualname__} listens to {name!r} of an engine whose driver groundstate does not use,"
                    f" so that our connections would go without: give Store a sync engine"
                    f" ({_our_url_prefix(engine.dialect)}) that it listens to, or, where groundstate does not need it, the URL"
                )
                raise StoreRefusedError(message)


def _our_url_prefix(dialect: Dialect) -> str:
    return "sqlite:///" if dialect.name == "sqlite" else "postgresql+psycopg://"


def dialect_arguments(dialect: Dialect, on: str) -> dict[str, Any]:
    """Return arguments for `create_engine` with which another engine converts JSON, INET and CIDR as this dialect does.

    on: the name of the other engine's database, "sqlite" or "postgresql".
    """
    found = {name: getattr(dialect, f"_{name}", None) for name in ("json_serializer", "json_deserializer")}
    if on == dialect.name == "postgresql":
        # psycopg2 always reads INET and CIDR as text; the other drivers read them as objects, unless configured otherwise.
        found["native_inet_types"] = False if dialect.driver in _INET_AS_TEXT else getattr(dialect, "_native_inet_types", None)
    return {name: value for name, value in found.items() if value is not None}


# ---- connect_args ------------------------------------------------------------------------------------------------------------------
def connect_args_of(engine: Engine) -> Mapping[str, Any] | None:
    """Return the connect_args that `create_engine` was given; None if a function of the user makes the connections.

    They are read from the closure of SQLAlchemy's function that connects, since SQLAlchemy keeps them nowhere else.
    """
    creator = engine.pool._creator  # noqa: SLF001
    kept = inspect.getclosurevars(creator).nonlocals if inspect.isfunction(creator) else {}
    if "cparams" not in kept or creator.__module__ != "sqlalchemy.engine.create" or has_connect_listener(engine.dialect):
        return None
    by_url = engine.dialect.create_connect_args(engine.url)[1]
    return {name: value for name, value in kept["cparams"].items() if name not in by_url or by_url[name] != value}
