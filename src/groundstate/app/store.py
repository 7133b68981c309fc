"""Stores: a database, or several shards, and the user's tables in them. Opens no connection."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from sqlalchemy import URL, Dialect, Engine, MetaData, Table, inspect
from sqlalchemy.sql.expression import FromClause

from groundstate.store.connect import AsyncEngineLike, dialect_of, resolve_settings, sqlite_dialect_of
from groundstate.store.port import StoreSettings
from groundstate.store.safe_name import label_of_url
from groundstate.values.errors import DeclarationError

Database = str | URL | Engine | AsyncEngineLike


class _HasMetadata(Protocol):
    """The type of a class (not of its instances) with the attribute `metadata`, such as a declarative base or SQLModel."""

    metadata: MetaData


class Store:
    """One database and the tables in it. It connects when the app starts, not when it is declared.

    Args:
        database: a URL, an engine (groundstate connects with the same settings), or a function that returns one of these and is called at
            the start.
        owns: declarative bases, SQLModel, or MetaData whose tables are in this database.
        failover: "lossy" if a failover of this database can lose a commit, "lossless" if none can.
        direct: for PostgreSQL behind a pooler: a URL that does not lead through the pooler. A worker needs such a connection for the lock
            that shows that it is alive.
        witness: a folder for the witness files, on another disk than the database. Each worker records in its witness file how many calls
            it has begun, so that a restored backup is noticed.
        redact: a function that is applied to each error text before it is kept or logged.
        state: for SQLite: a folder on another disk than the database, for the count of begun calls. If left out, it is the state folder of
            the operating system's user.
        name: the name of the store in output and in commands; its URL if left out.

    Raises:
        DeclarationError: `owns` is empty, or has something in it that is no declarative base.
    """

    def __init__(  # noqa: PLR0913  # each parameter is an option of a store
        self,
        database: Database | Callable[[], Database],
        *owns: _HasMetadata | MetaData,
        failover: Literal["lossy", "lossless"] = "lossy",
        direct: str | URL | None = None,
        witness: str | os.PathLike[str] | None = None,
        redact: Callable[[str], str] | None = None,
        name: str | None = None,
        state: str | os.PathLike[str] | None = None,
    ) -> None:
        if not owns:
            raise DeclarationError("Store(database) owns no tables: name them by their base, as in Store(url, Base), Store(url, SQLModel)")
        if failover not in {"lossy", "lossless"}:
            raise DeclarationError(f"failover={failover!r}: it is 'lossy', or 'lossless' where no failover can lose a commit")
        self.name = None if name is None else _check_store_name(name)
        self._database = database
        self._direct = direct
        self._witness = witness
        self._state = state
        self.failover = failover
        self.redact = redact
        self.metadatas: tuple[MetaData, ...] = tuple(dict.fromkeys(_metadata_of(one) for one in owns))

    @classmethod
    def shards(  # noqa: PLR0913  # each parameter is an option of a sharded store
        cls,
        databases: Mapping[str, Database | Callable[[], Database]] | Sequence[Database | Callable[[], Database]],
        *owns: _HasMetadata | MetaData,
        name: str = "shard",
        failover: Literal["lossy", "lossless"] = "lossy",
        redact: Callable[[str], str] | None = None,
        direct: Mapping[str, str | URL] | None = None,
        witness: str | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
    ) -> ShardedStore:
        """Return a store of several databases with the same tables, each with its own rows and its own worker.

        Primary keys must be unique over all databases: idempotency keys are made of them, and must stay the same when a record moves to
        another database.

        Args:
            databases: the databases by their names. In a list they are named "shard-1", "shard-2" and so on.
            owns: declarative bases, SQLModel, or MetaData whose tables are in each of these databases.
            name: the prefix of the names of databases in a list.
            failover: whether a failover of one of the databases can lose a commit, as for `Store`.
            redact: a function that is applied to error texts of all databases, as for `Store`.
            direct: for PostgreSQL behind poolers: URLs that do not lead through the poolers, by the names of shards, as for `Store`.
            witness: a folder in which each shard gets a folder of its own for its witness files, as for `Store`.
            state: for SQLite: the folder for the counts of begun calls of all shards, as for `Store`.

        Raises:
            DeclarationError: there is no database, `direct` names an unknown shard, or a name cannot be used.
        """
        given = databases if isinstance(databases, Mapping) else {f"{name}-{number}": one for number, one in enumerate(databases, 1)}
        if isinstance(databases, str) or not given:
            raise DeclarationError("Store.shards([url, url], Base) takes several databases: a list, or a mapping of names to them")
        past = dict(direct or {})
        strange = sorted(past.keys() - given.keys())
        if strange:
            raise DeclarationError(f"direct={{{strange[0]!r}: ...}}: there is no such shard; there are {', '.join(given)}")
        return ShardedStore(
            Store(
                database,
                *owns,
                failover=failover,
                direct=past.get(one),
                witness=None if witness is None else Path(witness) / _check_store_name(one),
                redact=redact,
                name=one,
                state=state,
            )
            for one, database in given.items()
        )

    @property
    def databases(self) -> tuple[Store, ...]:
        """The databases of the store: the store itself, or each shard of a sharded store."""
        return (self,)

    @property
    def label(self) -> str:
        """The name of the store in output: its `name`, or its URL without user, password and driver."""
        return self.name or label_of_url(self.settings().url)

    def shard(self, name: str) -> Store:
        """Return the database with this name. Raises DeclarationError if there is none."""
        for one in self.databases:
            if one.name == name:
                return one
        named = ", ".join(one.name for one in self.databases if one.name) or "none with a name"
        raise DeclarationError(f"there is no shard {name!r}: there are {named}")

    def owns_table(self, table: FromClause) -> bool:
        """Whether this table is in the store's database."""
        return isinstance(table, Table) and any(table.metadata is metadata for metadata in self.metadatas)

    def owns_class(self, cls: type) -> bool:
        """Whether the table of this mapped class is in the store's database."""
        mapper: Any = inspect(cls, raiseerr=False)
        return mapper is not None and hasattr(mapper, "local_table") and self.owns_table(mapper.local_table)

    @property
    def sqlite_dialect(self) -> Dialect | None:
        """SQLAlchemy's SQLite dialect, if a database of the store is known to be SQLite.

        It is None if all databases are of another kind, or if their kind is known only at the start.
        """
        return next((known for part in self.databases if (known := sqlite_dialect_of(part._database)) is not None), None)  # noqa: SLF001 - an attribute of the same class

    @property
    def dialect(self) -> Dialect | None:
        """SQLAlchemy's dialect for the store's databases. It is None if the dialect is known only at the start."""
        return next((known for part in self.databases if (known := dialect_of(part._database)) is not None), None)  # noqa: SLF001 - of this class

    @property
    def engine(self) -> Engine | None:
        """The engine that the store was declared with, or the sync engine inside an async one. It is None for a URL or a function."""
        given = getattr(self._database, "sync_engine", self._database)
        return given if isinstance(given, Engine) else None

    def settings(self) -> StoreSettings:
        """Return the settings of the database. If the store was declared with a function, the function is called now.

        Raises:
            StoreRefusedError: this database cannot keep groundstate's promises; the message names the cure.
        """
        given: Any = self._database
        if callable(given) and not isinstance(given, Engine):
            given = given()
        return resolve_settings(given, self._direct, self._witness, self.failover, self._state)


