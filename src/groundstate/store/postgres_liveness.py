"""Shows which workers are alive on PostgreSQL: session advisory locks on a separate connection, which the server ends when it notices that
the client is gone.

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

from groundstate.store.silent_server import hang_up as hang_up_on
from groundstate.store.statement_timeouts import limited
from groundstate.values import keepalive
from groundstate.values.after_fork import forsake_in_child, hang_up, refuse_child
from groundstate.values.errors import LifeTakenError, StoreRefusedError

with suppress(ImportError):  # `open_store` refuses, with the cure, before anything here is used
    import psycopg

_CLIENT = {**keepalive.CLIENT, "connect_timeout": 10, "application_name": "groundstate worker", "client_encoding": "utf8"}
# Another server of the same data, or the same one after its crash, has another start time.
STARTED = "extract(epoch from pg_postmaster_start_time())::text"
# The crash of a backend ends all sessions and frees every lock, and the server's start time stays the same. What changes then, and every
# role may read, is the time since when statistics are counted. (Resetting them by hand only delays an adoption.)
_RECOVERED = "(SELECT extract(epoch from stats_reset)::text FROM pg_stat_bgwriter)"
_TIMELINE = "CASE WHEN pg_is_in_recovery() THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END"
INCARNATION = f"json_build_object('started', {STARTED}, 'recovered', {_RECOVERED}, 'timeline', {_TIMELINE})::text"
UP_S = """
    extract(epoch from clock_timestamp() - greatest(pg_postmaster_start_time(), (SELECT stats_reset FROM pg_stat_bgwriter)))::float8
