"""A database and the tables of the user's that lie in it. Says what is where; connects to nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol

from sqlalchemy import URL, Engine, MetaData, Table, inspect
from sqlalchemy.sql.expression import FromClause

from groundstate.store.opening import AsyncEngineLike, settings_of
from groundstate.store.port import Settings
from groundstate.values.errors import DeclarationError

Database = str | URL | Engine | AsyncEngineLike


class _Base(Protocol):
    """A declarative base, SQLModel, or whatever else has tables in a MetaData."""

    metadata: ClassVar[MetaData]


class Store:
    """One database and the tables it owns. Connects when the app starts, not when it is declared.

    Args:
        database: a URL, an engine of yours (its URL and connect_args are taken), or a function that returns one, called at the start.
        owns: declarative bases, SQLModel, or MetaData whose tables lie in this database.
        failover: "lossy"; "lossless" where no failover of this database can lose a commit.
        direct: PostgreSQL behind a pooler: a URL past it, for the lock that tells who is alive.
        witness: a folder on another disk than the database, for what each life remembers of it.
        redact: what is done to each error text before it is kept or logged.

    Raises:
        DeclarationError: it owns nothing, or what is no declarative base.
    """

    def __init__(
        self,
        database: Database | Callable[[], Database],
        *owns: type[_Base] | MetaData,
        failover: Literal["lossy", "lossless"] = "lossy",
        direct: str | URL | None = None,
        witness: str | os.PathLike[str] | None = None,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        if not owns:
            raise DeclarationError("Store(database) owns no tables: name them by their base, as in Store(url, Base), Store(url, SQLModel)")
        if failover not in {"lossy", "lossless"}:
            raise DeclarationError(f"failover={failover!r}: it is 'lossy', or 'lossless' where no failover can lose a commit")
        self._database = database
        self._direct = direct
        self._witness = witness
        self.failover = failover
        self.redact = redact
        self.metadatas: tuple[MetaData, ...] = tuple(dict.fromkeys(_metadata_of(one) for one in owns))

    def owns_table(self, table: FromClause) -> bool:
        """Whether this table lies in this store's database."""
        return isinstance(table, Table) and any(table.metadata is metadata for metadata in self.metadatas)

    def owns_class(self, cls: type) -> bool:
        """Whether this mapped class has its table in this store's database."""
        mapper: Any = inspect(cls, raiseerr=False)
        return mapper is not None and hasattr(mapper, "local_table") and self.owns_table(mapper.local_table)

    def settings(self) -> Settings:
        """The database, resolved; a function that was given is called now.

        Raises:
            StoreRefused: this database cannot keep the promises; with the cure.
        """
        given: Any = self._database
        if callable(given) and not isinstance(given, Engine):
            given = given()
        return settings_of(given, self._direct, self._witness, self.failover)


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
