"""A life: one run of one worker on one store, whose lock dies with it. Knows whether it still is who it was; decides nothing.

No row says that it runs. Its row in `groundstate_worker` says that it began, and how many calls it began (hazard 46).
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

from groundstate.engine import leaps, transaction
from groundstate.engine.air import Air
from groundstate.engine.cells import lives_among
from groundstate.engine.guarded import let_through
from groundstate.engine.handler_times import HandlerTimes
from groundstate.engine.inside_call import REDACT_CURE, inside
from groundstate.engine.limited_lines import LimitedLines
from groundstate.engine.rings import Rings
from groundstate.engine.store_begins import StoreBegins
from groundstate.engine.tracebacks import Tracebacks
from groundstate.engine.transaction import Transaction
from groundstate.engine.trouble import Illegible, OtherServer, RowRewritten
from groundstate.rules.careful import Care
from groundstate.store import tables
from groundstate.store.port import Database, Lives, Witness
from groundstate.store.written import OnPostgres
from groundstate.values.errors import LifeTaken, StoreRefused, WentBack

log = logging.getLogger("groundstate")
ERROR_LENGTH = 2000
OUTCOME_LENGTH = 20_000


@dataclass
class Life:
    """What everything that carries out is given: the store, who we are, and whether we still are."""

    app: str
    database: Database
    lives: Lives
    witness: Witness | None
    redact: Callable[[str], str] = str
    declared: frozenset[str] = frozenset()  # names of this code's reactions and schedules: who can settle a doubt of theirs
    tables_of: Mapping[str, str] = field(default_factory=dict)  # the table of each reaction's records, for lines of the log
    id: int = field(default_factory=lambda: secrets.randbits(62))
    sound: bool = False  # False once the lock may be lost: then no call goes out
    begins: int = 0
    told: int = 0  # what the database counted in the latest begin, committed or not
    others_wrote: bool = False
    care: Care = field(default_factory=Care)
    dice: random.Random = field(init=False)  # of its own, thrown by its number
    key_names: dict[str, str] = field(default_factory=dict)  # reaction -> the name that its keys are made of (hazard 62)
    pace: leaps.Pace = field(default_factory=leaps.Pace)
    steps_back: int = 0  # of the database's clock, that were noticed
    server: str | None = None  # on which the lock is; None: nobody has begun, or there is no server
    incarnation: str | None = None  # of that server, as this life's row says it
    met: dict[str, float] = field(default_factory=dict)  # incarnations of the server, and when this worker last took a lock there
    cut: set[str] = field(default_factory=set)  # those of them on which it had lost one before
    lost_at: float | None = None  # monotonic: since when it is without its lock
    over: bool = False  # it must not go on, also where its lock is to be had again
    air: Air = field(default_factory=Air)  # of this worker, all its lives long
    unknown_states: set[tuple[object, ...]] = field(default_factory=set)  # the attempts of which it was told that their state is none
    rings: Rings = field(default_factory=Rings)  # the same
    lines: LimitedLines = field(default_factory=LimitedLines)  # the same
    awaits_until: float | None = None  # monotonic: until when others may take their numbers again; None: nobody is awaited
    taken: int = 0  # how often its lock was taken: what died with the lock is another's after that
    past: set[int] = field(default_factory=set)  # earlier lives of this very process, whose rows may still stand
    suspects: set[str] = field(default_factory=set)  # reactions that a person has not trusted since the database went back
    redact_failed: bool = False  # and that was told
    at_work: str | None = None  # the reaction whose handlers run just now
    handlers: HandlerTimes = field(default_factory=HandlerTimes)  # in the transaction that is open, or was the last one
    waiting: frozenset[str] = frozenset()  # reactions that wait for a person, since the database may have been put back
    tracebacks: Tracebacks = field(init=False)  # of what handlers raised
    store_begins: StoreBegins | None = field(init=False)  # how many calls were ever begun here: where the database has no identity itself

    def __post_init__(self) -> None:
        self.store_begins = None if self.database.high_water is None else StoreBegins(self.database.high_water)
        self.dice = random.Random(self.id)  # noqa: S311  # jitter, no secret
        self.tracebacks = Tracebacks(self.shorten)

    @property
    def holder(self) -> tuple[int, int]:
        """This life with one lock of it: what dies with a lock is kept under this."""
        return self.id, self.taken

    def begin(self) -> None:
        """Takes the lock, then writes that this life began. Raises StoreRefused."""
        self._take()
        try:
            with self.transaction() as tx:
                row = {"life": self.id, "app": self.app, "host": socket.gethostname(), "pid": os.getpid(), "began_at": tx.now, "begins": 0}
                tx.connection.execute(insert(tables.worker).values(**row, server=self.incarnation))
        except OtherServer as error:
            self.lives.release()
            raise StoreRefused(_APART) from error
        except BaseException:
            self.lives.release()  # a life that is not written down keeps no lock, and no connection for it
            raise
        if self.witness:
            self.witness.write(self.id, 0)
        self.sound = True

    def resume(self) -> bool:
        """After the lock was lost: takes the same number again. Everybody may have lost theirs with it: the server was started anew, or is
        another one, or all connections to it were cut. This life goes on then, and what it began is still its own; `sound` is for the
        caller to set.

        False: somebody adopted it; or the database remembers fewer begins than this life does. Then it is over.

        Raises:
            OperationalError, OtherServer: the server cannot be reached, or was started anew once more.
            LifeTaken: somebody has the lock.
        """
        before = self.incarnation
        if before is None or self.over:
            return False
        try:
            self._take()
        except LifeTaken:
            raise
        except StoreRefused:  # a standby, or a pooler, refuses the next life as well
            return False
        try:
            going_on = self._said_to_go_on()
        except BaseException:
            self.incarnation = before
            self.lives.release()
            raise
        if not going_on:
            self.lives.release()
        return going_on

    def _take(self) -> None:
        self.lives.take(self.id)
        self.server, self.incarnation = self.lives.server, self.lives.incarnation
        self.taken += 1
        if self.incarnation is not None:
            if self.incarnation in self.met:
                self.cut.add(self.incarnation)
            self.met[self.incarnation] = time.monotonic()

    def _said_to_go_on(self) -> bool:
        """Writes where the lock is now, while nobody has written that this life ended."""
        mine = (tables.worker.c.life == self.id, tables.worker.c.ended_at.is_(None), tables.worker.c.begins >= self.begins)
        with self.transaction() as tx:
            return tx.connection.execute(update(tables.worker).where(*mine).values(server=self.incarnation)).rowcount > 0

    @contextmanager
    def transaction(self, *, wait: timedelta | None = None) -> Iterator[Transaction]:
        """A transaction of ours, at whose begin a leap of the database's clock is noticed. On an embedded store it also notices whether
        somebody else wrote since the last one.
        """
        embedded = not self.database.locks_rows
        started, asked_s = time.monotonic(), leaps.boot_s()
        with transaction.writing(self.database, self.app, wait=wait) as tx:
            waited_s = time.monotonic() - started  # an embedded store's lock, or for the server
            if embedded and self.database.someone_wrote():  # asked under the write lock: surely not us
                self.others_wrote = True
            tx.air, tx.rings, self.handlers = self.air, self.rings, tx.handlers
            self._stay_with(tx.server)
            leapt = self.pace.leapt(tx.now, asked_s)
            if leapt:
                leaps.follow(tx, self.id, leapt)
            yield tx
        if leapt:
            self.steps_back += leapt < timedelta()
            self.pace.followed()
        if embedded:
            self.database.someone_wrote()  # that was us
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
        """Raises where this transaction is on another server than the lock, or the lock's session ended, as all do when a backend crashes:
        what this life knows need not be so any more.
        """
        if self.server is None or (server == self.server and (not self.sound or self.lives.held())):
            return
        if self.sound:
            self.sound = False  # before anything is concluded or begun there; the next life looks back first
            log.error(
                "the database is on another server now, or was started anew: no call goes out until this life has its lock there,"
                " or another life has begun",
                extra={"event": "server_changed", "life": f"{self.id:x}"},
            )
        raise OtherServer("the database moved to another server, or was started anew")

    def did_others_write(self) -> bool:
        """Whether somebody else wrote to an embedded store since this was last asked."""
        seen, self.others_wrote = self.others_wrote or self.database.someone_wrote(), False
        return seen

    def count_begins(self, tx: Transaction, new: int) -> None:
        """Counts calls in the begin's own transaction. Raises WentBack where the database remembers fewer than we do, or may have gone
        back.
        """
        row = tx.connection.execute(
            update(tables.worker)
            .where(tables.worker.c.life == self.id)
            .values(begins=tables.worker.c.begins + new)
            .returning(tables.worker.c.begins, _ROW_IS_OURS)
        ).first()
        counted = None if row is None else row[0]
        self.told = counted or 0
        if counted is None or counted < self.begins + new:
            raise WentBack(f"this life began {self.begins} calls and the database knows of {0 if counted is None else counted - new}")
        if row is not None and not row[1] and self.database.settings.failover != "lossless":
            raise RowRewritten("the row of this life was written by somebody else: the database may have been put back")
        if self.store_begins is not None:
            self.store_begins.count(tx, new)

    def counted(self) -> None:
        """After the begin's commit, before its first call: remembered where a backup does not reach.

        What the database counted, and not one more than before: an earlier begin may have landed though its COMMIT brought no answer.
        """
        self.begins = self.told
        if self.witness:
            self.witness.write(self.id, self.begins)
        if self.store_begins is not None:
            self.store_begins.counted()

    def shorten(self, error: str, most: int = ERROR_LENGTH) -> str:
        """An error's text as it is kept: redacted, bounded, without control characters (hazard 54)."""
        codec = self.database.codec  # a letter that the database's encoding lacks would be refused with the whole attempt
        said = self._redacted(error).encode(codec, "replace").decode(codec)[: most + 1]
        plain = "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in said)
        return plain if len(plain) <= most else plain[: most - 3] + "..."

    def _redacted(self, words: str) -> str:
        """Where `redact` fails, nothing is said of them: they may be what it is there to hide, and so may what it raised."""
        try:
            with inside(self.app, "`redact`", REDACT_CURE, may_say=False):
                return str.__str__(self.redact(words))
        except BaseException as error:
            let_through(error)
            failed = f"`redact` raised {type(error).__name__}"
            if not self.redact_failed:
                self.redact_failed = True
                said = "%s: what it is given is left out, here and where it is kept"
                log.error(said, failed, extra={"event": "redact_failed"})  # noqa: TRY400  # a traceback would tell what it hides
            return f"(left out, since {failed})"

    def outcome_as_text(self, words: str) -> str:
        """A text of an outcome that JSON cannot bring back: as an error's, and longer, since there may be nothing else of it."""
        return self.shorten(words, OUTCOME_LENGTH)

    def end(self, *, with_past: bool = False) -> None:
        """A clean end: no row stays. Attempts of calls still in the air were written as doubts before. with_past: nor one of its past."""
        try:
            self.say_over(with_past=with_past)
        finally:
            self.lives.release()

    def say_over(self, *, with_past: bool = False) -> None:
        """The same, and its lock is kept: calls of it that are in doubt still run, and nobody is to settle them before they end."""
        self.sound = False
        over = {self.id, *self.past} if with_past else {self.id}
        if self.witness:
            for one in over:
                self.witness.erase(one)
        with self.transaction() as tx:
            tx.connection.execute(delete(tables.worker).where(tables.worker.c.life.in_(over)))


