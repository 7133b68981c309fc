"""The operator of the run: it keeps enough workers running, ends processes, fills and frees the disk, and calls the judge's checks."""

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
from tools.torture.fleet import Code, Fleet, ShopProcess
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
class Operator:
    """The actions on the processes and the database of a run, and the pauses between them in which the shop runs."""

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
    person: ShopProcess | None = None
    full_until: float | None = None
    _draining: dict[ShopProcess, float] = field(default_factory=dict)  # since when each drains, by the judge's clock (seconds)
    _trouble_at: float = -IN_TROUBLE_S
    _person_at: float = field(default_factory=time.monotonic)
    _deeper_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.deploys.meanwhile = self.resume_and_free_if_due

    def log_action(self, what: str) -> None:
        """Log an action with its time, so that it can be compared with the ledger."""
        with self.story.open("a") as story:
            story.write(f"{time.time():.3f} {what}\n")

    # ---- processes -----------------------------------------------------------------------------------------------------------------
    def keep_workers_running(self) -> None:
        """Start workers and the person where they are missing or due; continue stopped processes and free the disk when due."""
        self.resume_and_free_if_due()
        while len([one for one in self.fleet.living_workers() if one.wakes_at is None]) < self.plan.workers:
            self.fork_process("worker")
        alive = self.person is not None and self.person.status is None
        if not alive and time.monotonic() - self._person_at > PERSON_EVERY_S:
            self.start_person()

    def resume_and_free_if_due(self) -> None:
        """Continue the stopped processes and free the disk, each when its time has come."""
        self.fleet.resume_due()
        if self.full_until is not None and time.monotonic() > self.full_until:
            self.free_disk()

    def fork_process(self, what: str) -> ShopProcess:
        """Fork a worker, a restorer or a person of the current code."""
        one = self.fleet.fork(self.deploys.code, what)
        self.codes[one.pid] = one.code
        self.judge.excuses.record_new_process(one.pid)
        if self.full_until is not None and self.place.disk is not None:
            self.place.disk.apply_limit([one.pid])
        return one

    def start_cold_worker(self) -> None:
        """Start a worker as a separate interpreter, as a user does."""
        one = self.fleet.start_cold(self.deploys.code)
        self.codes[one.pid] = one.code
        self.judge.excuses.record_new_process(one.pid)

    def start_person(self) -> ShopProcess:
        """Start a process of the person, which handles the held attempts once."""
        self._person_at = time.monotonic()
        self.person = self.fork_process("person")
        return self.person

    def run_person(self) -> None:
        """Start a process of the person, and wait until it has ended."""
        person = self.start_person()
        self.fleet.wait_until(lambda: person.status is not None, PERSON_WITHIN_S)

    def kill_workers(self, workers: list[ShopProcess]) -> None:
        """Kill the workers by SIGKILL, one after the other."""
        for one in workers:
            self.kills += one.what != "person"
            self.log_action(f"SIGKILL to {one.what} {one.pid} of version {one.code}")
            self.done["killed while stopped"] += one.wakes_at is not None
            self.done["killed cold"] += one.cold is not None
            self.fleet.kill(one)

    def draw_workers(self, count: int) -> list[ShopProcess]:
        """Draw some living workers, mostly those that had time to begin a call."""
        living = self.fleet.living_workers()
        if self.dice.random() < 0.85:
            count = min(count, len(living))
            living = sorted(living, key=lambda one: one.since)[: max(count, len(living) - 1)]
        return self.dice.sample(living, min(count, len(living)))

    def drain_all_workers(self) -> None:
        """Send SIGTERM to all workers, and wait until they have ended."""
        for one in self.fleet.living_workers():
            self.fleet.send_sigterm(one)
        self.fleet.wait_until(lambda: not self.fleet.all_processes(), DRAIN_WITHIN_S + 1)
        self._check_ends()

    def end_all_processes(self, *, drained: bool) -> None:
        """End all processes of the shop, including persons; with `drained`, first by SIGTERM."""
        if drained:
            self.drain_all_workers()
            if not self.fleet.wait_until(lambda: not self.fleet.all_processes(), DRAIN_WITHIN_S):
                for one in self.fleet.all_processes():
                    self.judge.add_fault("Drain", f"{one} has not ended {DRAIN_WITHIN_S:g} s after it was told to")
        self.kill_workers(self.fleet.all_processes())
        self._check_ends()

    # ---- the database ----------------------------------------------------------------------------------------------------------------
    def free_disk(self) -> None:
        """Free the disk, if it is full."""
        if self.full_until is not None:
            self.full_until = None
            self.note_trouble()
            self.place.free_disk()
            if self.place.disk is not None:
                self.place.disk.apply_limit(one.pid for one in self.fleet.all_processes())

    def fill_disk(self, for_s: float) -> None:
        """Fill the disk for `for_s` seconds."""
        self.note_trouble()
        self.full_until = time.monotonic() + for_s
        self.place.fill_disk()
        if self.place.disk is not None:
            self.place.disk.apply_limit(one.pid for one in self.fleet.all_processes())

    def note_trouble(self) -> None:
        """Note a trouble of the database, after which a worker may fail to start for a while."""
        self._trouble_at = time.monotonic()

    def end_troubles(self) -> None:
        """End all troubles: continue stopped processes, free the disk, and bring the database back."""
        self.fleet.resume_due(all_of_them=True)
        self.free_disk()
        self.place.wait_for_recovery()

    # ---- in between ------------------------------------------------------------------------------------------------------------------
    def let_shop_run(self, seconds: float) -> None:
        """Let the shop run on for these seconds; stopped processes continue when their time has come."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.fleet.wait_until(lambda: False, min(left, 0.2))
            self.resume_and_free_if_due()

    def run_with_checks(self, seconds: float) -> None:
        """Let the shop run on for these seconds with enough workers, and let the judge check the invariants."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.keep_workers_running()
            self.let_shop_run(0.2)
            self.check_all()

    def wait_for_effects(self, count: int) -> None:
        """Wait until `count` effects have landed, so that the next action hits workers that work, even on a slow machine."""
        end = time.monotonic() + WORKING_WITHIN_S
        while time.monotonic() < end and not self.judge.ledger.has_more_than(count):
            self.let_shop_run(0.02)

    def check_all(self) -> None:
        """Let the judge check the invariants, and check the exit statuses of processes that have ended."""
        self._check_ends()
        with suppress(DBAPIError):  # the database is in trouble; the next check covers the same effects
            self.judge.check_effects()
            if time.monotonic() - self._deeper_at > DEEPER_EVERY_S:
                self._deeper_at = time.monotonic()
                self.judge.check_orders()
                self._backdate_worker_ends()

    def _check_ends(self) -> None:
        """Check that workers ended only after a signal of the run. Where the database is in trouble, a worker may fail to start."""
        in_trouble = self.full_until is not None or time.monotonic() - self._trouble_at < IN_TROUBLE_S
        for one in self.fleet.take_ended():
            by_itself = (0, -signal.SIGTERM, worker.NO_DATABASE) if one.told_at else ()  # it may have ended just before the kill
            expected = {"killed": (-signal.SIGKILL, *by_itself), "drained": by_itself}.get(one.told, ())
            if one.what == "person":
                expected = (0, -signal.SIGKILL)
            may_not_start = one.status == worker.NO_DATABASE and (in_trouble or self.place.store == "postgres")
            how = one.told or "nobody told it to"
            self.judge.checks["OthersGoOn"] += 1
            self.ends[f"{one.what}, {how}: {_status_text(one.status)}"] += 1
            if one.status not in expected and not may_not_start:
                self.judge.add_fault("OthersGoOn", f"{one.what} {one.pid} of version {one.code} ended: {_status_text(one.status)} ({how})")
        for one in self.fleet.all_processes():
            if one.told == "drained" and self._is_draining_too_long(one) and one.wakes_at is None:
                self.judge.add_fault("Drain", f"worker {one.pid} has not ended {DRAIN_WITHIN_S:g} s after SIGTERM")
                self.kill_workers([one])

    def _is_draining_too_long(self, one: ShopProcess) -> bool:
        """Return whether a draining worker had DRAIN_WITHIN_S seconds of run time to end."""
        since = self._draining.setdefault(one, self.judge.clock.awake_s)
        return self.judge.clock.awake_s - since > DRAIN_WITHIN_S

    def _backdate_worker_ends(self) -> None:
        """Move the ends of dead workers one hour into the past, so that careful mode ends. Done in every other period of 20 seconds."""
        if int(time.monotonic() / 20) % 2 == 0:
            return
        past = "datetime(ended_at, '-1 hour')" if self.place.store == "sqlite" else "ended_at - interval '1 hour'"
        # It uses groundstate's own table definition, since a row written by other means would look like a restore.
        ended = update(tables.worker).where(tables.worker.c.ended_at.is_not(None))
        with self.place.engine.begin() as connection:
            connection.execute(ended.values(ended_at=literal_column(past)))


def _status_text(status: int | None) -> str:
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
