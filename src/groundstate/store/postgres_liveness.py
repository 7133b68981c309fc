"""Shows which workers are alive on PostgreSQL, by session-level advisory locks on a separate connection.

The server frees the locks when it notices that the client is gone. While the server runs a query, it does not notice this, so the
connection is used for nothing else. Nothing here reads or writes a table, or waits for a lock.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import accumulate
from typing import Any

from sqlalchemy.exc import OperationalError

from groundstate.clock import SYSTEM_CLOCK, Clock
from groundstate.store.silent_server import shut_down_socket as hang_up_on
from groundstate.store.statement_timeouts import time_limited
from groundstate.values import keepalive
from groundstate.values.after_fork import abandon_in_child, redirect_to_devnull, refuse_use_in_child
from groundstate.values.errors import LifeTakenError, StoreRefusedError

with suppress(ImportError):  # without psycopg, `open_store` raises an error that names the cure, before this module is used
    import psycopg

_CLIENT = {**keepalive.CLIENT, "connect_timeout": 10, "application_name": "groundstate worker", "client_encoding": "utf8"}
# SQL for the start time of the server, as a text. A restart changes the text, and another server has another text even if its data are
# equal.
STARTED = "extract(epoch from pg_postmaster_start_time())::text"
# SQL for the time of the last reset of the server's statistics, which every role may read. The crash of a backend also changes this time.
# Such a crash ends all sessions and frees every lock, but does not change the server's start time. (It does no harm if a person resets the
# statistics: a worker only waits longer before it takes over the attempts of a dead worker.)
_RECOVERED = "(SELECT extract(epoch from stats_reset)::text FROM pg_stat_bgwriter)"
_TIMELINE = "CASE WHEN pg_is_in_recovery() THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END"
INCARNATION = f"json_build_object('started', {STARTED}, 'recovered', {_RECOVERED}, 'timeline', {_TIMELINE})::text"
UP_S = """
    extract(epoch from clock_timestamp() - greatest(pg_postmaster_start_time(), (SELECT stats_reset FROM pg_stat_bgwriter)))::float8
