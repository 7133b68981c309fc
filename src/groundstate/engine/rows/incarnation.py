"""A worker incarnation: one run of one worker on one store, identified by a lock that is freed when its process dies. Knows whether that
lock is still held; makes no decisions.

Its row in `groundstate_worker` says that it began, and how many calls it began (hazard 46). Only the lock says that it still runs.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import Boolean, ColumnElement, and_, delete, insert, or_, select, update

from groundstate.engine.rows import clock_jumps
from groundstate.engine.rows.begin_count import StoreBegins
from groundstate.engine.rows.limited_logging import LimitedLines
from groundstate.engine.rows.lines_after_commit import LinesAfterCommit
from groundstate.engine.rows.traceback_log import Tracebacks
from groundstate.engine.sql import transaction
from groundstate.engine.sql.call_write_guard import REDACT_CURE, inside
from groundstate.engine.sql.calls_in_air import CallsInAir
from groundstate.engine.sql.db_errors import Illegible, LockSessionEnded, OtherServer, RowRewritten
from groundstate.engine.sql.handler_times import HandlerTimes
from groundstate.engine.sql.raw_cells import lives_among
from groundstate.engine.sql.record_cycles import RecordCycles
from groundstate.engine.sql.safe_text import let_through
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules.poison_suspects import Care
from groundstate.store import tables
from groundstate.store.port import Database, Liveness, Witness
from groundstate.store.wrote_column import OnPostgres
from groundstate.values.errors import LifeTakenError, StoreRefusedError, WentBackError

log = logging.getLogger("groundstate")
ERROR_LENGTH = 2000
OUTCOME_LENGTH = 20_000


@dataclass
class Incarnation:
    """The context of everything that a worker carries out: the store, the identity of the worker, and whether it still holds its lock."""

    app: str
    database: Database
    liveness: Liveness
    witness: Witness | None
    redact: Callable[[str], str] = str
    declared: frozenset[str] = frozenset()  # names of this code's reactions and schedules, whose attempts in doubt it can settle
    tables_of: Mapping[str, str] = field(default_factory=dict)  # reaction -> table of its records, for log lines
    id: int = field(default_factory=lambda: secrets.randbits(62))
    sound: bool = False  # False once the lock may be lost: then no call is sent
    begins: int = 0
    told: int = 0  # the database's count in the latest begin, committed or not
    others_wrote: bool = False
    care: Care = field(default_factory=Care)
    dice: random.Random = field(init=False)  # a random generator of its own, seeded with its id
    key_names: dict[str, str] = field(default_factory=dict)  # reaction -> the name its idempotency keys are made of (hazard 62)
    pace: clock_jumps.Pace = field(default_factory=clock_jumps.Pace)
    steps_back: int = 0  # how often the database's clock was seen to step back
    server: str | None = None  # the server that the lock is on; None before `begin`, or if there is no server
    server_start: str | None = None  # when that server started, as this incarnation's row says it
    met: dict[str, float] = field(default_factory=dict)  # server start -> monotonic seconds at which this worker last took a lock there
    cut: set[str] = field(default_factory=set)  # starts of servers on which this worker had lost a lock before
    lost_at: float | None = None  # monotonic seconds since which it has been without its lock; None while it has it
    over: bool = False  # it must not go on, even if its lock can be taken again
    air: CallsInAir = field(default_factory=CallsInAir)  # shared by all incarnations of this worker
    unknown_states: set[tuple[object, ...]] = field(default_factory=set)  # attempts whose unknown state was logged already
    rings: RecordCycles = field(default_factory=RecordCycles)  # shared by all incarnations of this worker
    lines: LimitedLines = field(default_factory=LimitedLines)  # shared by all incarnations of this worker
    after_commit: LinesAfterCommit = field(default_factory=LinesAfterCommit)  # lines on what the open transaction makes of attempts
    awaits_until: float | None = None  # monotonic seconds until which other workers may take their locks again; None: none is awaited
    taken: int = 0  # how often it has taken its lock; data from an earlier time with the lock is void
    past: set[int] = field(default_factory=set)  # ids of earlier incarnations of this process, whose rows may still exist
    suspects: set[str] = field(default_factory=set)  # reactions that a person has not trusted yet since the database was put back
    redact_failed: bool = False  # whether the failure of `redact` was logged
    at_work: str | None = None  # the reaction whose handlers run now
    handlers: HandlerTimes = field(default_factory=HandlerTimes)  # handler times of the open transaction, or of the last one
    waiting: frozenset[str] = frozenset()  # reactions that wait for a person, since the database may have been put back
    tracebacks: Tracebacks = field(init=False)  # tracebacks of handlers' exceptions, for the log
    store_begins: StoreBegins | None = field(init=False)  # counts all calls ever begun here; None on PostgreSQL, which has its own identity

    def __post_init__(self) -> None:
        self.store_begins = None if self.database.high_water is None else StoreBegins(self.database.high_water)
        self.dice = random.Random(self.id)  # noqa: S311  # for jitter, not for secrets
        self.tracebacks = Tracebacks(self.shorten)

    @property
    def holder(self) -> tuple[int, int]:
        """The incarnation's id, and how often it has taken its lock. Data that is void once that lock is lost is kept under this pair."""
        return self.id, self.taken

    def begin(self) -> None:
        """Take the lock, then write the row that says this incarnation began. Raises StoreRefusedError."""
        self._take()
        try:
            with self.transaction() as tx:
                row = {"id": self.id, "app": self.app, "host": socket.gethostname(), "pid": os.getpid(), "began_at": tx.now, "begins": 0}
                tx.connection.execute(insert(tables.worker).values(**row, server=self.server_start))
        except OtherServer as error:
            self.liveness.release()
            raise StoreRefusedError(_APART) from error
        except BaseException:
            self.liveness.release()  # without a row, it must keep neither the lock nor a connection for it
            raise
        if self.witness:
            self.witness.write(self.id, 0)
        self.sound = True

    def resume(self) -> bool:
        """Take the lock again under the same number after it was lost. Other workers may have lost theirs at the same time: the server was
        restarted or replaced, or all connections to it were cut. The incarnation and what it began then go on; the caller sets `sound`.

        Returns False if another worker adopted this incarnation, or the database remembers fewer begins than it made. Then it is over.

        Raises:
            OperationalError, OtherServer: The server cannot be reached, or was restarted once more.
            LifeTakenError: Another session has the lock.
        """
        before = self.server_start
        if before is None or self.over:
            return False
        try:
            self._take()
        except LifeTakenError:
            raise
        except StoreRefusedError:  # a standby or a pooler would refuse a new incarnation too
            return False
        try:
            going_on = self._said_to_go_on()
        except BaseException:
            self.server_start = before
            self.liveness.release()
            raise
        if not going_on:
            self.liveness.release()
        return going_on

    def _take(self) -> None:
        self.liveness.take(self.id)
        self.server, self.server_start = self.liveness.server, self.liveness.server_start
        self.taken += 1
        if self.server_start is not None:
            if self.server_start in self.met:
                self.cut.add(self.server_start)
            self.met[self.server_start] = time.monotonic()

    def _said_to_go_on(self) -> bool:
        """Write which server the lock is on now, and return whether the incarnation may go on: its row must neither say that it ended nor
        count fewer begins than it made.
        """
        mine = (tables.worker.c.id == self.id, tables.worker.c.ended_at.is_(None), tables.worker.c.begins >= self.begins)
        with self.transaction() as tx:
            return tx.connection.execute(update(tables.worker).where(*mine).values(server=self.server_start)).rowcount > 0

    @contextmanager
    def transaction(self, *, wait: timedelta | None = None) -> Iterator[Transaction]:
        """Open a writing transaction of ours, and check at its begin whether the database's clock leapt. On an embedded store (SQLite),
        also notice whether another connection wrote since the last one. The log lines given to `after_commit` in it are written once it is
        committed.
        """
        embedded = not self.database.locks_rows
        started, asked_s = time.monotonic(), clock_jumps.boot_s()
        with self.after_commit.of_a_transaction(), transaction.writing(self.database, self.app, wait=wait) as tx:
            waited_s = time.monotonic() - started  # waited for the embedded store's lock, or for the server
            if embedded and self.database.someone_wrote():  # asked under the write lock, so the write cannot be our own
                self.others_wrote = True
            tx.air, tx.rings, self.handlers = self.air, self.rings, tx.handlers
            self._stay_with(tx.server)
            leapt = self.pace.leapt(tx.now, asked_s)
            if leapt:
                clock_jumps.move_times_with_clock(tx, self.id, leapt)
            yield tx
            self.after_commit.commits_now()
        if leapt:
            self.steps_back += leapt < timedelta()
            self.pace.followed()
        if embedded:
            self.database.someone_wrote()  # reads the counter once more, so that our own commit does not count as a foreign write
        took = time.monotonic() - started - waited_s
        if took > LONG_S:
            log.warning(
                "a transaction%s took %.1f s, %s",
                "" if self.at_work is None else f" of {self.at_work}",
                took,
                tx.handlers.in_words(took),
                extra={
                    "event": "transaction_long",
                    "took_s": round(took, 3),
                    "handlers_s": round(tx.handlers.total_s, 3),
                    "reaction": self.at_work,
                    "record": tx.handlers.longest,
                },
            )

    def _stay_with(self, server: str | None) -> None:
        """Raise OtherServer if this transaction runs on another server than the lock, and LockSessionEnded if the lock's session has ended,
        as all sessions do when a backend crashes: then what this incarnation knows may no longer be true.
        """
        if self.server is None or (server == self.server and (not self.sound or self.liveness.held())):
            return
        if server == self.server:
            self.say_lock_lost("the session that had it has ended, and the database is on the same server as before")
            self.sound = False  # as below
            raise LockSessionEnded("the session that had the lock of this worker has ended")
        if self.sound:
            self.sound = False  # set before anything is concluded or begun there; the next incarnation first checks what was lost
            log.error(
                "the database is on another server now, or was started anew: no call goes out until this life has its lock there,"
                " or it has begun anew",
                extra={"event": "server_changed", "worker": f"{self.id:x}"},
            )
        raise OtherServer("the database moved to another server, or was started anew")

    def say_lock_lost(self, how: str) -> None:
        """Tell the log. how: what is known of it."""
        log.error(
            "the lock of this worker is lost: %s; no call goes out until it is taken again, or it has begun anew",
            how,
            extra={"event": "lock_lost", "worker": f"{self.id:x}"},
        )

    def did_others_write(self) -> bool:
        """Return whether another connection wrote to an embedded store since this was last asked."""
        seen, self.others_wrote = self.others_wrote or self.database.someone_wrote(), False
        return seen

    def count_begins(self, tx: Transaction, new: int) -> None:
        """Add `new` calls to the count in this incarnation's row, in the transaction that begins them.

        Raises:
            WentBackError: The database remembers fewer begins than this incarnation made.
            RowRewritten: Something else wrote the row, so the database may have been put back.
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
            raise RowRewritten("the row of this worker was written by somebody else: the database may have been put back")
        if self.store_begins is not None:
            self.store_begins.count(tx, new)

    def counted(self) -> None:
        """Store the latest count where a backup does not reach: in the witness file and the high-water mark. Called after the begin's
        commit and before its first call.

        The count is the database's, not the previous one plus the new calls: an earlier begin may have been committed though its COMMIT got
        no answer.
        """
        self.begins = self.told
        if self.witness:
            self.witness.write(self.id, self.begins)
        if self.store_begins is not None:
            self.store_begins.counted()

    def shorten(self, error: str, most: int = ERROR_LENGTH) -> str:
        """Return an error's text as it is stored: redacted, cut to `most` characters, without control characters (hazard 54)."""
        codec = self.database.codec  # a character that the database's encoding lacks would make the whole attempt fail
        said = self._redacted(error).encode(codec, "replace").decode(codec)[: most + 1]
        plain = "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in said)
        return plain if len(plain) <= most else plain[: most - 3] + "..."

    def _redacted(self, words: str) -> str:
        """Pass a text through the user's `redact`. If that fails, leave out both the text and what was raised, since either may hold what
        must be hidden.
        """
        try:
            with inside(self.app, "`redact`", REDACT_CURE, may_say=False):
                return str.__str__(self.redact(words))
        except BaseException as error:
            let_through(error)
            failed = f"`redact` raised {type(error).__name__}"
            if not self.redact_failed:
                self.redact_failed = True
                said = "%s: what it is given is left out, here and where it is kept"
                log.error(said, failed, extra={"event": "redact_failed"})  # noqa: TRY400  # a traceback would show what `redact` hides
            return f"(left out, since {failed})"

    def outcome_as_text(self, words: str) -> str:
        """Return the text of an outcome that JSON cannot bring back, as `shorten` does, but longer, since nothing else of it
        may be kept.
        """
        return self.shorten(words, OUTCOME_LENGTH)

    def end(self, *, with_past: bool = False) -> None:
        """End cleanly: delete this incarnation's row (with `with_past`, those of its past ones too) and free the lock. The attempts of
        calls that are still in flight must have been written as in doubt before.
        """
        try:
            self.delete_row_keep_lock(with_past=with_past)
        finally:
            self.liveness.release()

    def delete_row_keep_lock(self, *, with_past: bool = False) -> None:
        """Delete this incarnation's row (with `with_past`, those of its past ones too) but keep its lock: calls of it that are in doubt
        still run, and no other worker may settle them before they end.
        """
        self.sound = False
        over = {self.id, *self.past} if with_past else {self.id}
        if self.witness:
            for one in over:
                self.witness.erase(one)
        with self.transaction() as tx:
            tx.connection.execute(delete(tables.worker).where(tables.worker.c.id.in_(over)))


