"""What the engine asks of a database, and of the locks that tell who is alive. Promises only; the drivers are `sqlite` and `postgres`.

Nothing here says what to carry out: statements over records and attempts are the engine's, in SQLAlchemy, the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import URL, ColumnElement, Connection, Engine, Select, Table

from groundstate.store.carried import Carried
from groundstate.store.limits import Limit
from groundstate.values.errors import StoreRefused

# Lives, slots and the locks of one transaction are numbered apart: a life has 62 random bits, and no lock may end past 2^63 - 1.
SLOTS_FROM = 2**62
TURNS_FROM = 2**62 + 2**61  # to 2^63 - 1: of PostgreSQL's transactions, by their own key space no session's


@dataclass(frozen=True)
class Settings:
    """What a `Store` was given, resolved: the URL of a sync driver, and what goes with it.

    direct: the URL for the lock, past a pooler; `url` where None. witness: the folder for witness files; None: beside the SQLite file,
    none on PostgreSQL. state: SQLite alone: the folder for the high-water mark of begins; None: in the user's state folder.
    carried: what the user's engine carries besides; connect_args are in it already where it makes our connections.
    """

    url: URL
    connect_args: dict[str, Any]
    direct: URL | None = None
    witness: str | None = None
    failover: str = "lossy"
    state: str | None = None
    carried: Carried = field(default_factory=Carried)


class Database(Protocol):
    """One database. Connects at `connect`, not before; refuses there what cannot keep the promises (StoreRefused, with the cure)."""

    engine: Engine
    settings: Settings
    name: str  # "sqlite" or "postgresql"
    locks_rows: bool  # whether `lock` does anything: on SQLite the transaction is the lock
    codec: str  # Python's name of an encoding in which the database can hold every text that is written to it
    high_water: HighWater | None  # of the calls that were ever begun here; None on PostgreSQL

    @property
    def server(self) -> ColumnElement[str | None]:
        """What tells the server that runs a transaction from every other one, before and after a restart or a failover. NULL on SQLite."""
        ...

    @property
    def incarnation(self) -> ColumnElement[str | None]:
        """JSON text that is the same for as long as the server keeps the locks of its sessions: its start, its last crash recovery, its
        timeline. Two that differ are of times between which all locks were freed at once. NULL on SQLite.
        """
        ...

    @property
    def up_s(self) -> ColumnElement[float | None]:
        """Seconds since the server was started, or recovered from the crash of a backend, by its own clock. NULL on SQLite."""
        ...

    @property
    def insert(self) -> Callable[[Table], Any]:
        """The dialect's INSERT, which can say ON CONFLICT."""
        ...

    def __hash__(self) -> int:
        """By identity: statements are kept for each database."""
        ...

    def connect(self) -> None:
        """Builds the engine and checks version, durability, file system. Idempotent."""

    def writing(self, *, wait: timedelta | None = None) -> AbstractContextManager[Connection]:
        """A transaction that writes: BEGIN IMMEDIATE on SQLite; on PostgreSQL with lock_timeout and statement_timeout of our own.

        Commits at the end, rolls back on any exception. `wait`: how long to wait for a lock, 5 s where None. Raises StoreRefused on a
        standby.
        """

    def reading(self, *, wait: timedelta | None = None) -> AbstractContextManager[Connection]:
        """A read-only transaction, refused by the database itself if it writes; works on a standby. Always rolled back.

        `wait`: how long to wait for a table that is locked, 5 s where None.
        """

    def limit(self, connection: Connection, seconds: float) -> AbstractContextManager[Limit]:
        """A statement that still runs on this connection after so long, in the block, is cut: it raises as by the database's own limit."""

    def now(self, ahead: timedelta = timedelta()) -> ColumnElement[datetime]:
        """The database's clock as an expression, moved ahead: one value a transaction on PostgreSQL, one a statement on SQLite.

        Of type Instant, and plain SQL text but for that, so that it is written out as it is. To the millisecond.
        """

    def lock(self, select: Select[Any], *of: Any) -> Select[Any]:
        """The select with row locks on `of`, those locked by others skipped: FOR NO KEY UPDATE SKIP LOCKED; unchanged on SQLite."""

    def refuse_silent(self) -> None:
        """Raises OperationalError while the server is known not to answer at all; nothing on SQLite, which has none."""

    def someone_wrote(self) -> bool:
        """Whether another connection may have written since the last question: `PRAGMA data_version`; always True on PostgreSQL."""

    def identity(self) -> str | None:
        """What changes when the database is put back (hazard 46), as text; None where the server has no such sign, or is not initialised.

        None on SQLite: its identity is a random one, made by who writes it down.
        """

    def missing(self) -> str | None:
        """Where no database is yet, and opening it would make one: the path of its file. None on PostgreSQL."""

    def refusal(self, error: BaseException | None) -> StoreRefused | None:
        """What a driver's error says against the database itself, with the cure; None where it says nothing."""

    def close(self) -> None:
        """Closes every connection."""


class Lives(Protocol):
    """Locks that die with their holder: one for each life, on something of its own that is otherwise idle.

    Made for one life at a time. A forked child must not use it (it raises) and must not keep the lock alive.
    server: what `Database.server` says where the lock is; None where there is no server, and before `take`.
    incarnation: likewise what `Database.incarnation` says there.
    """

    server: str | None
    incarnation: str | None

    def take(self, life: int) -> None:
        """Begins a life: takes its lock, and proves that it excludes others (the pooler probe). Raises StoreRefused with the cure."""

    def held(self, *, ask: bool = False) -> bool:
        """Whether the lock of this life is surely still held; False once it may be lost. Cheap: asked about each second.

        ask: by a question to the server, which no news on the way can escape. While it is held, so is each lock that `adopting` got.
        """

    def adopting(self, life: int) -> AbstractContextManager[bool]:
        """Takes the lock of another life while the block runs: yields True where that life is dead and the lock is ours, else False."""

    def alive(self, lives: Sequence[int]) -> dict[int, bool | None]:
        """For each life whether its lock is taken, without taking any. None where that cannot be seen (a standby)."""

    def take_slots(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> set[int]:
        """Further locks that die with this life: of each group of numbers as many as are wanted and free. Never waits.

        Which were got, of all groups; none once the life may be lost. The numbers are from SLOTS_FROM on, and none that we have already.
        """

    def give_slots_back(self, slots: Collection[int]) -> None:
        """Frees these of ours. The life goes on."""

    def release(self) -> None:
        """Ends the life, and frees its slots. Idempotent."""


class Witness(Protocol):
    """16 bytes (life, count) for each life, outside of the database, written after a begin's commit: what a backup does not take back."""

    def write(self, life: int, count: int) -> None:
        """Remembers the count; no fsync. Never raises: a witness that cannot be written is no witness, and said once in the log."""

    def read(self) -> dict[int, int]:
        """The count of each life that has a witness here."""

    def erase(self, life: int) -> None:
        """Forgets a life, before its row in groundstate_worker is deleted."""

    def place(self, life: int) -> str:
        """Where the witness of this life is, for people."""


class HighWater(Protocol):
    """The highest count of begun calls that was seen of a store at its path, in a file outside of the database and of its folder."""

    def highest(self, store: str) -> int | None:
        """The highest count kept of the store of this id; None where nothing is kept. Never raises."""

    def keep(self, store: str, count: int) -> None:
        """Remembers the count where it is higher; no fsync. Never raises: what goes wrong is said once in the log."""

    def close(self) -> None:
        """Closes its files, which stay."""


Opened = tuple[Database, Callable[[], Lives], Witness | None]
