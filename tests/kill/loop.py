"""Kills workers again and again while orders come in, and judges: `python -m tests.kill.loop --store sqlite --kills 1000`.

Exit status: 0 where every invariant held, 1 where one did not, 2 where it was asked for what cannot be. An error that a worker logged is
a fault too: nothing here goes wrong that is not told by a warning.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError

from groundstate.testing.servers import PostgresServer
from tests.kill.fleet import ROOT, Fleet, WorkerSeen
from tests.kill.judge import Judge
from tests.kill.provider import Provider
from tests.kill.worker import LOCKED_OUT

DRAIN_WITHIN_S = 25
IDLE_AT_MOST_S = 5  # between two kills


@dataclass(frozen=True)
class Plan:
    """What is done in one run; the same seed gives the same dice (not the same moments: those are the machine's)."""

    url: str
    kills: int
    workers: int = 3
    seed: int = 1
    pace_s: float = 0.45  # between two kills, at the mean
    under_way: int = 60  # orders on their way at once
    settles_within_s: float = 120


@dataclass
class Outcome:
    """What a run came to."""

    faults: list[str]
    kills: int
    orders: int
    looked_at: int  # effects looked up in samples
    figures: dict[str, object]  # all of them, for people
    held: Counter[str]

    @property
    def good(self) -> bool:
        return not self.faults


@dataclass
class Orders:
    """Places orders, and cancels some at once, from a thread of its own: as a shop that knows nothing of workers."""

    engine: Engine
    dice: Random
    most: int
    placed: list[int] = field(default_factory=list)
    cancelled: int = 0
    failure: Exception | None = None
    _end: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def coming_in(self) -> Iterator[None]:
        """Orders come in while the block runs."""
        thread = threading.Thread(target=self._run, name="orders", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join(60)
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            while not self._end.wait(self.dice.uniform(0.02, 0.2)):
                try:
                    self._some()
                except OperationalError as error:
                    if "locked" not in str(error):  # a stopped worker may hold SQLite's one write lock: tried again
                        raise
        except Exception as error:  # noqa: BLE001 - told to who waits for this thread
            self.failure = error

    def _some(self) -> None:
        with self.engine.begin() as connection:
            under_way = connection.execute(text("SELECT count(*) FROM orders WHERE status NOT IN ('done', 'cancelled')")).scalar_one()
            if under_way >= self.most:
                return
        new = range(len(self.placed) + 1, len(self.placed) + 1 + self.dice.randint(1, 5))
        rows = [{"id": number, "rounds": self.dice.choice([1, 1, 2])} for number in new]
        with self.engine.begin() as connection:
            connection.execute(
                text("INSERT INTO orders (id, status, round, rounds, charged_round) VALUES (:id, 'placed', 1, :rounds, 0)"), rows
            )
        self.placed += new
        if self.dice.random() < 0.1:
            with self.engine.begin() as connection:
                one = {"id": self.dice.choice(self.placed[-20:])}
                gone = connection.execute(text("UPDATE orders SET status = 'cancelled' WHERE id = :id AND status = 'placed'"), one)
                self.cancelled += gone.rowcount


def main() -> int:
    """The command."""
    asked = argparse.ArgumentParser(prog="python -m tests.kill.loop", description="SIGKILL workers in a loop, and judge.")
    asked.add_argument("--store", choices=["sqlite", "postgres"], default="sqlite")
    asked.add_argument("--kills", type=int, default=100)
    asked.add_argument("--workers", type=int, default=3)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--keep", type=Path, help="a folder for the workers' log (and the SQLite file), which is left there")
    given = asked.parse_args()
    if given.kills < 1 or given.workers < 1:
        asked.error("--kills and --workers: at least 1")
    with ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="groundstate-kill-")))
        folder.mkdir(parents=True, exist_ok=True)
        if given.store == "postgres":
            url = stack.enter_context(PostgresServer()).create_database()
        else:
            url = f"sqlite:///{folder.resolve() / 'kill.db'}"
        outcome = run(Plan(url, given.kills, given.workers, given.seed), folder, say=_say)
    _tell(outcome)
    return 0 if outcome.good else 1


