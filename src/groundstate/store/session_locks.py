"""Lives on PostgreSQL: session advisory locks on a connection of its own, which the server ends when it notices that the client is gone.

The connection is otherwise idle, since a backend in a query does not notice. Nothing here touches a table, or waits for a lock.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import accumulate
from typing import Any

from sqlalchemy.exc import OperationalError

from groundstate.store.limits import limited
from groundstate.store.silence import hang_up as hang_up_on
from groundstate.values import keepalive
from groundstate.values.errors import LifeTaken, StoreRefused
from groundstate.values.forks import forsake_in_child, hang_up, refuse_child

with suppress(ImportError):  # `opening` refuses with the cure before anything here is used
    import psycopg

_CLIENT = {**keepalive.CLIENT, "connect_timeout": 10, "application_name": "groundstate life", "client_encoding": "utf8"}
# Another server of the same data, or the same one after its crash, was started at another time.
STARTED = "extract(epoch from pg_postmaster_start_time())::text"
# The crash of a backend ends all sessions and frees every lock, and the server's start stays the same: of what changes then, every role may
# read since when statistics are counted. (Who resets them by hand delays an adoption, no more.)
_RECOVERED = "(SELECT extract(epoch from stats_reset)::text FROM pg_stat_bgwriter)"
_TIMELINE = "CASE WHEN pg_is_in_recovery() THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END"
INCARNATION = f"json_build_object('started', {STARTED}, 'recovered', {_RECOVERED}, 'timeline', {_TIMELINE})::text"
UP_S = """
    extract(epoch from clock_timestamp() - greatest(pg_postmaster_start_time(), (SELECT stats_reset FROM pg_stat_bgwriter)))::float8
