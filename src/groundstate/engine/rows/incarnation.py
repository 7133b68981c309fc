"""A worker incarnation: one run of one worker on one store, identified by a lock that is freed when the worker's process dies. It knows
whether it still holds that lock.

Its row in `groundstate_worker` says that it began, and how many calls it has begun (hazard 46). Only the lock says whether the incarnation
still runs.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import Boolean, ColumnElement, and_, delete, insert, or_, select, update

from groundstate.clock import Clock, SeededDice
from groundstate.engine.rows import clock_jumps
from groundstate.engine.rows.begin_count import StoreBegins
from groundstate.engine.rows.limited_logging import LimitedLines
from groundstate.engine.rows.traceback_log import Tracebacks
from groundstate.engine.sql import db_errors, transaction
from groundstate.engine.sql.call_write_guard import REDACT_CURE, refusing_writes
from groundstate.engine.sql.calls_in_air import InFlightCalls
from groundstate.engine.sql.db_errors import Illegible, LockSessionEnded, OtherServer, RowRewritten
from groundstate.engine.sql.raw_cells import possible_incarnation_ids
from groundstate.engine.sql.record_cycles import RecordCycles
from groundstate.engine.sql.safe_text import reraise_keyboard_interrupt
from groundstate.engine.sql.transaction import HandlerTimes, Transaction
from groundstate.rules.poison_suspects import Care
from groundstate.store import tables
from groundstate.store.port import Database, Liveness, Witness
from groundstate.store.wrote_column import OnPostgres
from groundstate.values.errors import LifeTakenError, StoreRefusedError, WentBackError

log = logging.getLogger("groundstate")
ERROR_LENGTH = 2000
OUTCOME_LENGTH = 20_000
Line = Callable[[], object]


@dataclass
class LinesAfterCommit:
    """The log lines about the changes of one worker's open transaction. They are written after its commit, and dropped after a rollback. So
    no line is untrue, and work that is repeated is logged once. Must be used only by the thread that runs the worker's transactions.
    """

    _waiting: list[tuple[Line, bool]] | None = field(default=None, repr=False)  # pairs (line, only_trace); None if no transaction is open
    _commits: bool = False  # whether only the commit of the open transaction is left to do

    def log(self, line: Line, *, only_trace: bool = False) -> None:
        """Call `line`, a function that writes a log line, after the commit of the open transaction; call it at once if no transaction is
        open.

        only_trace: whether nothing but this line records the event, for example that an outcome was dropped. Such a line is written even if
            nobody knows whether the commit succeeded.
        """
        if self._waiting is None:
            line()
        else:
            self._waiting.append((line, only_trace))

    def note_commit_is_next(self) -> None:
        """Note that only the commit of the open transaction is left to do."""
        self._commits = True

    @contextmanager
    def hold_lines_until_commit(self) -> Iterator[None]:
        """Run one transaction in the block. Its lines are written at the end of the block, and dropped if the block raises."""
        waiting = self._waiting = []
        self._commits = False
        lines: list[Line] = []
        try:
            yield
            lines = [line for line, _ in waiting]
        except BaseException as error:
            if self._commits and db_errors.is_no_fault_of_record(error):
                lines = [line for line, only_trace in waiting if only_trace]
            raise
        finally:
            self._waiting = None
            for line in lines:
                line()


@dataclass
class Incarnation:
    """One run of a worker, from taking its lock to losing it. All work of the worker uses this object, to reach the store, to identify the
    worker, and to know whether the worker still holds its lock.
    """

    app: str
    database: Database
    liveness: Liveness
    witness: Witness | None
    redact: Callable[[str], str] = str
    declared: frozenset[str] = frozenset()  # names of the reactions and schedules that this version of the application declares
    tables_of: Mapping[str, str] = field(default_factory=dict)  # table of a reaction's records, by reaction, for log lines
    id: int = field(init=False)  # a random number of 62 bits
    sound: bool = False  # whether this incarnation certainly holds its lock; while False, no call is sent
    begins: int = 0
    # number of begun calls, as the database returned it at the latest increase, whether or not that increase was committed
    told: int = 0
    others_wrote: bool = False
    care: Care = field(default_factory=Care)
    dice: SeededDice = field(init=False)  # random numbers for jitter, seeded with `id`
    key_names: dict[str, str] = field(default_factory=dict)  # by reaction, the name from which its idempotency keys are made (hazard 62)
    pace: clock_jumps.ClockComparison = field(default_factory=clock_jumps.ClockComparison)
    steps_back: int = 0  # how often the database's clock was seen to be set back
    server: str | None = None  # identity of the server that holds the lock; None before the lock is taken, and on SQLite
    server_start: str | None = None  # start time of that server, as a text, as in this incarnation's row
    # by start time of a server: the monotonic seconds at which this worker last took its lock on that server
    met: dict[str, float] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)  # start times of servers on which this worker lost its lock and took it again
    lost_at: float | None = None  # monotonic seconds at which this worker lost its lock; None while it holds the lock
    over: bool = False  # whether this incarnation must end, even if its lock could be taken again
    air: InFlightCalls = field(default_factory=InFlightCalls)  # shared by all incarnations of this worker
    unknown_states: set[tuple[object, ...]] = field(default_factory=set)  # attempts whose unknown state has been logged
    rings: RecordCycles = field(default_factory=RecordCycles)  # shared by all incarnations of this worker
    lines: LimitedLines = field(default_factory=LimitedLines)  # shared by all incarnations of this worker
    # log lines of the open transaction, to be written after its commit
    after_commit: LinesAfterCommit = field(default_factory=LinesAfterCommit)
    # monotonic seconds until which other workers that lost their locks may take them again; None if no such worker is awaited
    awaits_until: float | None = None
    taken: int = 0  # how often this incarnation has taken its lock
    past: set[int] = field(default_factory=set)  # ids of earlier incarnations of this worker whose rows may still exist
    suspects: set[str] = field(default_factory=set)  # reactions whose latest calls a restored database may lack
    redact_failed: bool = False  # whether it was logged that the user's `redact` raised an exception
    at_work: str | None = None  # name of the reaction whose handlers run now; None if none run
    # how long handlers took in the open transaction, or in the latest one if none is open
    handlers: HandlerTimes = field(default_factory=HandlerTimes)
    waiting: frozenset[str] = frozenset()  # reactions that wait until a person says whether a backup was put back
    tracebacks: Tracebacks = field(init=False)  # tracebacks of handlers' exceptions, for the log
    # counts all calls ever begun on this store; None on PostgreSQL, which does not need it
    store_begins: StoreBegins | None = field(init=False)

    def __post_init__(self) -> None:
        self.store_begins = None if self.database.high_water is None else StoreBegins(self.database.high_water)
        self.id = self.database.dice.getrandbits(62)
        self.dice = SeededDice(self.id)
        self.tracebacks = Tracebacks(self.shorten)

    @property
    def clock(self) -> Clock:
        """Return the clock that this worker uses for all times and durations."""
        return self.database.clock

    @property
    def lock_holder_key(self) -> tuple[int, int]:
        """Return the pair (id of this incarnation, how often it has taken its lock). Data that is void once the lock is lost is stored with
        this pair.
        """
        return self.id, self.taken

    def take_lock_and_insert_row(self) -> None:
        """Take the lock, then write the row which says that this incarnation began. Raises StoreRefusedError."""
        self._take_lock()
        try:
            with self.open_transaction() as tx:
                row = {"id": self.id, "app": self.app, "host": socket.gethostname(), "pid": os.getpid(), "began_at": tx.now, "begins": 0}
                tx.connection.execute(insert(tables.worker).values(**row, server=self.server_start))
        except OtherServer as error:
            self.liveness.release()
            raise StoreRefusedError(_APART) from error
        except BaseException:
            self.liveness.release()  # without its row, an incarnation must not keep its lock and the lock's connection
            raise
        if self.witness:
            self.witness.write(self.id, 0)
        self.sound = True

    def retake_lost_lock(self) -> bool:
        """Take the lost lock again under the same id, so that this incarnation and its calls go on. The caller sets `sound`.

        Call it when other workers may have lost their locks at the same time: the server was restarted or replaced, or all connections to
        it were cut. Returns False if the incarnation must end: another worker adopted its attempts, or the database knows of fewer calls
        than it began.

        Raises:
            OperationalError, OtherServer: The server cannot be reached, or was restarted once more.
            LifeTakenError: Another session has the lock.
        """
        before = self.server_start
        if before is None or self.over:
            return False
        try:
            self._take_lock()
        except LifeTakenError:
            raise
        except StoreRefusedError:  # a standby server, or a connection through a pooler, cannot be used by a new incarnation either
            return False
        try:
            going_on = self._write_server_and_check_row()
        except BaseException:
            self.server_start = before
            self.liveness.release()
            raise
        if not going_on:
            self.liveness.release()
        return going_on

    def _take_lock(self) -> None:
        self.liveness.take_lock(self.id)
        self.server, self.server_start = self.liveness.server, self.liveness.server_start
        self.taken += 1
        if self.server_start is not None:
            if self.server_start in self.met:
                self.cut.add(self.server_start)
            self.met[self.server_start] = self.clock.monotonic()

    def _write_server_and_check_row(self) -> bool:
        """Write into this incarnation's row which server now holds the lock. Return False if the incarnation must end: its row is gone,
        says that it ended, or counts fewer calls than it began.
        """
        mine = (tables.worker.c.id == self.id, tables.worker.c.ended_at.is_(None), tables.worker.c.begins >= self.begins)
        with self.open_transaction() as tx:
            return tx.connection.execute(update(tables.worker).where(*mine).values(server=self.server_start)).rowcount > 0

    @contextmanager
    def open_transaction(self, *, wait: timedelta | None = None) -> Iterator[Transaction]:
        """Open a transaction that writes, and check first whether the database's clock was set ahead or back. On SQLite, also notice
        whether another connection has written since the previous transaction. Log lines passed to `after_commit` are written once the
        transaction is committed.
        """
        embedded = not self.database.locks_rows
        started, asked_s = self.clock.monotonic(), self.clock.uptime_s()
        with self.after_commit.hold_lines_until_commit(), transaction.writing_transaction(self.database, self.app, wait=wait) as tx:
            waited_s = self.clock.monotonic() - started  # time spent waiting for SQLite's write lock, or for the server
            if embedded and self.database.has_someone_written():  # this transaction has the write lock, so another connection wrote
                self.others_wrote = True
            tx.air, tx.rings, self.handlers = self.air, self.rings, tx.handlers
            self._check_server(tx.server)
            leapt = self.pace.measure_leap(tx.now, asked_s, self.clock.uptime_s())
            if leapt:
                clock_jumps.move_times_with_clock(tx, self.id, leapt)
            yield tx
            self.after_commit.note_commit_is_next()
        if leapt:
            self.steps_back += leapt < timedelta()
            self.pace.note_times_moved()
        if embedded:
            self.database.has_someone_written()  # reads the counter again, so that our own commit does not count as a write by others
        took = self.clock.monotonic() - started - waited_s
        if took > LONG_S:
            log.warning(
                "a transaction%s took %.1f s, %s",
                "" if self.at_work is None else f" of {self.at_work}",
                took,
                tx.handlers.describe_slow_transaction(took),
                extra={
                    "event": "transaction_long",
                    "took_s": round(took, 3),
                    "handlers_s": round(tx.handlers.total_s, 3),
                    "reaction": self.at_work,
                    "record": tx.handlers.longest_record,
                },
            )

    def _check_server(self, server: str | None) -> None:
        """Raise OtherServer if this transaction runs on a server that does not hold the lock, and LockSessionEnded if the database session
        that holds the lock has ended. In both cases what this worker knows of the database may be out of date.
        """
        if self.server is None or (server == self.server and (not self.sound or self.liveness.has_lock())):
            return
        if server == self.server:
            self.log_lock_lost("the session that held it has ended, and the database is on the same server as before")
            self.sound = False  # no call is sent until the lock is taken again
            raise LockSessionEnded("the session that held the lock of this worker has ended")
        if self.sound:
            self.sound = False  # set first: the worker must check for lost commits before it begins or concludes any call
            log.error(
                "the database is on another server now, or its server was restarted: no call is sent until this worker has taken its"
                " lock there again, or has begun a new incarnation",
                extra={"event": "server_changed", "worker": f"{self.id:x}"},
            )
        raise OtherServer("the database moved to another server, or its server was restarted")

    def log_lock_lost(self, how: str) -> None:
        """Log that the lock is lost. how: a clause about the cause, as far as it is known."""
        log.error(
            "the lock of this worker is lost: %s; no call is sent until the lock is taken again, or the worker has begun a new incarnation",
            how,
            extra={"event": "lock_lost", "worker": f"{self.id:x}"},
        )

    def have_others_written(self) -> bool:
        """Return whether another connection has written to the SQLite store since the previous call of this method."""
        seen, self.others_wrote = self.others_wrote or self.database.has_someone_written(), False
        return seen

    def count_begins(self, tx: Transaction, new: int) -> None:
        """Add `new` calls to the count in this incarnation's row, in the transaction that begins them.

        Raises:
            WentBackError: The database counts fewer calls than this incarnation began.
            RowRewritten: Something else wrote the row, so a backup may have been put back.
        """
        row = tx.connection.execute(
            update(tables.worker)
            .where(tables.worker.c.id == self.id)
            .values(begins=tables.worker.c.begins + new)
            .returning(tables.worker.c.begins, _ROW_IS_OURS)
        ).first()
        counted = None if row is None else row[0]
        self.told = counted or 0
        if counted is None or counted < self.begins + new:
            raise WentBackError(
                f"this worker began {self.begins} calls and the database knows of {0 if counted is None else counted - new}"
            )
        if row is not None and not row[1] and self.database.settings.failover != "lossless":
            raise RowRewritten("the row of this worker was written by something else: the database may have been put back")
        if self.store_begins is not None:
            self.store_begins.add_begins(tx, new)

    def store_begin_counts(self) -> None:
        """Store the latest count of begun calls outside of the database, in the witness file and the high-water mark. Call it after the
        commit that begins calls and before the first of them is sent.

        The count is the one that the database returned. So it includes calls that were committed as begun although the COMMIT got no
        answer.
        """
        self.begins = self.told
        if self.witness:
            self.witness.write(self.id, self.begins)
        if self.store_begins is not None:
            self.store_begins.raise_high_water_mark()

    def shorten(self, error: str, most: int = ERROR_LENGTH) -> str:
        """Return an error's text as it is stored: redacted by the user's `redact`, cut to `most` characters, without control characters
        (hazard 54).
        """
        codec = self.database.codec  # a character that the database's encoding lacks would make the write of the attempt fail
        said = self._redact_text(error).encode(codec, "replace").decode(codec)[: most + 1]
        plain = "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in said)
        return plain if len(plain) <= most else plain[: most - 3] + "..."

    def _redact_text(self, words: str) -> str:
        """Return a text as the user's `redact` returns it. If `redact` raises, return only a remark about that: the text and the error may
        contain secrets.
        """
        try:
            with refusing_writes(self.app, "`redact`", REDACT_CURE, may_say=False):
                return str.__str__(self.redact(words))
        except BaseException as error:
            reraise_keyboard_interrupt(error)
            failed = f"`redact` raised {type(error).__name__}"
            if not self.redact_failed:
                self.redact_failed = True
                said = "%s: the texts that it was to redact are left out of the log and of the database"
                log.error(said, failed, extra={"event": "redact_failed"})  # noqa: TRY400  # a traceback would show what `redact` hides
            return f"(left out, since {failed})"

    def shorten_outcome(self, words: str) -> str:
        """Return the text of an outcome, redacted and cut as by `shorten`, but to OUTCOME_LENGTH characters: this text may be all that is
        kept of the outcome.
        """
        return self.shorten(words, OUTCOME_LENGTH)

    def delete_row_and_free_lock(self, *, with_past: bool = False) -> None:
        """End cleanly: delete the row of this incarnation, then free the lock. With `with_past`, also delete the rows of this worker's
        earlier incarnations. The caller must first set the attempts of calls that are still in flight to in doubt.
        """
        try:
            self.delete_row_keep_lock(with_past=with_past)
        finally:
            self.liveness.release()

    def delete_row_keep_lock(self, *, with_past: bool = False) -> None:
        """Delete the row of this incarnation, but keep its lock. With `with_past`, also delete the rows of this worker's earlier
        incarnations. Call it while calls in doubt still run: no other worker may settle those calls before they end.
        """
        self.sound = False
        over = {self.id, *self.past} if with_past else {self.id}
        if self.witness:
            for one in over:
                self.witness.delete_count_of(one)
        with self.open_transaction() as tx:
            tx.connection.execute(delete(tables.worker).where(tables.worker.c.id.in_(over)))


# The UPDATE of `count_begins` returns this. `wrote` is then this transaction's id only if nothing else wrote the row since our last write.
_ROW_IS_OURS = OnPostgres("coalesce(groundstate_worker.wrote = pg_current_xact_id(), true)", "(1 = 1)", Boolean())
_APART = (
    "the lock of this worker is on another server than the tables: direct= must lead to the server that the store's own URL leads to"
    " (while a failover is under way, both may lead there a moment later)"
)
LONG_S = 1.0  # seconds: a transaction that takes longer is logged (hazard 26)


def clause_left_to_adopt(incarnation: Incarnation) -> ColumnElement[bool]:
    """Return the SQL condition that selects the attempts which this worker takes over (adopts) once their own worker has ended. Attempts in
    doubt whose reaction this version of the application does not declare are left out.
    """
    attempt = tables.attempt
    ours = and_(attempt.c.app == incarnation.app, attempt.c.reaction.in_(sorted(incarnation.declared)))
    return or_(attempt.c.state == "begun", and_(attempt.c.state == "doubt", ours))


RECONNECT = timedelta(seconds=5)  # how long incarnations may take to lock again, after all of them lost their locks at once


def incarnations_that_may_return(incarnation: Incarnation, dead: Sequence[int]) -> set[int]:
    """Return the incarnations among `dead` that may still be running and about to take their locks again. All of `dead` have free locks.

    They are returned only for a short time (RECONNECT) after this worker took its lock on the present server. In that time, an incarnation
    may return if its lock was on another server, or on this server before a restart. If this worker itself lost its lock on this server,
    every other incarnation may return. Incarnations whose row says that they ended, and earlier ones of this worker, never return.
    """
    here = incarnation.server_start
    incarnation.awaits_until = None
    until = incarnation.met[here] + RECONNECT.total_seconds() if here in incarnation.met else 0.0
    if here is None or not dead or incarnation.clock.monotonic() >= until:
        return set()
    row = tables.worker.c
    freed = row.server.is_not(None) if here in incarnation.cut else row.server != here  # NULL in rows that an older version wrote
    with incarnation.database.reading() as connection:
        found = set(connection.execute(select(row.id).where(row.id.in_(dead), row.ended_at.is_(None), freed)).scalars()) - incarnation.past
    if found:
        incarnation.awaits_until = until
    return found


def other_incarnations_with_remains(incarnation: Incarnation) -> list[int]:
    """Return the ids of other incarnations that left something: begun attempts, attempts in doubt of reactions that this application
    declares, or a row that does not say that they ended. These incarnations may still be running.
    """
    with incarnation.database.reading() as connection:
        rows = connection.execute(
            select(tables.worker.c.id)
            .where(tables.worker.c.ended_at.is_(None), tables.worker.c.id != incarnation.id)
            .union(
                select(tables.attempt.c.worker)
                .where(clause_left_to_adopt(incarnation), tables.attempt.c.worker != incarnation.id)
                .distinct()
            )
        ).scalars()
        found = list(rows)
    if len(possible_incarnation_ids(found)) < len(set(found)):
        raise Illegible("a worker in our tables has no number that a worker can have")
    return found
