"""Declares the protocols by which the engine uses a database, and the locks that show which workers are alive.

The modules `sqlite`, `postgres` and others beside this one implement the protocols. They contain no statements on records and attempts:
the engine writes those statements in SQLAlchemy, for both databases alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import URL, ColumnElement, Connection, Engine, Select, Table

from groundstate.clock import Clock, Dice
from groundstate.store.engine_settings import Carried
from groundstate.store.statement_timeouts import Limit
from groundstate.values.errors import StoreRefusedError

# There are three ranges of lock numbers: for worker incarnations (numbers of 62 random bits), for slots (the calls that a `limit=` allows
# at once), and for locks that end with a transaction. This is the first number of a slot.
SLOTS_FROM = 2**62
TURNS_FROM = 2**62 + 2**61  # first number of a lock that ends with its transaction (PostgreSQL); the last number is 2^63 - 1


@dataclass(frozen=True)
class StoreSettings:
    """A StoreSettings holds the checked arguments of a `Store`.

    Attributes:
        url: a URL with the driver that groundstate uses.
        connect_args: arguments of the driver; empty if a function of the user makes the connections.
        direct: a URL that bypasses a pooler, for the lock that shows that a worker is alive; None if `url` serves for that.
        witness: the folder for witness files (counts of begun calls); None means the database's folder on SQLite, and none on PostgreSQL.
        failover: "lossy", or "lossless" if no failover of the database can lose a commit.
        state: SQLite only: the folder for the highest count of begun calls; None means the user's state folder.
        carried: what is taken over from the user's engine.
    """

    url: URL
    connect_args: dict[str, Any]
    direct: URL | None = None
    witness: str | None = None
    failover: str = "lossy"
    state: str | None = None
    carried: Carried = field(default_factory=Carried)


class Database(Protocol):
    """A Database is one SQLite or PostgreSQL database. Creating the object does not connect; `connect` does, and checks the database."""

    engine: Engine
    settings: StoreSettings
    name: str  # kind of the database: "sqlite" or "postgresql"
    locks_rows: bool  # whether `with_row_locks` adds locks; False on SQLite, where a transaction locks the whole database
    codec: str  # name of Python's codec for the database's encoding; text that the codec cannot encode cannot be stored
    high_water: HighWater | None  # keeps, outside of the database, the highest count of begun calls; None on PostgreSQL
    clock: Clock  # the clock for all work on this database: the system's clock, until a worker sets its own
    dice: Dice  # the source of random numbers for all work on this database: the system's, until a worker sets its own

    @property
    def server_id_sql(self) -> ColumnElement[str | None]:
        """Return SQL for a text that identifies the running server; NULL on SQLite. A restart or failover changes the text."""
        ...

    @property
    def server_start(self) -> ColumnElement[str | None]:
        """Return SQL for JSON text that identifies the server's start, its last crash recovery and its timeline; NULL on SQLite.

        If the text has changed, the server freed all locks at once in the meantime.
        """
        ...

    @property
    def uptime_s(self) -> ColumnElement[float | None]:
        """Return SQL for the seconds, by the server's clock, since the server started or recovered from a crash; NULL on SQLite."""
        ...

    @property
    def insert_function(self) -> Callable[[Table], Any]:
        """Return the function that makes an INSERT for a table, from the database's SQLAlchemy dialect; it supports ON CONFLICT."""
        ...

    def __hash__(self) -> int:
        """Return a hash by identity, since Database objects are keys of caches."""
        ...

    def connect(self) -> None:
        """Connect, and check the version, the durability and the file system of the database. A second call does nothing.

        Raises StoreRefusedError, which names the cure, if the database is unsuitable.
        """

    def writing(self, *, wait: timedelta | None = None) -> AbstractContextManager[Connection]:
        """Open a transaction that may write; yield its connection. It commits at the end, and rolls back on any exception.

        wait: how long a statement waits for a lock; None means 5 seconds. Raises StoreRefusedError on a standby server.
        """

    def reading(self, *, wait: timedelta | None = None) -> AbstractContextManager[Connection]:
        """Open a read-only transaction, in which the database refuses writes; yield its connection. It works on a standby server too.

        wait: how long a statement waits for a locked table; None means 5 seconds.
        """

    def limit_statement(self, connection: Connection, seconds: float) -> AbstractContextManager[Limit]:
        """Limit the block to `seconds` seconds: after that time a statement that still runs on this connection is cancelled, and raises."""

    def now(self, ahead: timedelta = timedelta()) -> ColumnElement[datetime]:
        """Return SQL for the time by the database's clock plus `ahead`, as a UtcDateTime in milliseconds. The SQL has no parameters.

        Within a transaction the time stays the same on PostgreSQL; on SQLite each statement has its own time.
        """

    def with_row_locks(self, select: Select[Any], *of: Any) -> Select[Any]:
        """Return the select with FOR NO KEY UPDATE SKIP LOCKED: it locks the rows of the tables `of`, and skips rows that others locked.

        On SQLite return the select unchanged.
        """

    def raise_if_unusable(self) -> None:
        """Raise OperationalError while the server does not answer; on SQLite raise StoreRefusedError if the file was replaced."""

    def has_someone_written(self) -> bool:
        """Return whether another connection may have written since the last call of this method; always True on PostgreSQL."""

    def identity(self) -> str | None:
        """Return a text that changes when the database is restored from a backup (hazard 46).

        Return None if groundstate's tables are missing. On SQLite the result is always None: there the caller makes a random text, and
        stores it.
        """

    def missing_file(self) -> str | None:
        """Return the path of the database's file if the file does not exist yet; else None, and always None on PostgreSQL."""

    def refusal_for_error(self, error: BaseException | None) -> StoreRefusedError | None:
        """Return a StoreRefusedError, which names the cure, if a driver's error shows that the database is unsuitable; else None."""

    def close(self) -> None:
        """Close every connection."""