"""
ANSWER_S = 10.0  # so long an answer is waited for: each of these statements is a look into memory
ASK_S = 30.0  # how long a connection that stands is believed to have the lock
_LOCKS = """
    FROM (SELECT (classid::bigint << 32) | objid::bigint AS life, pid FROM pg_locks
          WHERE locktype = 'advisory' AND objsubid = 1 AND granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS locks
"""
_HELD = "SELECT count(*) = 1" + _LOCKS + "WHERE life = %s AND pid = pg_backend_pid()"
_TAKEN = "SELECT pg_is_in_recovery(), ARRAY(SELECT life" + _LOCKS + "WHERE life = ANY(%s))"

# The limit within each group ends the search there, so that no more is locked than is told.
_TAKE = """
    SELECT got.number FROM unnest(%s::int[], %s::int[], %s::int[]) AS groups(most, first, last)
    CROSS JOIN LATERAL (
        SELECT number FROM unnest((%s::bigint[])[groups.first:groups.last]) AS number
        WHERE pg_try_advisory_lock(number) LIMIT groups.most
    ) AS got
"""

_POOLER = (
    "a pooler in transaction mode stands before this PostgreSQL and gives the lock that tells who is alive to another session:"
    " give a URL past it, Store(..., direct='postgresql://...'); the work itself may go on through the pooler"
)
_SHARED = (
    "two sessions of this database can hold one advisory lock, so that nothing tells who is alive (some databases that speak"
    " PostgreSQL's protocol are like that): use PostgreSQL itself"
)


class SessionLives:
    """Each life holds pg_advisory_lock of its number, by the promises of `port.Lives`.

    arguments: psycopg's, for a connection past any pooler. connect: what is called with them; psycopg itself where None.
    """

    def __init__(self, arguments: Mapping[str, Any], connect: Callable[..., psycopg.Connection[Any]] | None = None) -> None:
        self._arguments = {**_CLIENT, **arguments}
        self._connect_by = connect
        self._connection: psycopg.Connection[Any] | None = None
        self._life: int | None = None
        self._adopted: set[int] = set()
        self._asked_at = 0.0
        self.server: str | None = None
        self.incarnation: str | None = None
        self._guard = threading.Lock()
        self._pid = os.getpid()
        forsake_in_child(self)

    def take(self, life: int) -> None:
        """Begins a life on a new connection.

        Raises:
            StoreRefused: the lock would not tell who is alive (a pooler, an engine without such locks, a standby).
            OperationalError: SQLAlchemy's, the server cannot be reached just now.
        """
        refuse_child(self._pid)
        self.release()
        self._connection = self._connected()
        try:
            with _within(self._connection):
                self._lock(self._connection, life)
                self._prove(self._connection, life)
                self._settle(self._connection)
        except psycopg.Error as error:
            self._lose()
            raise _unreachable(error) from error
        except BaseException:
            self._lose()
            raise
        self._life = life
        self._asked_at = time.monotonic()

    def held(self, *, ask: bool = False) -> bool:
        """Whether the connection stands; now and then, and with `ask`, the server is asked as well whether this session, and no other of a
        pooler, has the lock. Once False it stays so until `take`.

        A server that ends the session says so, and one that is gone is missed by keepalive: both are seen without asking (hazard 32).
        """
        refuse_child(self._pid)
        life, connection = self._life, self._connection
        if life is None or connection is None:
            return False
        if not ask and time.monotonic() - self._asked_at < ASK_S and _is_quiet(connection):
            return True
        if self._ask(_HELD, life) == [(True,)]:
            return True
        self._lose()
        return False

    @contextmanager
    def adopting(self, life: int) -> Iterator[bool]:
        """Takes the lock of a dead life while the block runs; yields whether it got it. Nobody adopts who is not alive, nor himself."""
        refuse_child(self._pid)
        ours = self._connection
        with self._guard:
            # A session gets its own lock again as often as it asks.
            free = self._life not in (None, life) and life not in self._adopted
            if free:
                self._adopted.add(life)
        try:
            got = free and self._ask("SELECT pg_try_advisory_lock(%s)", life) == [(True,)]
            try:
                yield got
            finally:
                if got and self._connection is ours and self._ask("SELECT pg_advisory_unlock(%s)", life) != [(True,)]:
                    self._lose()
        finally:
            if free:
                self._adopted.discard(life)

    def alive(self, lives: Sequence[int]) -> dict[int, bool | None]:
        """Looks into pg_locks, also without a life of one's own. None for all on a standby, and where the server does not answer."""
        refuse_child(self._pid)
        if self._life is None:
            try:
                with self._connected() as asking:
                    return _seen(asking, lives)
            except (psycopg.Error, OperationalError):
                return dict.fromkeys(lives)
        connection = self._connection
        if connection is None:
            return dict.fromkeys(lives)
        try:
            return _seen(connection, lives)
        except psycopg.Error:
            self._lose()
            return dict.fromkeys(lives)

    def take_slots(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> set[int]:
        """One statement for all groups. A server whose table of locks is full gives none."""
        refuse_child(self._pid)
        connection, numbers = self._connection, [number for _, some in wanted for number in some]
        if connection is None or not numbers:
            return set()
        try:
            with _within(connection):
                found = connection.execute(_TAKE, _groups(wanted, numbers)).fetchall()
            self._asked_at = time.monotonic()
            return {number for (number,) in found}
        except psycopg.errors.OutOfMemory:  # max_locks_per_transaction: what it had got before is freed
            self.give_slots_back(numbers)
        except psycopg.Error:
            self._lose()
        return set()

    def give_slots_back(self, slots: Collection[int]) -> None:
        """In one statement."""
        refuse_child(self._pid)
        if slots and self._connection is not None:
            try:
                with _within(self._connection):
                    self._connection.execute("SELECT pg_advisory_unlock(number) FROM unnest(%s::bigint[]) AS number", (list(slots),))
            except psycopg.Error:
                self._lose()

    def release(self) -> None:
        """Ends the life by ending its session; in a forked child it does nothing."""
        if self._pid == os.getpid():
            self._lose()

    def forsake(self) -> None:
        """In a forked child: hangs up without a word, so that the parent's session goes on, and ends when the parent does."""
        if self._connection is not None and not self._connection.closed:
            hang_up(self._connection.fileno())

    def _connected(self) -> psycopg.Connection[Any]:
        try:
            connection = (self._connect_by or psycopg.connect)(**self._arguments, autocommit=True)
        except psycopg.Error as error:
            raise _unreachable(error) from error
        return connection

    def _settle(self, connection: psycopg.Connection[Any]) -> None:
        """Settings of the session; not before it is proved to be ours, since a pooler hands it on as it is."""
        for name, value in keepalive.SERVER.items():
            with suppress(psycopg.DatabaseError):
                connection.execute("SELECT set_config(%s, %s, false)", (name, value))

    def _lock(self, connection: psycopg.Connection[Any], life: int) -> None:
        asked = f"SELECT pg_is_in_recovery(), pg_try_advisory_lock(%s), {STARTED}, {INCARNATION}"  # of ours alone
        standby, got, self.server, self.incarnation = connection.execute(asked, (life,)).fetchone() or (False, False, None, None)
        if standby:
            message = (
                "this PostgreSQL is a standby, whose locks exclude nobody elsewhere: give the primary's URL (target_session_attrs=primary)"
            )
            raise StoreRefused(message)
        if not got:
            message = f"life {life:x} is taken: a life is drawn by chance and is one process's alone, so draw another"
            raise LifeTaken(message)

    def _prove(self, connection: psycopg.Connection[Any], life: int) -> None:
        """Proves that the lock is this session's and excludes others, with a second session busy in a transaction, as a pooler dislikes."""
        with self._connected() as second, _within(second), second.transaction():
            # Should a pooler have no third session for us, the server ends this one, and the first gets an answer.
            second.execute("SET LOCAL idle_in_transaction_session_timeout = 5000")
            if connection.execute(_HELD, (life,)).fetchone() != (True,):
                with suppress(psycopg.Error):
                    second.execute("SELECT pg_advisory_unlock(%s)", (life,))  # it leads to where the lock leaked to, as a rule
                raise StoreRefused(_POOLER)
            if second.execute("SELECT pg_try_advisory_lock(%s)", (life,)).fetchone() == (True,):
                raise StoreRefused(_SHARED)

    def _ask(self, question: str, life: int) -> list[tuple[Any, ...]] | None:
        """The answer; None where the connection is gone, and with it every lock of this life."""
        connection = self._connection
        if connection is None:
            return None
        try:
            with _within(connection):
                found = connection.execute(question, (life,)).fetchall()
        except psycopg.Error:
            self._lose()
            return None
        self._asked_at = time.monotonic()
        return found

    def _lose(self) -> None:
        connection, self._connection, self._life = self._connection, None, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()


def _within(connection: psycopg.Connection[Any]) -> AbstractContextManager[object]:
    """A server that does not answer is as one that is gone."""
    return limited(ANSWER_S, lambda: hang_up_on(connection))


def _is_quiet(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server has said nothing since it was last asked: what it says of itself is that the session ends."""
    if connection.closed:
        return False
    with suppress(ValueError, OSError):
        looking = select.poll()
        looking.register(connection.fileno(), select.POLLIN)
        return not looking.poll(0)
    return False


def _groups(wanted: Sequence[tuple[int, Sequence[int]]], numbers: list[int]) -> tuple[list[int], ...]:
    ends = list(accumulate(len(some) for _, some in wanted))
    return [most for most, _ in wanted], [1, *(end + 1 for end in ends[:-1])], ends, numbers


def _seen(connection: psycopg.Connection[Any], lives: Sequence[int]) -> dict[int, bool | None]:
    with _within(connection):
        standby, taken = connection.execute(_TAKEN, (list(lives),)).fetchone() or (True, [])
    return dict.fromkeys(lives) if standby else {life: life in set(taken) for life in lives}


def _unreachable(error: psycopg.Error) -> OperationalError:
    return OperationalError("(the connection for the lock of this life)", None, error)