# Evaluated after the UPDATE: `wrote` is this transaction only if the row was as we had left it.
_ROW_IS_OURS = OnPostgres("coalesce(groundstate_worker.wrote = pg_current_xact_id(), true)", "(1 = 1)", Boolean())
_APART = (
    "the lock of this worker is on another server than the tables: direct= must lead to the server that the store's own URL leads to"
    " (while a failover is under way, both may lead there a moment later)"
)
LONG_S = 1.0  # seconds: a longer transaction of ours is logged (hazard 26)


def left_by(incarnation: Incarnation) -> ColumnElement[bool]:
    """Return the condition for attempts that this worker adopts once their own worker has ended. An attempt in doubt whose reaction this
    code does not declare is left to code that does.
    """
    attempt = tables.attempt
    ours = and_(attempt.c.app == incarnation.app, attempt.c.reaction.in_(sorted(incarnation.declared)))
    return or_(attempt.c.state == "begun", and_(attempt.c.state == "doubt", ours))


RECONNECT = timedelta(seconds=5)  # incarnations that lost their locks all at once have this long to take them again


def incarnations_that_may_return(incarnation: Incarnation, dead: Sequence[int]) -> set[int]:
    """Return those of the incarnations with a free lock that may still be running, because this worker has not been here long enough to
    know. Their lock was on another server than ours, or on ours before its restart; or this worker lost its own lock on this server, and
    they may have lost theirs at the same time.

    This worker's own past incarnations are over, and so is one whose row says that it ended.
    """
    here = incarnation.server_start
    incarnation.awaits_until = None
    until = incarnation.met[here] + RECONNECT.total_seconds() if here in incarnation.met else 0.0
    if here is None or not dead or time.monotonic() >= until:
        return set()
    row = tables.worker.c
    freed = row.server.is_not(None) if here in incarnation.cut else row.server != here  # server is NULL in rows of older code
    with incarnation.database.reading() as connection:
        found = set(connection.execute(select(row.id).where(row.id.in_(dead), row.ended_at.is_(None), freed)).scalars()) - incarnation.past
    if found:
        incarnation.awaits_until = until
    return found


def other_incarnations_with_remains(incarnation: Incarnation) -> list[int]:
    """Return the ids of other incarnations that left something: a row that does not say they ended, begun attempts, or attempts in doubt of
    reactions that this code declares.
    """
    with incarnation.database.reading() as connection:
        rows = connection.execute(
            select(tables.worker.c.id)
            .where(tables.worker.c.ended_at.is_(None), tables.worker.c.id != incarnation.id)
            .union(select(tables.attempt.c.worker).where(left_by(incarnation), tables.attempt.c.worker != incarnation.id).distinct())
        ).scalars()
        found = list(rows)
    if len(lives_among(found)) < len(set(found)):
        raise Illegible("a worker in our tables has no number that a worker can have")
    return found