# After the UPDATE: this transaction is written where the row was as we had left it.
_ROW_IS_OURS = OnPostgres("coalesce(groundstate_worker.wrote = pg_current_xact_id(), true)", "(1 = 1)", Boolean())
_APART = (
    "the lock of this life is on another server than the tables: direct= must lead to the server that the store's own URL leads to"
    " (while a failover is under way, both may lead there a moment later)"
)
LONG_S = 1.0  # a transaction of ours that took longer is told of (hazard 26)


def left_by(life: Life) -> ColumnElement[bool]:
    """Attempts that this life adopts once their own is no more. A doubt that this code does not declare is left to code that does."""
    attempt = tables.attempt
    ours = and_(attempt.c.app == life.app, attempt.c.reaction.in_(sorted(life.declared)))
    return or_(attempt.c.state == "begun", and_(attempt.c.state == "doubt", ours))


RECONNECT = timedelta(seconds=5)  # so long lives that lost their locks all at once have to take their numbers again


def may_return(life: Life, dead: Sequence[int]) -> set[int]:
    """Of lives whose lock is free those that may live all the same, where this worker has not been there for long enough to know: their
    lock was on another server than ours, or on ours before it was started anew; or this worker lost its own lock on this server, and
    others may have lost theirs with it.

    What was this worker's own life is over, and so is one of which somebody wrote that it ended.
    """
    here = life.incarnation
    life.awaits_until = None
    until = life.met[here] + RECONNECT.total_seconds() if here in life.met else 0.0
    if here is None or not dead or time.monotonic() >= until:
        return set()
    row = tables.worker.c
    freed = row.server.is_not(None) if here in life.cut else row.server != here  # NULL: of older code
    with life.database.reading() as connection:
        found = set(connection.execute(select(row.life).where(row.life.in_(dead), row.ended_at.is_(None), freed)).scalars()) - life.past
    if found:
        life.awaits_until = until
    return found


def lives_seen(life: Life) -> list[int]:
    """Lives other than ours that left something: a row that does not say they ended, attempts begun, or doubts that this code declares."""
    with life.database.reading() as connection:
        rows = connection.execute(
            select(tables.worker.c.life)
            .where(tables.worker.c.ended_at.is_(None), tables.worker.c.life != life.id)
            .union(select(tables.attempt.c.worker).where(left_by(life), tables.attempt.c.worker != life.id).distinct())
        ).scalars()
        found = list(rows)
    if len(lives_among(found)) < len(set(found)):
        raise Illegible("a life in our tables has no number that a life can have")
    return found
