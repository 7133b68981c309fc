"""Declares what the engine needs of a database, and of the locks that show which workers are alive. The drivers `sqlite` and `postgres`
implement it.

Nothing here says what to carry out: statements over records and attempts are the engine's, in SQLAlchemy, the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import URL, ColumnElement, Connection, Engine, Select, Table

from groundstate.store.engine_settings import Carried
from groundstate.store.statement_timeouts import Limit
from groundstate.values.errors import StoreRefusedError

# Worker incarnations, slots and locks of one transaction have separate ranges of lock numbers: an incarnation has 62 random bits, and no
# number may exceed 2^63 - 1.
SLOTS_FROM = 2**62
TURNS_FROM = 2**62 + 2**61  # up to 2^63 - 1: transaction-level locks on PostgreSQL, in a range that no session-level lock uses


@dataclass(frozen=True)
class Settings:
    """Holds what a `Store` was given, resolved: the URL of a sync driver, and what goes with it.

    direct: the URL for the liveness lock, past a pooler; `url` where None. witness: the folder for witness files; None: beside the SQLite
    file, none on PostgreSQL. state: SQLite only: the folder for the high-water mark of begins; None: in the user's state folder. carried:
    what the user's engine carries besides; connect_args are part of it where that engine makes our connections.
    """

    url: URL
    connect_args: dict[str, Any]
    direct: URL | None = None
    witness: str | None = None
    failover: str = "lossy"
    state: str | None = None
    carried: Carried = field(default_factory=Carried)


class Database(Protocol):
    """Declares one database. It connects at `connect`, not before; what cannot keep the promises is refused there (StoreRefusedError, with
    the cure).
    """

    engine: Engine
    settings: Settings
    name: str  # "sqlite" or "postgresql"
    locks_rows: bool  # whether `lock` does anything: on SQLite a transaction locks the whole database
    codec: str  # Python's codec of the database's encoding: text that it cannot encode cannot be stored
    high_water: HighWater | None  # the highest count of begun calls; None on PostgreSQL

    @property
    def server(self) -> ColumnElement[str | None]:
        """Return SQL that identifies the server of a transaction: it differs between servers, and before and after a restart or failover.
        NULL on SQLite.
        """
        ...

    @property
    def server_start(self) -> ColumnElement[str | None]:
        """Return SQL for JSON text that is the same for as long as the server keeps the locks of its sessions: its start, its last crash
        recovery, its timeline. Where two such texts differ, all locks were freed at once in between. NULL on SQLite.
        """
        ...

    @property
    def up_s(self) -> ColumnElement[float | None]:
        """Return SQL for the seconds since the server was started, or recovered from the crash of a backend, by its own clock. NULL on
        SQLite.
        """
        ...

    @property
    def insert(self) -> Callable[[Table], Any]:
        """Return the dialect's INSERT construct, which supports ON CONFLICT."""
        ...

    def __hash__(self) -> int:
        """Hash by identity, since statements are cached for each database."""
        ...

    def connect(self) -> None:
        """Connect, and check version, durability and file system. Idempotent."""

    def writing(self, *, wait: timedelta | None = None) -> AbstractContextManager[Connection]:
        """Open a transaction that writes: BEGIN IMMEDIATE on SQLite; on PostgreSQL with lock_timeout and statement_timeout of our own.

        It commits at the end, and rolls back on any exception. `wait`: how long to wait for a lock, 5 s where None. Raises
        StoreRefusedError on a standby.
        """

    def reading(self, *, wait: timedelta | None = None) -> AbstractContextManager[Connection]:
        """Open a read-only transaction, in which the database itself refuses writes; works on a standby. It keeps nothing.

        `wait`: how long to wait for a table that is locked, 5 s where None.
        """

    def limit(self, connection: Connection, seconds: float) -> AbstractContextManager[Limit]:
        """Cut a statement that still runs on this connection after `seconds` in the block: it raises as by the database's own limit."""

    def now(self, ahead: timedelta = timedelta()) -> ColumnElement[datetime]:
        """Return SQL for the database's clock, moved `ahead`: one value per transaction on PostgreSQL, one per statement on SQLite.

        Its type is UtcDateTime, and it is plain SQL text without parameters. Precise to the millisecond.
        """

    def lock(self, select: Select[Any], *of: Any) -> Select[Any]:
        """Return the select with row locks on `of`, rows locked by others skipped: FOR NO KEY UPDATE SKIP LOCKED; unchanged on SQLite."""

    def refuse_silent(self) -> None:
        """Raise OperationalError while the server is known not to answer at all. SQLite raises StoreRefusedError once its file was
        replaced.
        """

    def someone_wrote(self) -> bool:
        """Return whether another connection may have written since the last call: `PRAGMA data_version`; always True on PostgreSQL."""

    def identity(self) -> str | None:
        """Return text that changes when the database is put back from a backup (hazard 46); None where the server has no such sign, or our
        tables are missing.

        SQLite returns None: its identity is random text, made by the code that stores it.
        """

    def missing(self) -> str | None:
        """Return the path of the database's file where opening would create it, since it does not exist yet; otherwise None. PostgreSQL
        returns None.
        """

    def refusal(self, error: BaseException | None) -> StoreRefusedError | None:
        """Return what a driver's error says against the database itself, with the cure; None where it says nothing."""

    def close(self) -> None:
        """Close every connection."""