class Liveness(Protocol):
    """A Liveness takes the lock of a worker incarnation (a worker from taking its lock to losing it). The lock ends with the worker's
    process.

    Each incarnation has its lock on a separate connection or file. One object serves one incarnation at a time. In a forked child its
    methods raise, and the child must not keep the lock alive. server, server_start: texts that identify the server with the lock, as the
    properties of `Database` with these names do; None on SQLite, and before `take_lock`.
    """

    server: str | None
    server_start: str | None

    def take_lock(self, worker: int) -> None:
        """Begin a worker incarnation: take its lock, and check that nobody else can take the lock now.

        Raises StoreRefusedError, which names the cure, if the lock does not keep others out, as may happen behind a pooler.
        """

    def has_lock(self, *, ask: bool = False) -> bool:
        """Return whether this incarnation certainly still holds its own lock, and therefore also the locks that `try_to_adopt` took.

        It is cheap, and is called each second. ask: whether to query the server. Without a query, a loss of the lock may be noticed only
        later.
        """

    def try_to_adopt(self, worker: int) -> AbstractContextManager[bool]:
        """Try to take the lock of another incarnation, and hold it while the block runs.

        Yield True if the lock was free, so that the other worker is dead; else yield False.
        """

    def alive_by_worker(self, workers: Sequence[int]) -> dict[int, bool | None]:
        """Return for each incarnation whether its lock is taken, so that it is alive; None where that cannot be seen, as on a standby.

        It takes no lock.
        """

    def take_slots(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> set[int]:
        """Take slots (locks with numbers, each allowing one call), which end with this incarnation, and return the numbers of those taken.

        It never waits. It takes no slots if the incarnation's own lock may be lost.

        Args:
            wanted: for each group of slots a pair (largest number of slots to take, numbers to choose from). The numbers are SLOTS_FROM or
                more, and the incarnation must not hold any of them already.
        """

    def give_slots_back(self, slots: Collection[int]) -> None:
        """Free these slots, which this incarnation holds. It keeps its own lock and its other slots."""

    def release(self) -> None:
        """End the incarnation: free its lock and its slots. A second call does nothing."""


class Witness(Protocol):
    """A Witness keeps outside of the database how many calls each worker incarnation has begun. A restore of the database does not set the
    number back.

    The number is written after the commit that begins calls.
    """

    def write(self, worker: int, count: int) -> None:
        """Write how many calls this worker incarnation has begun, without fsync. Never raises; only the first error is logged."""

    def read(self) -> dict[int, int]:
        """Return the number of begun calls that was written, by worker incarnation."""

    def delete_count_of(self, worker: int) -> None:
        """Delete the number of a worker incarnation. Call it before the incarnation's row in groundstate_worker is deleted."""

    def path_of(self, worker: int) -> str:
        """Return the path of the file with the number of this worker incarnation, for messages."""


class HighWater(Protocol):
    """A HighWater keeps the highest count of begun calls of a store (a database), in a file outside of the database's folder."""

    def highest_count(self, store: str) -> int | None:
        """Return the highest count that was kept for the store with this id; None if none was kept. Never raises."""

    def keep_if_higher(self, store: str, count: int) -> None:
        """Write the count if it is higher than the count in the file, without fsync. Never raises; only the first error is logged."""

    def close(self) -> None:
        """Close the open files, but do not delete them."""


Opened = tuple[Database, Callable[[], Liveness], Witness | None]