def run(plan: Plan, folder: Path, say: Callable[[str], None] = lambda _: None) -> Outcome:
    """One run, in a database that has no tables of the shop yet."""
    os.environ["KILL_DATABASE"], os.environ["KILL_PROVIDER"] = plan.url, str(_door(folder))

    dice, log = Random(plan.seed), folder / "workers.log"
    engine = _engine(plan.url)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    _initialise(environment)
    started = time.monotonic()
    try:
        with Provider(_door(folder), Random(plan.seed + 1)) as provider, Fleet(environment, log) as fleet:
            judge = Judge(engine, provider.ledger)
            orders = Orders(engine, Random(plan.seed + 2), plan.under_way)
            killer = Killer(plan, dice, fleet, judge, engine, say)
            with orders.coming_in():
                killer.go()
            killed_in = time.monotonic() - started
            killer.settle(provider)
            killer.end()
            held = judge.verdict(orders.placed)
            figures = _figures(killer, judge, orders, provider) | {
                "kills in": f"{killed_in:.0f} s",
                "all in": f"{time.monotonic() - started:.0f} s",
            }
            said = _said(log)
            for line in said:
                judge.fault("OthersGoOn", f"the workers said {said[line]} times: {line}")
            return Outcome(judge.faults, killer.kills, len(orders.placed), judge.looked_at, figures, held)
    finally:
        engine.dispose()


class Killer:
    """What is done to the workers, by dice; the judge looks right after each kill."""

    def __init__(self, plan: Plan, dice: Random, fleet: Fleet, judge: Judge, engine: Engine, say: Callable[[str], None]) -> None:
        self.plan, self.dice, self.fleet, self.judge, self.engine, self.say = plan, dice, fleet, judge, engine, say
        self.kills = 0
        self.done: Counter[str] = Counter()
        self._seen_ended = 0
        self._said_at = 0.0

    def go(self) -> None:
        """Until so many kills were made."""
        while self.kills < self.plan.kills:
            self._replace()
            self._pause(self.dice.uniform(0.05, 2 * self.plan.pace_s))
            if self.dice.random() < 0.85:  # else as it comes: a worker that was just born, or has nothing to do
                self._until_effects(self.dice.randint(1, 15))
            self._act(self.dice.random())
            self._look()
        self.fleet.wake_due(all_of_them=True)

    def _act(self, chance: float) -> None:
        living = self.fleet.living()
        if not living:
            return
        awake = [worker for worker in living if worker.wakes_at is None]
        if chance < 0.03 and len(awake) > 1:
            self.done["stopped past a deadline"] += 1
            self.fleet.stop(self.dice.choice(awake), self.dice.uniform(6, 8))
        elif chance < 0.08 and awake:
            self.done["drained"] += 1
            self.fleet.drain(self.dice.choice(awake))
        elif chance < 0.18 and len(living) > 1 and self.kills + 2 <= self.plan.kills:
            self.done["two killed at once"] += 1
            for worker in self.dice.sample(living, 2):
                self._kill(worker)
        else:
            self._kill(self.dice.choice(living))

    def _kill(self, worker: WorkerSeen) -> None:
        self.kills += 1
        self.done["killed while stopped"] += worker.wakes_at is not None
        self.fleet.kill(worker)

    def _look(self) -> None:
        self.judge.sample()
        self._look_at_ends()
        careful = self.kills * 10 // self.plan.kills % 2 == 0
        if not careful:  # every other tenth of the run goes on as if the kills were hours apart: careful mode is over
            self._age_the_ends()
        if time.monotonic() - self._said_at > 5:
            self._said_at = time.monotonic()
            states = Counter(one.state for one in self.judge.attempts())
            self.say(
                f"{self.kills:5d} kills  {len(self.judge.ledger.since(0)):6d} effects  {dict(states)}"
                f"  {'careful' if careful else 'as ever'}  {len(self.judge.faults)} faults"
            )

    def _age_the_ends(self) -> None:
        past = "datetime(ended_at, '-1 hour')" if self.engine.dialect.name == "sqlite" else "ended_at - interval '1 hour'"
        try:
            with self.engine.begin() as connection:
                connection.execute(text(f"UPDATE groundstate_worker SET ended_at = {past} WHERE ended_at IS NOT NULL"))
        except OperationalError as error:
            if "locked" not in str(error):
                raise

    def _replace(self) -> None:
        self.fleet.wake_due()
        while len(self.fleet.living()) < self.plan.workers:
            self.fleet.bear()

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.fleet.wait(lambda: len(self.fleet.ended) > self._seen_ended, left)
            self._look_at_ends()
            self._replace()

    def _until_effects(self, so_many: int) -> None:
        """So that on a slow machine, too, workers are killed that work."""
        before = len(self.judge.ledger.since(0))
        end = time.monotonic() + IDLE_AT_MOST_S
        while len(self.judge.ledger.since(before)) < so_many and time.monotonic() < end:
            self._pause(0.02)

    def _look_at_ends(self) -> None:
        """A worker ends when it is told to, and only then."""
        new = self.fleet.ended[self._seen_ended :]
        self._seen_ended += len(new)
        for worker in new:
            expected = {"killed": -signal.SIGKILL, "drained": 0}.get(worker.told)
            if worker.status == LOCKED_OUT and self.done["stopped past a deadline"]:
                self.done["locked out at the start"] += 1
            elif worker.status != expected:
                self.done["ended by itself"] += 1
                self.judge.fault("OthersGoOn", f"worker {worker.pid} ended with {worker.status} ({worker.told or 'nobody told it to'})")
        for worker in list(self.fleet.workers.values()):
            if worker.told == "drained" and time.monotonic() - worker.told_at > DRAIN_WITHIN_S:
                self.judge.fault("Drain", f"worker {worker.pid} has not ended {DRAIN_WITHIN_S} s after SIGTERM")
                self._kill(worker)

    # ---- the end -------------------------------------------------------------------------------------------------------------------
    def settle(self, provider: Provider) -> None:
        """Nobody is killed any more: all orders become final, or are held."""
        end = time.monotonic() + self.plan.settles_within_s
        while True:
            self._replace()
            self.fleet.wait(lambda: len(self.fleet.ended) > self._seen_ended, 0.25)
            self._look_at_ends()
            self.judge.sample()
            left = self.judge.unfinished()
            if not left and not provider.in_the_air:
                return
            if time.monotonic() > end:
                since = f"{self.plan.settles_within_s:g} s after the last kill"
                self.judge.fault("NotLost", f"not quiet {since}: {len(left)} left, such as {left[:5]}")
                return

    def end(self) -> None:
        """A drain of all, which leaves nothing behind."""
        for worker in self.fleet.living():
            self.fleet.drain(worker)
        self.fleet.wait(lambda: not self.fleet.workers, DRAIN_WITHIN_S + 1)
        self._look_at_ends()


