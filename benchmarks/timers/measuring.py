"""One contender on fresh tables: how late its timers are, what becomes of them when its worker is killed, what many that wait cost.

When a timer's effect was there is what PostgreSQL notes as the time of its commit, for all contenders alike. It kills no process but its
own children.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Engine, create_engine, text
from tools.servers.postgres import PostgresServer

from benchmarks.crash.contenders import Contender
from benchmarks.crash.environment import redis_server
from benchmarks.crash.supervisor import Shop
from benchmarks.harness import percentile

TABLE = "CREATE TABLE timers (id integer PRIMARY KEY, due_at timestamptz NOT NULL, done_at timestamptz, times integer NOT NULL DEFAULT 0)"
COMMITTED = """
    SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - due_at) AS late_s, times FROM timers
    WHERE id > 0 AND times > 0 AND due_at < now()
"""
WARM = 0  # the id of the timer by which a worker is seen to work
PLACING_S = 0.012  # allowed for placing one
PLACING_TIMES = 4  # as long as placing one took, placing all may take besides: a machine may be busy
FAR_S = 6 * 3600.0
SHORT_VISIBILITY_S = 60
LATEST_START_S = 1800.0
LOOK_S = 0.1


@dataclass(frozen=True)
class Setting:
    """What is the same for all contenders of a run of the command."""

    server: PostgresServer
    venv: Path
    folder: Path
    soon_s: float = 4.0  # between the last placing and the first due time
    up_s: float = 8.0  # between the start of a new worker and the first due time
    rests_s: float = 10.0  # for so long its memory must not grow any more


@dataclass(frozen=True)
class Lateness:
    """Of the timers of one run, in seconds from the due time to the commit of the effect."""

    timers: int
    each_second: float
    median_s: float
    p99_s: float
    longest_s: float
    early: int
    doubled: int
    missing: int  # not carried out when nothing happened any more for longer than the contender's own timeouts


@dataclass(frozen=True)
class Waiting:
    """What so many timers that are due in hours cost: from the start of a worker to its first effect, and its memory once it rests."""

    timers: int
    first_s: float
    memory_mb: float


def counted(each_second: float, count: int, done: Sequence[tuple[float, int]]) -> Lateness:
    """What became of so many timers, of which these were carried out: so late, and so often."""
    late = [late_s for late_s, _ in done] or [math.nan]
    return Lateness(
        timers=count,
        each_second=each_second,
        median_s=percentile(late, 0.5),
        p99_s=percentile(late, 0.99),
        longest_s=max(late),
        early=sum(late_s < 0 for late_s in late),
        doubled=sum(times > 1 for _, times in done),
        missing=count - len(done),
    )


class Run:
    """A contender's shop, its table, and a look into it."""

    def __init__(self, shop: Shop, contender: Contender, engine: Engine) -> None:
        self.shop, self._contender, self._engine = shop, contender, engine
        self._placing_s = 0.0  # what a process takes that places one

    def soon(self, least_s: float, count: int) -> float:
        """When the first of so many timers may be due that are to be there before; Unix time. Asked once a worker is up."""
        return time.time() + max(least_s, PLACING_TIMES * self._placing_s) + count * PLACING_S

    def place(self, first: int, count: int, due: float, each_s: float) -> None:
        """Timers with ids from `first` on. Raises RuntimeError where one was due before all were there."""
        self.shop.run((*self._contender.script, "place", str(first), str(count), repr(due), repr(each_s)))
        if due > 0 and time.time() > due:
            raise RuntimeError(f"{self._contender.name}: placing {count} timers took longer than was allowed for it")

    def start(self) -> float:
        """A worker that has carried out one timer: seconds from its start until then."""
        began = time.monotonic()
        self.place(WARM, 1, 0.0, 0.0)
        started = time.monotonic()
        self._placing_s = started - began
        self.shop.keep_a_worker()
        while self.number("SELECT count(*) FROM timers WHERE id = 0 AND times > 0") == 0:
            self.shop.keep_a_worker()
            if self.shop.ended_by_itself or time.monotonic() - started > LATEST_START_S:
                raise RuntimeError(f"{self._contender.name}: its worker does not come up")
            time.sleep(0.01)
        return time.monotonic() - started

    def number(self, statement: str) -> int:
        """The one number that it gives."""
        with self._engine.connect() as connection:
            return int(connection.execute(text(statement)).scalar_one())

    def lateness(self, count: int, each_second: float, last_due: float) -> Lateness:
        """Waits until all is done, or nothing happens any more."""
        seen, since = -1, time.time()
        while (done := self.number("SELECT count(*) FROM timers WHERE id > 0 AND times > 0")) < count:
            now = time.time()
            if done != seen:
                seen, since = done, now
            if now > max(since, last_due) + self._contender.quiet_s:
                break
            time.sleep(LOOK_S)
        with self._engine.connect() as connection:
            return counted(each_second, count, [(float(row.late_s), row.times) for row in connection.execute(text(COMMITTED))])

    def memory_mb(self, rests_s: float) -> float:
        """Of the worker and its children, what they share counted once; when it has not grown by a hundredth for so long."""
        largest, since, end = 0.0, time.monotonic(), time.monotonic() + LATEST_START_S
        now = largest
        while time.monotonic() < min(since + rests_s, end):
            time.sleep(min(rests_s / 4, 1))
            now = _memory_mb(self.shop.tree())
            if now > largest * 1.01:
                largest, since = now, time.monotonic()
        return now