"""
ANSWER_S = 10.0  # longest wait for an answer, in seconds; it is ample, since these statements only read the server's memory
ASK_S = 30.0  # seconds for which an open connection counts as proof of the lock; then a query checks the lock again
_LOCKS = """
    FROM (SELECT (classid::bigint << 32) | objid::bigint AS life, pid FROM pg_locks
          WHERE locktype = 'advisory' AND objsubid = 1 AND granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS locks
"""
_HELD = "SELECT count(*) = 1" + _LOCKS + "WHERE life = %s AND pid = pg_backend_pid()"
_TAKEN = "SELECT pg_is_in_recovery(), ARRAY(SELECT life" + _LOCKS + "WHERE life = ANY(%s))"

# The LIMIT stops the search in each group once enough numbers are locked, so that every locked number is returned.
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
    """A SessionLiveness implements `port.Liveness`: a worker incarnation holds the advisory lock with the incarnation's number.

    arguments: psycopg's connection arguments, which must bypass any pooler. connect: a function that connects with these arguments; None
    for psycopg's own function.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        connect: Callable[..., psycopg.Connection[Any]] | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._clock = clock
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
        abandon_in_child(self)

    def take_lock(self, worker: int) -> None:
        """Begin a worker incarnation: lock its number on a new connection.

        Raises:
            StoreRefusedError: the lock would not show whether the worker is alive: there is a pooler, this server is a standby, or the
                database has no such locks.
            LifeTakenError: another process has locked the number.
            OperationalError: the server cannot be reached now (SQLAlchemy's error).
        """
        refuse_use_in_child(self._pid)
        self.release()
        self._connection = self._new_connection()
        try:
            with _limit_answer_time(self._connection):
                self._lock_number(self._connection, worker)
                self._prove_lock_excludes(self._connection, worker)
                self._set_keepalive(self._connection)
        except psycopg.Error as error:
            self._drop_connection()
            raise _unreachable_error(error) from error
        except BaseException:
            self._drop_connection()
            raise
        self._incarnation = worker
        self._asked_at = self._clock.monotonic()

    def has_lock(self, *, ask: bool = False) -> bool:
        """Return whether the connection is open, so that this worker has its lock. Once the result is False, it stays False until
        `take_lock`.

        Every ASK_S seconds, and with `ask`, a query also checks that this session has the lock, and not another session of a pooler.
        Without a query the result also becomes False if the session ends or the server vanishes: the server reports the end of a session,
        and keepalive breaks the connection to a server that vanished (hazard 32).
        """
        refuse_use_in_child(self._pid)
        worker, connection = self._incarnation, self._connection
        if worker is None or connection is None:
            return False
        if not ask and self._clock.monotonic() - self._asked_at < ASK_S and _has_server_sent_nothing(connection):
            return True
        if self._query_lock_rows(_HELD, worker) == [(True,)]:
            return True
        self._drop_connection()
        return False

    @contextmanager
    def try_to_adopt(self, worker: int) -> Iterator[bool]:
        """Try to take the lock of another worker incarnation while the block runs, and yield whether it was free (that worker is dead).

        Yield False if this worker has lost its own lock, if `worker` is this worker, or if this session holds the lock of `worker` already.
        """
        refuse_use_in_child(self._pid)
        ours = self._connection
        with self._guard:
            # PostgreSQL would grant this session a lock that it holds already, so such locks are excluded here.
            free = self._incarnation not in (None, worker) and worker not in self._adopted
            if free:
                self._adopted.add(worker)
        try:
            got = free and self._query_lock_rows("SELECT pg_try_advisory_lock(%s)", worker) == [(True,)]
            try:
                yield got
            finally:
                if got and self._connection is ours and self._query_lock_rows("SELECT pg_advisory_unlock(%s)", worker) != [(True,)]:
                    self._drop_connection()
        finally:
            if free:
                self._adopted.discard(worker)

    def alive_by_worker(self, workers: Sequence[int]) -> dict[int, bool | None]:
        """Return for each worker incarnation whether pg_locks shows its lock; None for all on a standby, or if the server does not answer.

        It may be called before `take_lock`.
        """
        refuse_use_in_child(self._pid)
        if self._incarnation is None:
            try:
                with self._new_connection() as asking:
                    return _query_which_are_alive(asking, workers)
            except (psycopg.Error, OperationalError):
                return dict.fromkeys(workers)
        connection = self._connection
        if connection is None:
            return dict.fromkeys(workers)
        try:
            return _query_which_are_alive(connection, workers)
        except psycopg.Error:
            self._drop_connection()
            return dict.fromkeys(workers)

    def take_slots(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> set[int]:
        """Lock slots that are free, for all groups in one statement, and return their numbers. Each slot is a number that allows one call.

        Return an empty set if the server's lock table is full. wanted: for each group a pair (how many slots to lock at most, the slot
        numbers to choose from).
        """
        refuse_use_in_child(self._pid)
        connection, numbers = self._connection, [number for _, some in wanted for number in some]
        if connection is None or not numbers:
            return set()
        try:
            with _limit_answer_time(connection):
                found = connection.execute(_TAKE, _group_arguments(wanted, numbers)).fetchall()
            self._asked_at = self._clock.monotonic()
            return {number for (number,) in found}
        except psycopg.errors.OutOfMemory:  # the lock table is full (max_locks_per_transaction): free the slots that were locked already
            self.give_slots_back(numbers)
        except psycopg.Error:
            self._drop_connection()
        return set()

    def give_slots_back(self, slots: Collection[int]) -> None:
        """Unlock these slots (lock numbers that each allow one call) in one statement."""
        refuse_use_in_child(self._pid)
        if slots and self._connection is not None:
            try:
                with _limit_answer_time(self._connection):
                    self._connection.execute("SELECT pg_advisory_unlock(number) FROM unnest(%s::bigint[]) AS number", (list(slots),))
            except psycopg.Error:
                self._drop_connection()

    def release(self) -> None:
        """End the worker incarnation: close its connection, which frees its locks. In a forked child it does nothing."""
        if self._pid == os.getpid():
            self._drop_connection()

    def abandon_after_fork(self) -> None:
        """Close the inherited connection in a forked child, but send nothing to the server, so that the parent's session goes on."""
        if self._connection is not None and not self._connection.closed:
            redirect_to_devnull(self._connection.fileno())

    def _new_connection(self) -> psycopg.Connection[Any]:
        try:
            connection = (self._connect_by or psycopg.connect)(**self._arguments, autocommit=True)
        except psycopg.Error as error:
            raise _unreachable_error(error) from error
        return connection

    def _set_keepalive(self, connection: psycopg.Connection[Any]) -> None:
        """Set the server's keepalive settings for the session. Call it only after it is proved that no pooler shares the session: other
        clients of the pooler would get the changed settings.
        """
        for name, value in keepalive.SERVER.items():
            with suppress(psycopg.DatabaseError):
                connection.execute("SELECT set_config(%s, %s, false)", (name, value))

    def _lock_number(self, connection: psycopg.Connection[Any], worker: int) -> None:
        asked = f"SELECT pg_is_in_recovery(), pg_try_advisory_lock(%s), {STARTED}, {INCARNATION}"  # safe: only constants are inserted
        standby, got, self.server, self.server_start = connection.execute(asked, (worker,)).fetchone() or (False, False, None, None)
        if standby:
            message = (
                "this PostgreSQL is a standby, whose locks exclude nobody elsewhere: give the primary's URL (target_session_attrs=primary)"
            )
            raise StoreRefusedError(message)
        if not got:
            message = f"the worker number {worker:x} is in use by another process: numbers are random, so draw another one"
            raise LifeTakenError(message)

    def _prove_lock_excludes(self, connection: psycopg.Connection[Any], worker: int) -> None:
        """Raise StoreRefusedError unless this session has the lock, and a second session cannot take the lock.

        The second session is in a transaction, so that a pooler cannot use it for the query on the first connection.
        """
        with self._new_connection() as second, _limit_answer_time(second), second.transaction():
            # If a pooler has only this one server session, the query on `connection` below has to wait until this session is free. The
            # timeout makes the server end this session after 5 seconds, so that the pooler can carry out the query.
            second.execute("SET LOCAL idle_in_transaction_session_timeout = 5000")
            if connection.execute(_HELD, (worker,)).fetchone() != (True,):
                with suppress(psycopg.Error):
                    # A pooler usually gives the second connection the session that has the lock.
                    second.execute("SELECT pg_advisory_unlock(%s)", (worker,))
                raise StoreRefusedError(_POOLER)
            if second.execute("SELECT pg_try_advisory_lock(%s)", (worker,)).fetchone() == (True,):
                raise StoreRefusedError(_SHARED)

    def _query_lock_rows(self, query: str, worker: int) -> list[tuple[Any, ...]] | None:
        """Run a query about the lock of this worker incarnation, and return its rows; None if the connection and all locks are lost."""
        connection = self._connection
        if connection is None:
            return None
        try:
            with _limit_answer_time(connection):
                found = connection.execute(query, (worker,)).fetchall()
        except psycopg.Error:
            self._drop_connection()
            return None
        self._asked_at = self._clock.monotonic()
        return found

    def _drop_connection(self) -> None:
        connection, self._connection, self._incarnation = self._connection, None, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()


def _limit_answer_time(connection: psycopg.Connection[Any]) -> AbstractContextManager[object]:
    """Shut the connection down if the block takes longer than ANSWER_S, since a server that does not answer counts as gone."""
    return time_limited(ANSWER_S, lambda: hang_up_on(connection))


def _has_server_sent_nothing(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the server has sent nothing since its last answer. If it has sent something unasked, the session is ending."""
    if connection.closed:
        return False
    with suppress(ValueError, OSError):
        looking = select.poll()
        looking.register(connection.fileno(), select.POLLIN)
        return not looking.poll(0)
    return False


def _group_arguments(wanted: Sequence[tuple[int, Sequence[int]]], numbers: list[int]) -> tuple[list[int], ...]:
    ends = list(accumulate(len(some) for _, some in wanted))
    return [most for most, _ in wanted], [1, *(end + 1 for end in ends[:-1])], ends, numbers


def _query_which_are_alive(connection: psycopg.Connection[Any], workers: Sequence[int]) -> dict[int, bool | None]:
    with _limit_answer_time(connection):
        standby, taken = connection.execute(_TAKEN, (list(workers),)).fetchone() or (True, [])
    return dict.fromkeys(workers) if standby else {worker: worker in set(taken) for worker in workers}


def _unreachable_error(error: psycopg.Error) -> OperationalError:
    return OperationalError("(the connection for the lock of this worker)", None, error)