"""
ANSWER_S = 10.0  # seconds: the longest wait for an answer; each of these statements only reads memory
ASK_S = 30.0  # seconds: how long an open connection is believed to have the lock without a query
_LOCKS = """
    FROM (SELECT (classid::bigint << 32) | objid::bigint AS life, pid FROM pg_locks
          WHERE locktype = 'advisory' AND objsubid = 1 AND granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS locks
"""
_HELD = "SELECT count(*) = 1" + _LOCKS + "WHERE life = %s AND pid = pg_backend_pid()"
_TAKEN = "SELECT pg_is_in_recovery(), ARRAY(SELECT life" + _LOCKS + "WHERE life = ANY(%s))"

# The LIMIT within each group ends its search, so that no more numbers are locked than are returned.
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


class SessionLiveness:
    """Holds pg_advisory_lock of each worker incarnation's number; implements `port.Liveness`.

    arguments: psycopg's, for a connection past any pooler. connect: a function that is called with them; psycopg's own where None.
    """

    def __init__(self, arguments: Mapping[str, Any], connect: Callable[..., psycopg.Connection[Any]] | None = None) -> None:
        self._arguments = {**_CLIENT, **arguments}
        self._connect_by = connect
        self._connection: psycopg.Connection[Any] | None = None
        self._incarnation: int | None = None
        self._adopted: set[int] = set()
        self._asked_at = 0.0
        self.server: str | None = None
        self.server_start: str | None = None
        self._guard = threading.Lock()
        self._pid = os.getpid()
        forsake_in_child(self)

    def take(self, worker: int) -> None:
        """Begin a worker incarnation: lock its number on a new connection.

        Raises:
            StoreRefusedError: the lock would not show who is alive (a pooler, a database without such locks, a standby).
            LifeTakenError: another process has locked the number.
            OperationalError: SQLAlchemy's, the server cannot be reached just now.
        """
        refuse_child(self._pid)
        self.release()
        self._connection = self._connected()
        try:
            with _within(self._connection):
                self._lock(self._connection, worker)
                self._prove(self._connection, worker)
                self._settle(self._connection)
        except psycopg.Error as error:
            self._lose()
            raise _unreachable(error) from error
        except BaseException:
            self._lose()
            raise
        self._incarnation = worker
        self._asked_at = time.monotonic()

    def held(self, *, ask: bool = False) -> bool:
        """Return whether the connection is open. Now and then, and with `ask`, a query also checks that this session, and no other one of a
        pooler, has the lock. Once False, it stays so until `take`.

        A server that ends the session reports it, and keepalive notices one that vanished: both are seen without a query (hazard 32).
        """
        refuse_child(self._pid)
        worker, connection = self._incarnation, self._connection
        if worker is None or connection is None:
            return False
        if not ask and time.monotonic() - self._asked_at < ASK_S and _is_quiet(connection):
            return True
        if self._ask(_HELD, worker) == [(True,)]:
            return True
        self._lose()
        return False

    @contextmanager
    def adopting(self, worker: int) -> Iterator[bool]:
        """Take the lock of a dead worker incarnation while the block runs, and yield whether it was free. A worker without its own lock
        adopts none, and no worker adopts itself.
        """
        refuse_child(self._pid)
        ours = self._connection
        with self._guard:
            # PostgreSQL grants a session its own lock again each time, so our own locks are excluded here.
            free = self._incarnation not in (None, worker) and worker not in self._adopted
            if free:
                self._adopted.add(worker)
        try:
            got = free and self._ask("SELECT pg_try_advisory_lock(%s)", worker) == [(True,)]
            try:
                yield got
            finally:
                if got and self._connection is ours and self._ask("SELECT pg_advisory_unlock(%s)", worker) != [(True,)]:
                    self._lose()
        finally:
            if free:
                self._adopted.discard(worker)

    def alive(self, workers: Sequence[int]) -> dict[int, bool | None]:
        """Return for each worker incarnation whether pg_locks shows its lock; no lock of our own is needed. None for all on a standby, and
        where the server does not answer.
        """
        refuse_child(self._pid)
        if self._incarnation is None:
            try:
                with self._connected() as asking:
                    return _seen(asking, workers)
            except (psycopg.Error, OperationalError):
                return dict.fromkeys(workers)
        connection = self._connection
        if connection is None:
            return dict.fromkeys(workers)
        try:
            return _seen(connection, workers)
        except psycopg.Error:
            self._lose()
            return dict.fromkeys(workers)

    def take_slots(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> set[int]:
        """Lock free slots of all groups in one statement, and return their numbers. A server whose lock table is full gives none."""
        refuse_child(self._pid)
        connection, numbers = self._connection, [number for _, some in wanted for number in some]
        if connection is None or not numbers:
            return set()
        try:
            with _within(connection):
                found = connection.execute(_TAKE, _groups(wanted, numbers)).fetchall()
            self._asked_at = time.monotonic()
            return {number for (number,) in found}
        except psycopg.errors.OutOfMemory:  # the lock table is full (max_locks_per_transaction): free what was locked before
            self.give_slots_back(numbers)
        except psycopg.Error:
            self._lose()
        return set()

    def give_slots_back(self, slots: Collection[int]) -> None:
        """Unlock these slots in one statement."""
        refuse_child(self._pid)
        if slots and self._connection is not None:
            try:
                with _within(self._connection):
                    self._connection.execute("SELECT pg_advisory_unlock(number) FROM unnest(%s::bigint[]) AS number", (list(slots),))
            except psycopg.Error:
                self._lose()

    def release(self) -> None:
        """End the incarnation by ending its session; a forked child does nothing."""
        if self._pid == os.getpid():
            self._lose()

    def forsake(self) -> None:
        """Close the inherited connection in a forked child without sending anything: the parent's session goes on, and ends with the
        parent.
        """
        if self._connection is not None and not self._connection.closed:
            hang_up(self._connection.fileno())

    def _connected(self) -> psycopg.Connection[Any]:
        try:
            connection = (self._connect_by or psycopg.connect)(**self._arguments, autocommit=True)
        except psycopg.Error as error:
            raise _unreachable(error) from error
        return connection

    def _settle(self, connection: psycopg.Connection[Any]) -> None:
        """Set keepalive for the session. It is called only once the session is proved to be ours, since a pooler would hand it on with
        these settings.
        """
        for name, value in keepalive.SERVER.items():
            with suppress(psycopg.DatabaseError):
                connection.execute("SELECT set_config(%s, %s, false)", (name, value))

    def _lock(self, connection: psycopg.Connection[Any], worker: int) -> None:
        asked = f"SELECT pg_is_in_recovery(), pg_try_advisory_lock(%s), {STARTED}, {INCARNATION}"  # the names in it are constants of ours
        standby, got, self.server, self.server_start = connection.execute(asked, (worker,)).fetchone() or (False, False, None, None)
        if standby:
            message = (
                "this PostgreSQL is a standby, whose locks exclude nobody elsewhere: give the primary's URL (target_session_attrs=primary)"
            )
            raise StoreRefusedError(message)
        if not got:
            message = f"worker {worker:x} is taken: numbers are drawn at random, each for one process, so draw another"
            raise LifeTakenError(message)

    def _prove(self, connection: psycopg.Connection[Any], worker: int) -> None:
        """Prove that this session has the lock and that it excludes others. A second session is kept busy in a transaction, which exposes a
        pooler.
        """
        with self._connected() as second, _within(second), second.transaction():
            # If a pooler has no further session for the query below, the server ends this one after 5 seconds, and the query is answered.
            second.execute("SET LOCAL idle_in_transaction_session_timeout = 5000")
            if connection.execute(_HELD, (worker,)).fetchone() != (True,):
                with suppress(psycopg.Error):
                    # This connection usually leads to the session that got the lock instead.
                    second.execute("SELECT pg_advisory_unlock(%s)", (worker,))
                raise StoreRefusedError(_POOLER)
            if second.execute("SELECT pg_try_advisory_lock(%s)", (worker,)).fetchone() == (True,):
                raise StoreRefusedError(_SHARED)

    def _ask(self, query: str, worker: int) -> list[tuple[Any, ...]] | None:
        """Return the rows of the answer; None where the connection is gone, and with it every lock of this incarnation."""
        connection = self._connection
        if connection is None:
            return None
        try:
            with _within(connection):
                found = connection.execute(query, (worker,)).fetchall()
        except psycopg.Error:
            self._lose()
            return None
        self._asked_at = time.monotonic()
        return found

    def _lose(self) -> None:
        connection, self._connection, self._incarnation = self._connection, None, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()


def _within(connection: psycopg.Connection[Any]) -> AbstractContextManager[object]:
    """Shut the connection down if the block takes longer than ANSWER_S: a server that does not answer counts as gone."""
    return limited(ANSWER_S, lambda: hang_up_on(connection))


def _is_quiet(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the server has sent nothing since its last answer: what it sends unasked is that the session ends."""
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


def _seen(connection: psycopg.Connection[Any], workers: Sequence[int]) -> dict[int, bool | None]:
    with _within(connection):
        standby, taken = connection.execute(_TAKEN, (list(workers),)).fetchone() or (True, [])
    return dict.fromkeys(workers) if standby else {worker: worker in set(taken) for worker in workers}


def _unreachable(error: psycopg.Error) -> OperationalError:
    return OperationalError("(the connection for the lock of this worker)", None, error)
