"""The hands of the torture: they keep the shop staffed, end what they began, and look after each act. What is done is said elsewhere."""

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
from groundstate.testing.torture import worker
from groundstate.testing.torture.deploy import Deploys
from groundstate.testing.torture.fleet import Code, Fleet, Seen
from groundstate.testing.torture.judge import Judge
from groundstate.testing.torture.orders import Orders
from groundstate.testing.torture.place import Place
from groundstate.testing.torture.plan import Plan

DRAIN_WITHIN_S = 40.0
PERSON_EVERY_S = 2.0
PERSON_WITHIN_S = 30.0
DEEPER_EVERY_S = 5.0
IN_TROUBLE_S = 75.0  # for so long after a trouble of the database a worker may find that it cannot start
WORKING = 0.7  # of the kills; the others come as they come: to one that was just born, or has nothing to do
WORKING_WITHIN_S = 1.0


@dataclass(eq=False)
class Hands:
    """What each act needs: processes to kill and to bear, pauses in which the shop goes on, and the judge's look."""

    plan: Plan
    dice: Random
    place: Place
    fleet: Fleet
    judge: Judge
    deploys: Deploys
    orders: Orders
    story: Path  # a file, in which each act stands with its time
    kills: int = 0
    done: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    codes: dict[int, Code] = field(default_factory=dict)  # what each process ran, by its number
    person: Seen | None = None
    full_until: float | None = None
    _draining: dict[Seen, float] = field(default_factory=dict)  # since when, on the judge's clock
    _trouble_at: float = -IN_TROUBLE_S
    _person_at: float = field(default_factory=time.monotonic)
    _deeper_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.deploys.meanwhile = self.let_go

    def tell(self, what: str) -> None:
        """Writes down what is done now, so that what the ledger says can be laid beside it."""
        with self.story.open("a") as story:
            story.write(f"{time.time():.3f} {what}\n")

    # ---- processes -----------------------------------------------------------------------------------------------------------------
    def staff(self) -> None:
        """As many workers as planned, a person now and then, and what is over let go."""
        self.let_go()
        while len([one for one in self.fleet.living() if one.wakes_at is None]) < self.plan.workers:
            self.bear("worker")
        alive = self.person is not None and self.person.status is None
        if not alive and time.monotonic() - self._person_at > PERSON_EVERY_S:
            self.send_person()

    def let_go(self) -> None:
        """The stopped go on and the disk is freed, each when its time has come."""
        self.fleet.wake_due()
        if self.full_until is not None and time.monotonic() > self.full_until:
            self.free()

    def bear(self, what: str) -> Seen:
        """A worker, a restorer or a person of the present code."""
        one = self.fleet.bear(self.deploys.code, what)
        self.codes[one.pid] = one.code
        self.judge.excuses.born(one.pid)
        if self.full_until is not None and self.place.disk is not None:
            self.place.disk.limit([one.pid])
        return one

    def bear_cold(self) -> None:
        """A worker as a user starts it."""
        one = self.fleet.bear_cold(self.deploys.code)
        self.codes[one.pid] = one.code
        self.judge.excuses.born(one.pid)

    def send_person(self) -> Seen:
        """A round of the person."""
        self._person_at = time.monotonic()
        self.person = self.bear("person")
        return self.person

    def wait_for_person(self) -> None:
        """A round of the person, from its beginning to its end."""
        person = self.send_person()
        self.fleet.wait(lambda: person.status is not None, PERSON_WITHIN_S)

    def kill(self, workers: list[Seen]) -> None:
        """SIGKILL, one after the other."""
        for one in workers:
            self.kills += one.what != "person"
            self.tell(f"SIGKILL to {one.what} {one.pid} of version {one.code}")
            self.done["killed while stopped"] += one.wakes_at is not None
            self.done["killed cold"] += one.cold is not None
            self.fleet.kill(one)

    def some(self, count: int) -> list[Seen]:
        """Mostly such as had time to begin something."""
        living = self.fleet.living()
        if self.dice.random() < 0.85:
            count = min(count, len(living))
            living = sorted(living, key=lambda one: one.since)[: max(count, len(living) - 1)]
        return self.dice.sample(living, min(count, len(living)))

    def drain_all(self) -> None:
        """All are told to end, and are waited for."""
        for one in self.fleet.living():
            self.fleet.drain(one)
        self.fleet.wait(lambda: not self.fleet.all(), DRAIN_WITHIN_S + 1)
        self._look_at_ends()

    def end_all(self, *, drained: bool) -> None:
        """No process of the shop is there then, persons included."""
        if drained:
            self.drain_all()
            if not self.fleet.wait(lambda: not self.fleet.all(), DRAIN_WITHIN_S):
                for one in self.fleet.all():
                    self.judge.fault("Drain", f"{one} has not ended {DRAIN_WITHIN_S:g} s after it was told to")
        self.kill(self.fleet.all())
        self._look_at_ends()

    # ---- the database ----------------------------------------------------------------------------------------------------------------
    def free(self) -> None:
        """The disk has room again."""
        if self.full_until is not None:
            self.full_until = None
            self.in_trouble()
            self.place.free()
            if self.place.disk is not None:
                self.place.disk.limit(one.pid for one in self.fleet.all())

    def fill(self, for_s: float) -> None:
        """The disk has no room, for so long."""
        self.in_trouble()
        self.full_until = time.monotonic() + for_s
        self.place.fill()
        if self.place.disk is not None:
            self.place.disk.limit(one.pid for one in self.fleet.all())

    def in_trouble(self) -> None:
        """For a while a worker may find that it cannot start."""
        self._trouble_at = time.monotonic()

    def end_troubles(self) -> None:
        """Nothing that was done goes on."""
        self.fleet.wake_due(all_of_them=True)
        self.free()
        self.place.recover()

    # ---- meanwhile -------------------------------------------------------------------------------------------------------------------
    def pause(self, seconds: float) -> None:
        """The shop goes on; who is stopped is let go on when its time has come."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.fleet.wait(lambda: False, min(left, 0.2))
            self.let_go()

    def go_on(self, seconds: float) -> None:
        """The shop goes on, is staffed, and is looked at."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.staff()
            self.pause(0.2)
            self.look()

    def until_effects(self, count: int) -> None:
        """So that on a slow machine, too, it happens to workers that work."""
        end = time.monotonic() + WORKING_WITHIN_S
        while time.monotonic() < end and not self.judge.ledger.more_than(count):
            self.pause(0.02)

    def look(self) -> None:
        """The judge's look, and at who ended."""
        self._look_at_ends()
        with suppress(DBAPIError):  # the database is in trouble just now: the next look sees what this one would have
            self.judge.sample()
            if time.monotonic() - self._deeper_at > DEEPER_EVERY_S:
                self._deeper_at = time.monotonic()
                self.judge.look_deeper()
                self._age_the_ends()

    def _look_at_ends(self) -> None:
        """A worker ends when it is told to, and only then; in trouble one may not come up."""
        in_trouble = self.full_until is not None or time.monotonic() - self._trouble_at < IN_TROUBLE_S
        for one in self.fleet.ended():
            by_itself = (0, -signal.SIGTERM, worker.NO_DATABASE) if one.told_at else ()  # it may have ended as the kill came
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
        """Whether it had DRAIN_WITHIN_S to end, as the machine let us run."""
        since = self._draining.setdefault(one, self.judge.clock.awake_s)
        return self.judge.clock.awake_s - since > DRAIN_WITHIN_S

    def _age_the_ends(self) -> None:
        """In every other part of the run it goes on as if the kills were hours apart: careful mode ends."""
        if int(time.monotonic() / 20) % 2 == 0:
            return
        past = "datetime(ended_at, '-1 hour')" if self.place.store == "sqlite" else "ended_at - interval '1 hour'"
        # By the table as groundstate declares it: a row that somebody else wrote would be a sign of a restore.
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