class Liveness(Protocol):
    """Declares locks that end with their holder: one for each worker incarnation, on a separate connection or file that is otherwise idle.

    One object serves one incarnation at a time. A forked child must not use it (it raises) and must not keep the lock alive. server,
    server_start: what the properties of `Database` with these names return where the lock is; None where there is no server, and before
    `take`.
    """

    server: str | None
    server_start: str | None

    def take(self, worker: int) -> None:
        """Begin a worker incarnation: take its lock, and prove that it excludes others (the pooler probe). Raises StoreRefusedError with
        the cure.
        """

    def held(self, *, ask: bool = False) -> bool:
        """Return whether the lock of this incarnation is surely still held; False once it may be lost. It is cheap: called each second.

        ask: query the server too, since news of a lost lock may still be on the way. While the lock is held, so is each lock that
        `adopting` took.
        """

    def adopting(self, worker: int) -> AbstractContextManager[bool]:
        """Take the lock of another incarnation while the block runs: yield True where its worker is dead and
        the lock is ours, else False.
        """

    def alive(self, workers: Sequence[int]) -> dict[int, bool | None]:
        """Return for each incarnation whether its lock is taken, without taking any. None where that cannot be seen (a standby)."""

    def take_slots(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> set[int]:
        """Take further locks that end with this incarnation: of each group of numbers as many as are wanted and free. Never waits.

        Returns the numbers that were taken, of all groups; none once the incarnation's own lock may be lost. The numbers are from
        SLOTS_FROM on, and none of them may be held already.
        """

    def give_slots_back(self, slots: Collection[int]) -> None:
        """Free these slots, which this incarnation holds. The incarnation goes on."""

    def release(self) -> None:
        """End the incarnation, and free its slots. Idempotent."""


class Witness(Protocol):
    """Declares a begin counter outside of the database: 16 bytes (number, count) for each worker incarnation, written after a begin's
    commit. A restore of the database does not set it back.
    """

    def write(self, worker: int, count: int) -> None:
        """Write the count of begun calls; without fsync. Never raises: an error is logged once, and there is no witness then."""

    def read(self) -> dict[int, int]:
        """Return the count of each incarnation that has a witness here."""

    def erase(self, worker: int) -> None:
        """Delete the witness of an incarnation, before its row in groundstate_worker is deleted."""

    def place(self, worker: int) -> str:
        """Return where the witness of this incarnation is, for messages."""


class HighWater(Protocol):
    """Declares the highest count of begun calls that was seen of a store at its path, in a file outside of
    the database and of its folder.
    """

    def highest(self, store: str) -> int | None:
        """Return the highest count kept of the store of this id; None where nothing is kept. Never raises."""

    def keep(self, store: str, count: int) -> None:
        """Keep the count if it is higher than the one that is kept; without fsync. Never raises: an error is logged once."""

    def close(self) -> None:
        """Close its files, which stay on the disk."""


Opened = tuple[Database, Callable[[], Liveness], Witness | None]
