"""What is done to the workers and the database of one run, act by act. The judge looks after each; here, at how processes end."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from random import Random

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from groundstate.testing.torture import worker
from groundstate.testing.torture.deploy import Deploys
from groundstate.testing.torture.fleet import Fleet, Seen
from groundstate.testing.torture.judge import Judge
from groundstate.testing.torture.place import Place
from groundstate.testing.torture.plan import Plan

DRAIN_WITHIN_S = 40.0
PERSON_EVERY_S = 2.0
PERSON_WITHIN_S = 30.0
DEEPER_EVERY_S = 5.0
IN_TROUBLE_S = 75.0  # for so long after a trouble of the database a worker may find that it cannot start
WORKING = 0.7  # of the kills; the others come as they come: to one that was just born, or has nothing to do
WORKING_WITHIN_S = 1.0
STOPPED_AT_MOST = 3  # at once


class Tormentor:
    """Carries out acts, and keeps the shop staffed meanwhile."""

    def __init__(self, plan: Plan, dice: Random, place: Place, fleet: Fleet, judge: Judge, deploys: Deploys) -> None:
        self.plan, self.dice, self.place, self.fleet, self.judge, self.deploys = plan, dice, place, fleet, judge, deploys
        self.kills = 0
        self.done: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.person: Seen | None = None
        self._full_until: float | None = None
        self._draining: dict[Seen, float] = {}  # since when, on the judge's clock
        self._trouble_at = -IN_TROUBLE_S
        self._person_at = self._deeper_at = time.monotonic()
        self._acts: dict[str, Callable[[], None]] = {
            "kill": lambda: self._kill(self._some(1)),
            "kill two": lambda: self._kill(self._some(2)),
            "kill all": lambda: self._kill(self.fleet.living()),
            "kill a stopped one": self._kill_stopped,
            "stop past deadlines": lambda: self._stop(self.dice.uniform(6, 8)),
            "stop for a moment": lambda: self._stop(self.dice.uniform(0.1, 2)),
            "drain": self._drain,
            "start cold": self._start_cold,
            "fill the disk": self._fill,
            "deploy": self._deploy,
            "cut connections": lambda: place.proxy.cut(self.dice.randint(1, 6)) if place.proxy else None,
            "stall connections": lambda: place.proxy.stall(self.dice.randint(1, 4), self.dice.uniform(0.2, 7)) if place.proxy else None,
            "kill PostgreSQL": lambda: self._break(place.kill_server),
            "kill a backend": lambda: self._break(place.kill_backend),
        }

    def act(self, what: str) -> None:
        """One act, and the look of the judge after it."""
        if not self.place.can(what):
            return
        self.staff()
        if what.startswith("kill") and self.dice.random() < WORKING:
            self._until_effects(self.dice.randint(1, 8))
        self._acts[what]()
        self.done[what] += 1
        self.look()
        self._pause(self.dice.uniform(0, 2 / self.plan.a_second))

    def staff(self) -> None:
        """As many workers as planned, a person now and then, the stopped let go on, the disk freed, each when its time has come."""
        self.fleet.wake_due()
        if self._full_until is not None and time.monotonic() > self._full_until:
            self.free()
        while len([one for one in self.fleet.living() if one.wakes_at is None]) < self.plan.workers:
            self._bear("worker")
        alive = self.person is not None and self.person.status is None
        if not alive and time.monotonic() - self._person_at > PERSON_EVERY_S:
            self.send_person()

    def send_person(self) -> Seen:
        """A round of the person."""
        self._person_at = time.monotonic()
        self.person = self._bear("person")
        return self.person

    def wait_for_person(self) -> None:
        """A round of the person, from its beginning to its end."""
        person = self.send_person()
        self.fleet.wait(lambda: person.status is not None, PERSON_WITHIN_S)

    def free(self) -> None:
        """The disk has room again."""
        if self._full_until is not None:
            self._full_until, self._trouble_at = None, time.monotonic()
            self.place.free()
            if self.place.disk is not None:
                self.place.disk.limit(one.pid for one in self.fleet.all())

    def end_troubles(self) -> None:
        """Nothing that was done goes on."""
        self.fleet.wake_due(all_of_them=True)
        self.free()
        self.place.recover()

    def look(self) -> None:
        """The judge's look, and at who ended."""
        self._look_at_ends()
        with suppress(DBAPIError):  # the database is in trouble just now: the next look sees what this one would have
            self.judge.sample()
            if time.monotonic() - self._deeper_at > DEEPER_EVERY_S:
                self._deeper_at = time.monotonic()
                self.judge.look_deeper()
                self._age_the_ends()

    def drain_all(self) -> None:
        """All are told to end, and are waited for."""
        for one in self.fleet.living():
            self.fleet.drain(one)
        self.fleet.wait(lambda: not self.fleet.all(), DRAIN_WITHIN_S + 1)
        self._look_at_ends()

    # ---- acts ----------------------------------------------------------------------------------------------------------------------
    def _kill(self, workers: list[Seen]) -> None:
        for one in workers:
            self.kills += 1
            self.done["killed while stopped"] += one.wakes_at is not None
            self.done["killed cold"] += one.cold is not None
            self.fleet.kill(one)

    def _until_effects(self, count: int) -> None:
        """So that on a slow machine, too, workers are killed that work."""
        end = time.monotonic() + WORKING_WITHIN_S
        while time.monotonic() < end and not self.judge.ledger.more_than(count):
            self._pause(0.02)

    def _some(self, count: int) -> list[Seen]:
        """Mostly such as had time to begin something."""
        living = self.fleet.living()
        if self.dice.random() < 0.85:
            count = min(count, len(living))
            living = sorted(living, key=lambda one: one.since)[: max(count, len(living) - 1)]
        return self.dice.sample(living, min(count, len(living)))

    def _kill_stopped(self) -> None:
        one = self.dice.choice(self.fleet.living())
        self.fleet.stop(one, 60)
        self.judge.stopped.add(one.pid)
        self._pause(self.dice.uniform(0, 0.2))
        self._kill([one])

    def _drain(self) -> None:
        for one in self._some(1):
            self.fleet.drain(one)

    def _start_cold(self) -> None:
        self.fleet.bear_cold(self.deploys.version)

    def _stop(self, for_s: float) -> None:
        awake = [one for one in self.fleet.living() if one.wakes_at is None]
        stopped = len(self.fleet.living()) - len(awake)
        if awake and stopped < STOPPED_AT_MOST:
            one = self.dice.choice(awake)
            self.judge.stopped.add(one.pid)
            self._trouble_at = time.monotonic()  # it may hold a lock that others wait for
            self.fleet.stop(one, for_s)

    def _fill(self) -> None:
        self._trouble_at = time.monotonic()
        self._full_until = time.monotonic() + self.dice.uniform(0.3, 2.5)
        self.place.fill()
        if self.place.disk is not None:
            self.place.disk.limit(one.pid for one in self.fleet.all())

    def _break(self, how: Callable[[], None]) -> None:
        self._trouble_at = time.monotonic()
        how()
        self._trouble_at = time.monotonic()

    def _deploy(self) -> None:
        self.end_troubles()
        if not self.deploys.next_is_a_rename():
            self.deploys.roll()  # those of the old code go on beside the new, until they are killed or drained
            old = [one for one in self.fleet.living() if one.version != self.deploys.version]
            for one in old[: len(old) // 2]:
                self.fleet.drain(one)
        elif self.dice.random() < 0.5:
            self.drain_all()
            self._end_of_all_then_rename()
        else:
            self._kill(self.fleet.living())
            self._end_of_all_then_rename()
        self.judge.surveys = True
        self.judge.forgive_the_time()

    def _end_of_all_then_rename(self) -> None:
        if not self.fleet.wait(lambda: not self.fleet.all(), DRAIN_WITHIN_S):
            for one in self.fleet.all():
                self.judge.fault("Drain", f"{one} has not ended {DRAIN_WITHIN_S:g} s after it was told to")
                self.fleet.kill(one)
        self.deploys.rename()

    # ---- meanwhile -------------------------------------------------------------------------------------------------------------------
    def _bear(self, what: str) -> Seen:
        one = self.fleet.bear(self.deploys.version, what)
        if self._full_until is not None and self.place.disk is not None:
            self.place.disk.limit([one.pid])
        return one

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.fleet.wait(lambda: False, min(left, 0.2))
            self.fleet.wake_due()

    def _look_at_ends(self) -> None:
        """A worker ends when it is told to, and only then; in trouble one may not come up."""
        in_trouble = self._full_until is not None or time.monotonic() - self._trouble_at < IN_TROUBLE_S
        for one in self.fleet.ended():
            expected = {"killed": (-signal.SIGKILL,), "drained": (0, -signal.SIGTERM, worker.NO_DATABASE)}.get(one.told, ())
            if one.what == "person":
                expected = (0, -signal.SIGKILL)
            may_not_start = one.status == worker.NO_DATABASE and (in_trouble or self.place.store == "postgres")
            how = one.told or "nobody told it to"
            self.judge.checks["OthersGoOn"] += 1
            self.ends[f"{one.what}, {how}: {_word(one.status)}"] += 1
            if one.status not in expected and not may_not_start:
                self.judge.fault("OthersGoOn", f"{one.what} {one.pid} of version {one.version} ended: {_word(one.status)} ({how})")
        for one in self.fleet.all():
            if one.told == "drained" and self._too_long(one) and one.wakes_at is None:
                self.judge.fault("Drain", f"worker {one.pid} has not ended {DRAIN_WITHIN_S:g} s after SIGTERM")
                self._kill([one])

    def _too_long(self, one: Seen) -> bool:
        """Whether it had DRAIN_WITHIN_S to end, as the machine let us run."""
        since = self._draining.setdefault(one, self.judge.clock.awake_s)
        return self.judge.clock.awake_s - since > DRAIN_WITHIN_S

    def _age_the_ends(self) -> None:
        """In every other part of the run it goes on as if the kills were hours apart: careful mode ends."""
        if int(time.monotonic() / 20) % 2 == 0:
            return
        past = "datetime(ended_at, '-1 hour')" if self.place.store == "sqlite" else "ended_at - interval '1 hour'"
        statement = f"UPDATE groundstate_worker SET ended_at = {past} WHERE ended_at IS NOT NULL"  # noqa: S608  # our own words
        with self.place.engine.begin() as connection:
            connection.execute(text(statement))


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
