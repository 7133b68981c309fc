"""A database, or several, and the tables of the user's that lie there. Says what is where; connects to nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from sqlalchemy import URL, Dialect, Engine, MetaData, Table, inspect
from sqlalchemy.sql.expression import FromClause

from groundstate.store.naming import name_of
from groundstate.store.opening import AsyncEngineLike, settings_of, sqlite_dialect
from groundstate.store.port import Settings
from groundstate.values.errors import DeclarationError

Database = str | URL | Engine | AsyncEngineLike


class _Base(Protocol):
    """A declarative base, SQLModel, or whatever else has tables in a MetaData: the class itself, and no instance of it."""

    metadata: MetaData


class Store:
    """One database and the tables it owns. Connects when the app starts, not when it is declared.

    Args:
        database: a URL, an engine of yours (our connections are made as its own are), or a function that returns one, called at the start.
        owns: declarative bases, SQLModel, or MetaData whose tables lie in this database.
        failover: "lossy"; "lossless" where no failover of this database can lose a commit.
        direct: PostgreSQL behind a pooler: a URL past it, for the lock that tells who is alive.
        witness: a folder on another disk than the database, for what each life remembers of it.
        redact: what is done to each error text before it is kept or logged.
        state: SQLite: a folder for the count of begun calls, on another disk than the database; the user's own state folder where left out.
        name: by which it is shown, and named to commands; its URL where it has none.

    Raises:
        DeclarationError: it owns nothing, or what is no declarative base.
    """

    def __init__(  # noqa: PLR0913  # the options of a store
        self,
        database: Database | Callable[[], Database],
        *owns: _Base | MetaData,
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
        self.name = None if name is None else _checked_name(name)
        self._database = database
        self._direct = direct
        self._witness = witness
        self._state = state
        self.failover = failover
        self.redact = redact
        self.metadatas: tuple[MetaData, ...] = tuple(dict.fromkeys(_metadata_of(one) for one in owns))

    @classmethod
    def shards(  # noqa: PLR0913  # as above
        cls,
        databases: Mapping[str, Database | Callable[[], Database]] | Sequence[Database | Callable[[], Database]],
        *owns: _Base | MetaData,
        name: str = "shard",
        failover: Literal["lossy", "lossless"] = "lossy",
        redact: Callable[[str], str] | None = None,
        direct: Mapping[str, str | URL] | None = None,
        witness: str | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
    ) -> Shards:
        """The same tables in several databases, each with its own rows: a reaction is carried out on each, by a worker of its own.

        Primary keys must be unique over all of them, since the keys of calls are made of them and must stay when a record moves.

        Args:
            databases: by their names; of a list the names are "shard-1", "shard-2" and so on.
            owns: declarative bases, SQLModel, or MetaData whose tables lie in each of these databases.
            name: what such names begin with.
            failover: as of a store; for each of them.
            redact: as of a store; for each of them.
            direct: by the names of shards, URLs past their poolers.
            witness: a folder, in which each shard has one of its own.
            state: as of a store; one folder for all of them.

        Raises:
            DeclarationError: there is none, or two have one name.
        """
        given = databases if isinstance(databases, Mapping) else {f"{name}-{number}": one for number, one in enumerate(databases, 1)}
        if isinstance(databases, str) or not given:
            raise DeclarationError("Store.shards([url, url], Base) takes several databases: a list, or a mapping of names to them")
        past = dict(direct or {})
        strange = sorted(past.keys() - given.keys())
        if strange:
            raise DeclarationError(f"direct={{{strange[0]!r}: ...}}: there is no such shard; there are {', '.join(given)}")
        return Shards(
            Store(
                database,
                *owns,
                failover=failover,
                direct=past.get(one),
                witness=None if witness is None else Path(witness) / _checked_name(one),
                redact=redact,
                name=one,
                state=state,
            )
            for one, database in given.items()
        )

    @property
    def parts(self) -> tuple[Store, ...]:
        """The databases: this one; of a sharded store each shard."""
        return (self,)

    @property
    def label(self) -> str:
        """By which it is shown: its name, or its URL without user, password and driver."""
        return self.name or name_of(self.settings().url)

    def shard(self, name: str) -> Store:
        """One of its databases, by name. Raises DeclarationError."""
        for one in self.parts:
            if one.name == name:
                return one
        named = ", ".join(one.name for one in self.parts if one.name) or "none with a name"
        raise DeclarationError(f"there is no shard {name!r}: there are {named}")

    def owns_table(self, table: FromClause) -> bool:
        """Whether this table lies in this store's database."""
        return isinstance(table, Table) and any(table.metadata is metadata for metadata in self.metadatas)

    def owns_class(self, cls: type) -> bool:
        """Whether this mapped class has its table in this store's database."""
        mapper: Any = inspect(cls, raiseerr=False)
        return mapper is not None and hasattr(mapper, "local_table") and self.owns_table(mapper.local_table)

    @property
    def sqlite_dialect(self) -> Dialect | None:
        """SQLAlchemy's dialect where one of its databases is surely SQLite; None where none is, or it will be known at the start alone."""
        return next((known for part in self.parts if (known := sqlite_dialect(part._database)) is not None), None)  # noqa: SLF001 - of this class

    @property
    def engine(self) -> Engine | None:
        """The engine that it was given, of an async one the engine inside; None where it was given a URL, or a function."""
        given = getattr(self._database, "sync_engine", self._database)
        return given if isinstance(given, Engine) else None

    def settings(self) -> Settings:
        """The database, resolved; a function that was given is called now.

        Raises:
            StoreRefused: this database cannot keep the promises; with the cure.
        """
        given: Any = self._database
        if callable(given) and not isinstance(given, Engine):
            given = given()
        return settings_of(given, self._direct, self._witness, self.failover, self._state)


class Shards(Store):
    """A store of several databases. Made by `Store.shards`; nothing is ever in all of them at once."""

    def __init__(self, parts: Iterable[Store]) -> None:
        self._parts = tuple(parts)
        first = self._parts[0]
        self.name = None
        self.failover, self.redact, self.metadatas = first.failover, first.redact, first.metadatas

    @property
    def parts(self) -> tuple[Store, ...]:
        """Each shard."""
        return self._parts

    @property
    def label(self) -> str:
        """The names of its shards."""
        return ", ".join(one.label for one in self._parts)

    def settings(self) -> Settings:
        """There is no one database. Raises DeclarationError."""
        raise DeclarationError(f"a sharded store is {len(self._parts)} databases: take one of its parts ({self.label})")


def _checked_name(name: Any) -> str:
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