def _door(folder: Path) -> Path:
    return folder / "provider.sock"


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url)
    engine = create_engine(url, connect_args={"timeout": 10})

    @event.listens_for(engine, "connect")
    def _(connection: object, _record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")  # type: ignore[attr-defined]  # the judge's own writes need not be quick to last

    return engine


def _initialise(environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", "from tests.kill import shop; shop.app.init(tables=True, accept=True)"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def _figures(killer: Killer, judge: Judge, orders: Orders, provider: Provider) -> dict[str, object]:
    effects = Counter(one.call for one in judge.ledger.since(0))
    seen = judge.orders()
    ends = Counter(order.status for order in seen)
    overtaken = sum(1 for order in seen if order.status == "cancelled" and order.charged_round == order.round)
    return {
        "kills": killer.kills,
        **killer.done,
        "orders": len(orders.placed),
        "cancelled on their way": orders.cancelled,
        "cancelled and charged all the same": overtaken,
        "ends": dict(ends),
        "effects": dict(effects),
        "tricks": dict(provider.tricks),
        "finds": dict(provider.finds),
        "calls later than their deadline": provider.after_deadline,
        "samples": judge.samples,
        "effects looked up in samples": judge.looked_at,
    }


def _said(log: Path) -> Counter[str]:
    """Errors and ends of tracebacks in the workers' log, numbers left out, so that equal ones are counted together."""
    said: Counter[str] = Counter()
    if log.exists():
        for line in log.read_text(errors="replace").splitlines():
            if " ERROR " in line or re.match(r"[A-Za-z_.]+(Error|Exception|Refused)\b", line):
                said[re.sub(r"\d+", "#", line)[:300]] += 1
    return said


def _say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def _tell(outcome: Outcome) -> None:
    for name, figure in outcome.figures.items():
        _say(f"  {name}: {figure}")
    for reason, count in outcome.held.most_common():
        _say(f"  held {count}: {reason}")
    for fault in outcome.faults:
        _say(f"FAULT {fault}")
    _say("VERDICT: " + ("nothing lost, doubled or unlisted" if outcome.good else f"{len(outcome.faults)} faults"))


if __name__ == "__main__":
    sys.exit(main())