@contextmanager
def run_of(contender: Contender, setting: Setting, visibility_s: int) -> Iterator[Run]:
    """Fresh tables, and nothing of it is left afterwards but a log."""
    setting.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        url = setting.server.create_database()
        stack.callback(setting.server.drop_database, url)
        plain = url.replace("+psycopg", "")
        environment = {"TIMERS_DATABASE": url if contender.ours else plain, "PGDSN": plain, "TIMERS_VISIBILITY_S": str(visibility_s)}
        if contender.redis:
            environment["TIMERS_REDIS"] = stack.enter_context(redis_server(setting.venv, setting.folder))
        engine = create_engine(url)
        stack.callback(engine.dispose)
        if not contender.ours:
            with engine.begin() as connection:
                connection.execute(text(TABLE))
        shop = stack.enter_context(Shop(contender, setting.venv, setting.folder, environment))
        if contender.setup is not None:
            shop.run(contender.setup)
        yield Run(shop, contender, engine)


def late(contender: Contender, setting: Setting, each_second: float, count: int) -> Lateness:
    """So many timers, so many of them due each second, beside a worker that is up."""
    with run_of(contender, setting, int(FAR_S)) as run:
        run.start()
        due = run.soon(setting.soon_s, count)
        run.place(1, count, due, 1 / each_second)
        return run.lateness(count, each_second, due + count / each_second)


def killed(contender: Contender, setting: Setting, each_second: float, count: int) -> Lateness:
    """The same, with the worker killed before the first is due, and started again at once."""
    with run_of(contender, setting, SHORT_VISIBILITY_S) as run:
        run.start()
        due = run.soon(setting.soon_s, count) + setting.up_s
        run.place(1, count, due, 1 / each_second)
        time.sleep(max(due - setting.up_s - time.time(), 0))  # what is prefetched is in its memory by then
        run.shop.kill()
        run.shop.keep_a_worker()
        return run.lateness(count, each_second, due + count / each_second)


def waiting(contender: Contender, setting: Setting, count: int) -> Waiting:
    """A worker that comes up where so many are due in hours, and one is due now."""
    with run_of(contender, setting, int(2 * FAR_S)) as run:
        if count:
            run.place(1, count, time.time() + FAR_S, 0.0)
        first_s = run.start()
        return Waiting(count, first_s, run.memory_mb(setting.rests_s))


def _memory_mb(tree: list[psutil.Process]) -> float:
    total = 0.0
    for one in tree:
        try:
            told: Any = one.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        total += getattr(told, "pss", told.uss) / 1024**2
    return total