class ShardedStore(Store):
    """A store of several databases, made by `Store.shards`. Each row is in one database, and no transaction spans several databases."""

    def __init__(self, parts: Iterable[Store]) -> None:
        self._parts = tuple(parts)
        first = self._parts[0]
        self.name = None
        self.failover, self.redact, self.metadatas = first.failover, first.redact, first.metadatas

    @property
    def databases(self) -> tuple[Store, ...]:
        """The shards of this store."""
        return self._parts

    @property
    def label(self) -> str:
        """The names of all shards, separated by commas."""
        return ", ".join(one.label for one in self._parts)

    def settings(self) -> StoreSettings:
        """Raise DeclarationError, since a sharded store has no single database."""
        raise DeclarationError(f"a sharded store is {len(self._parts)} databases: take one of its parts ({self.label})")


def _check_store_name(name: Any) -> str:
    if not isinstance(name, str) or not name or not all(one.isalnum() or one in "-_." for one in name) or name.startswith((".", "-")):
        raise DeclarationError(
            f"a store's name is made of letters, digits, '-', '_' and '.', and begins with a letter or a digit: {name!r}"
        )
    return name


def _metadata_of(owned: Any) -> MetaData:
    if isinstance(owned, MetaData):
        return owned
    if isinstance(owned, type) and "__table__" in vars(owned):
        raise DeclarationError(
            f"Store(..., {owned.__name__}): that is one mapped class; give its base (or its MetaData), which has all tables"
        )
    metadata = getattr(owned, "metadata", None)
    if not isinstance(metadata, MetaData):
        raise DeclarationError(f"Store(..., {owned!r}): give declarative bases, SQLModel or MetaData")
    return metadata
