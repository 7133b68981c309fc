"""The actions of the torture: they keep enough workers running, end processes, fill and free the disk, and call the judge's checks."""

from __future__ import annotations

import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from sqlalchemy import literal_column, update
from sqlalchemy.exc import DBAPIError

from groundstate.store import tables
from tools.torture import worker
from tools.torture.deploy import Deploys
from tools.torture.fleet import Code, Fleet, Seen
from tools.torture.judge import Judge
from tools.torture.orders import Orders
from tools.torture.place import Place
from tools.torture.plan import Plan

DRAIN_WITHIN_S = 40.0  # seconds: a worker must have ended this soon after SIGTERM
PERSON_EVERY_S = 2.0  # seconds between two passes of the person
PERSON_WITHIN_S = 30.0  # seconds that the run waits for a pass of the person
DEEPER_EVERY_S = 5.0  # seconds between two deeper checks of the judge
IN_TROUBLE_S = 75.0  # seconds after a trouble of the database in which a worker may fail to start
WORKING = 0.7  # share of the kills that wait for work in progress; the others may hit a worker that was just forked or is idle
WORKING_WITHIN_S = 1.0  # seconds that a kill waits at most for work in progress


@dataclass(eq=False)
class Hands:
    """What each action needs: the processes, the database, the judge, and pauses in which the shop goes on."""

    plan: Plan
    dice: Random
    place: Place
    fleet: Fleet
    judge: Judge
    deploys: Deploys
    orders: Orders
    story: Path  # a file with each action and its time
    kills: int = 0
    done: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    codes: dict[int, Code] = field(default_factory=dict)  # the code of each process, by its pid
    person: Seen | None = None
    full_until: float | None = None
    _draining: dict[Seen, float] = field(default_factory=dict)  # since when each drains, by the judge's clock (seconds)
    _trouble_at: float = -IN_TROUBLE_S
    _person_at: float = field(default_factory=time.monotonic)
    _deeper_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.deploys.meanwhile = self.let_go

    def tell(self, what: str) -> None:
        """Log an action with its time, so that it can be compared with the ledger."""
        with self.story.open("a") as story:
            story.write(f"{time.time():.3f} {what}\n")

    # ---- processes -----------------------------------------------------------------------------------------------------------------
    def staff(self) -> None:
        """Keep as many workers running as planned, and a person now and then; continue stopped processes and free the disk when due."""
        self.let_go()
        while len([one for one in self.fleet.living() if one.wakes_at is None]) < self.plan.workers:
            self.bear("worker")
        alive = self.person is not None and self.person.status is None
        if not alive and time.monotonic() - self._person_at > PERSON_EVERY_S:
            self.send_person()

    def let_go(self) -> None:
        """Continue the stopped processes and free the disk, each when its time has come."""
        self.fleet.wake_due()
        if self.full_until is not None and time.monotonic() > self.full_until:
            self.free()

    def bear(self, what: str) -> Seen:
        """Fork a worker, a restorer or a person of the current code."""
        one = self.fleet.bear(self.deploys.code, what)
        self.codes[one.pid] = one.code
        self.judge.excuses.born(one.pid)
        if self.full_until is not None and self.place.disk is not None:
            self.place.disk.limit([one.pid])
        return one

    def bear_cold(self) -> None:
        """Start a worker as a separate interpreter, as a user does."""
        one = self.fleet.bear_cold(self.deploys.code)
        self.codes[one.pid] = one.code
        self.judge.excuses.born(one.pid)

    def send_person(self) -> Seen:
        """Start a process of the person, which handles the held attempts once."""
        self._person_at = time.monotonic()
        self.person = self.bear("person")
        return self.person

    def wait_for_person(self) -> None:
        """Start a process of the person, and wait until it has ended."""
        person = self.send_person()
        self.fleet.wait(lambda: person.status is not None, PERSON_WITHIN_S)

    def kill(self, workers: list[Seen]) -> None:
        """Kill the workers by SIGKILL, one after the other."""
        for one in workers:
            self.kills += one.what != "person"
            self.tell(f"SIGKILL to {one.what} {one.pid} of version {one.code}")
            self.done["killed while stopped"] += one.wakes_at is not None
            self.done["killed cold"] += one.cold is not None
            self.fleet.kill(one)

    def some(self, count: int) -> list[Seen]:
        """Draw some living workers, mostly those that had time to begin a call."""
        living = self.fleet.living()
        if self.dice.random() < 0.85:
            count = min(count, len(living))
            living = sorted(living, key=lambda one: one.since)[: max(count, len(living) - 1)]
        return self.dice.sample(living, min(count, len(living)))

    def drain_all(self) -> None:
        """Send SIGTERM to all workers, and wait until they have ended."""
        for one in self.fleet.living():
            self.fleet.drain(one)
        self.fleet.wait(lambda: not self.fleet.all(), DRAIN_WITHIN_S + 1)
        self._look_at_ends()

    def end_all(self, *, drained: bool) -> None:
        """End all processes of the shop, including persons; with `drained`, first by SIGTERM."""
        if drained:
            self.drain_all()
            if not self.fleet.wait(lambda: not self.fleet.all(), DRAIN_WITHIN_S):
                for one in self.fleet.all():
                    self.judge.fault("Drain", f"{one} has not ended {DRAIN_WITHIN_S:g} s after it was told to")
        self.kill(self.fleet.all())
        self._look_at_ends()

    # ---- the database ----------------------------------------------------------------------------------------------------------------
    def free(self) -> None:
        """Give the disk room again."""
        if self.full_until is not None:
            self.full_until = None
            self.in_trouble()
            self.place.free()
            if self.place.disk is not None:
                self.place.disk.limit(one.pid for one in self.fleet.all())

    def fill(self, for_s: float) -> None:
        """Fill the disk for `for_s` seconds."""
        self.in_trouble()
        self.full_until = time.monotonic() + for_s
        self.place.fill()
        if self.place.disk is not None:
            self.place.disk.limit(one.pid for one in self.fleet.all())

    def in_trouble(self) -> None:
        """Note a trouble of the database, after which a worker may fail to start for a while."""
        self._trouble_at = time.monotonic()

    def end_troubles(self) -> None:
        """End all troubles: continue stopped processes, free the disk, and bring the database back."""
        self.fleet.wake_due(all_of_them=True)
        self.free()
        self.place.recover()

    # ---- in between ------------------------------------------------------------------------------------------------------------------
    def pause(self, seconds: float) -> None:
        """Let the shop run on for these seconds; stopped processes continue when their time has come."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.fleet.wait(lambda: False, min(left, 0.2))
            self.let_go()

    def go_on(self, seconds: float) -> None:
        """Let the shop run on for these seconds with enough workers, and let the judge check the invariants."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.staff()
            self.pause(0.2)
            self.look()

    def until_effects(self, count: int) -> None:
        """Wait until some effects have landed, so that on a slow machine, too, the next action hits workers that work."""
        end = time.monotonic() + WORKING_WITHIN_S
        while time.monotonic() < end and not self.judge.ledger.more_than(count):
            self.pause(0.02)

    def look(self) -> None:
        """Let the judge check the invariants, and check how the processes ended that have ended."""
        self._look_at_ends()
        with suppress(DBAPIError):  # the database is in trouble; the next check finds what this one would have found
            self.judge.sample()
            if time.monotonic() - self._deeper_at > DEEPER_EVERY_S:
                self._deeper_at = time.monotonic()
                self.judge.look_deeper()
                self._age_the_ends()

    def _look_at_ends(self) -> None:
        """Check that workers ended only when they were told to; where the database is in trouble, one may fail to start."""
        in_trouble = self.full_until is not None or time.monotonic() - self._trouble_at < IN_TROUBLE_S
        for one in self.fleet.ended():
            by_itself = (0, -signal.SIGTERM, worker.NO_DATABASE) if one.told_at else ()  # it may have ended just before the kill
            expected = {"killed": (-signal.SIGKILL, *by_itself), "drained": by_itself}.get(one.told, ())
            if one.what == "person":
                expected = (0, -signal.SIGKILL)
            may_not_start = one.status == worker.NO_DATABASE and (in_trouble or self.place.store == "postgres")
            how = one.told or "nobody told it to"
            self.judge.checks["OthersGoOn"] += 1
            self.ends[f"{one.what}, {how}: {_word(one.status)}"] += 1
            if one.status not in expected and not may_not_start:
                self.judge.fault("OthersGoOn", f"{one.what} {one.pid} of version {one.code} ended: {_word(one.status)} ({how})")
        for one in self.fleet.all():
            if one.told == "drained" and self._too_long(one) and one.wakes_at is None:
                self.judge.fault("Drain", f"worker {one.pid} has not ended {DRAIN_WITHIN_S:g} s after SIGTERM")
                self.kill([one])

    def _too_long(self, one: Seen) -> bool:
        """Return whether a draining worker had DRAIN_WITHIN_S seconds of run time to end."""
        since = self._draining.setdefault(one, self.judge.clock.awake_s)
        return self.judge.clock.awake_s - since > DRAIN_WITHIN_S

    def _age_the_ends(self) -> None:
        """In every other 20 seconds, move the ends of dead workers into the past as if the kills were hours apart, so that careful mode
        ends.
        """
        if int(time.monotonic() / 20) % 2 == 0:
            return
        past = "datetime(ended_at, '-1 hour')" if self.place.store == "sqlite" else "ended_at - interval '1 hour'"
        # It uses groundstate's own table definition, since a row written by other means would look like a restore.
        ended = update(tables.worker).where(tables.worker.c.ended_at.is_not(None))
        with self.place.engine.begin() as connection:
            connection.execute(ended.values(ended_at=literal_column(past)))


def _word(status: int | None) -> str:
    words = {
        0: "by an orderly end",
        -signal.SIGKILL: "by SIGKILL",
        -signal.SIGTERM: "by SIGTERM, before it had heard of it",
        worker.BY_ITSELF: "by an error",
        worker.NO_DATABASE: "the database was in trouble at its start",
        worker.REFUSED: "its start was refused",
        worker.ORPHAN: "as an orphan",
    }
    return words.get(status, f"with status {status}") if status is not None else "not yet"
