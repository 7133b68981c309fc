"""Measures one contender on new tables: the lateness of its timers, also after a kill of its worker, and the cost of many that wait.

For all contenders alike, the time of an effect is the time of its commit, as PostgreSQL records it. Only own child processes are killed.
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
from benchmarks.crash.environment import start_redis_server
from benchmarks.crash.supervisor import Shop
from benchmarks.harness import percentile

TABLE = "CREATE TABLE timers (id integer PRIMARY KEY, due_at timestamptz NOT NULL, done_at timestamptz, times integer NOT NULL DEFAULT 0)"
COMMITTED = """
    SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - due_at) AS late_s, times FROM timers
    WHERE id > 0 AND times > 0 AND due_at < now()
"""
WARM = 0  # the id of the timer that shows that a worker has started
PLACING_S = 0.012  # seconds allowed for inserting one timer
PLACING_TIMES = 4  # times the duration of inserting one timer that is allowed in addition, since the machine may be busy
FAR_S = 6 * 3600.0
SHORT_VISIBILITY_S = 60
LATEST_START_S = 1800.0
LOOK_S = 0.1


@dataclass(frozen=True)
class Setting:
    """The settings that are the same for all contenders."""

    server: PostgresServer
    venv: Path
    folder: Path
    soon_s: float = 4.0  # seconds between the last insert and the first due time
    up_s: float = 8.0  # seconds between the start of a new worker and the first due time
    rests_s: float = 10.0  # seconds for which its memory must not grow before it is measured


@dataclass(frozen=True)
class Lateness:
    """The lateness of the timers of one run: seconds from the due time to the commit of the effect."""

    timers: int
    each_second: float
    median_s: float
    p99_s: float
    longest_s: float
    early: int
    doubled: int
    missing: int  # not carried out after the contender did nothing for longer than its own timeouts


@dataclass(frozen=True)
class Waiting:
    """The cost of waiting timers: seconds from the start of a worker to its first effect, and its memory at rest."""

    timers: int
    first_s: float
    memory_mb: float


def count_timers(each_second: float, count: int, done: Sequence[tuple[float, int]]) -> Lateness:
    """Return the lateness of `count` timers. done: how late each carried-out timer was (seconds), and how often it was carried out."""
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
    """A contender's shop and its table, with which a run is measured."""

    def __init__(self, shop: Shop, contender: Contender, engine: Engine) -> None:
        self.shop, self._contender, self._engine = shop, contender, engine
        self._placing_s = 0.0  # seconds that a process needs to insert one timer

    def first_due_time(self, least_s: float, count: int) -> float:
        """Return a due time (Unix time) before which `count` timers can surely be inserted. A worker must have started."""
        return time.time() + max(least_s, PLACING_TIMES * self._placing_s) + count * PLACING_S

    def place_timers(self, first: int, count: int, due: float, each_s: float) -> None:
        """Insert timers with ids from `first` on. Raises RuntimeError where one became due before all were inserted."""
        self.shop.run((*self._contender.script, "place", str(first), str(count), repr(due), repr(each_s)))
        if due > 0 and time.time() > due:
            raise RuntimeError(f"{self._contender.name}: placing {count} timers took longer than was allowed for it")

    def start(self) -> float:
        """Start a worker, and return the seconds until it has carried out one timer."""
        began = time.monotonic()
        self.place_timers(WARM, 1, 0.0, 0.0)
        started = time.monotonic()
        self._placing_s = started - began
        self.shop.ensure_worker()
        while self.fetch_number("SELECT count(*) FROM timers WHERE id = 0 AND times > 0") == 0:
            self.shop.ensure_worker()
            if self.shop.ended_by_itself or time.monotonic() - started > LATEST_START_S:
                raise RuntimeError(f"{self._contender.name}: its worker does not come up")
            time.sleep(0.01)
        return time.monotonic() - started

    def fetch_number(self, statement: str) -> int:
        """Execute a query and return its one number."""
        with self._engine.connect() as connection:
            return int(connection.execute(text(statement)).scalar_one())

    def wait_and_measure_lateness(self, count: int, each_second: float, last_due: float) -> Lateness:
        """Wait until all timers are done or nothing happens any more, and return the lateness."""
        seen, since = -1, time.time()
        while (done := self.fetch_number("SELECT count(*) FROM timers WHERE id > 0 AND times > 0")) < count:
            now = time.time()
            if done != seen:
                seen, since = done, now
            if now > max(since, last_due) + self._contender.quiet_s:
                break
            time.sleep(LOOK_S)
        with self._engine.connect() as connection:
            return count_timers(each_second, count, [(float(row.late_s), row.times) for row in connection.execute(text(COMMITTED))])

    def wait_for_rest_and_measure_memory_mb(self, rests_s: float) -> float:
        """Return the memory of the worker and its children in MB, once it has grown by less than 1 % within `rests_s` seconds.

        Memory that they share is counted once.
        """
        largest, since, end = 0.0, time.monotonic(), time.monotonic() + LATEST_START_S
        now = largest
        while time.monotonic() < min(since + rests_s, end):
            time.sleep(min(rests_s / 4, 1))
            now = _sum_memory_mb(self.shop.process_tree())
            if now > largest * 1.01:
                largest, since = now, time.monotonic()
        return now


@contextmanager
def open_run(contender: Contender, setting: Setting, visibility_s: int) -> Iterator[Run]:
    """Within the block, yield a run on new tables. At the end everything but a log is removed."""
    setting.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        url = setting.server.create_database()
        stack.callback(setting.server.drop_database, url)
        plain = url.replace("+psycopg", "")
        environment = {"TIMERS_DATABASE": url if contender.is_ours else plain, "PGDSN": plain, "TIMERS_VISIBILITY_S": str(visibility_s)}
        if contender.redis:
            environment["TIMERS_REDIS"] = stack.enter_context(start_redis_server(setting.venv, setting.folder))
        engine = create_engine(url)
        stack.callback(engine.dispose)
        if not contender.is_ours:
            with engine.begin() as connection:
                connection.execute(text(TABLE))
        shop = stack.enter_context(Shop(contender, setting.venv, setting.folder, environment))
        if contender.setup is not None:
            shop.run(contender.setup)
        yield Run(shop, contender, engine)


def measure_lateness(contender: Contender, setting: Setting, each_second: float, count: int) -> Lateness:
    """Measure `count` timers, due at `each_second`, while a worker runs."""
    with open_run(contender, setting, int(FAR_S)) as run:
        run.start()
        due = run.first_due_time(setting.soon_s, count)
        run.place_timers(1, count, due, 1 / each_second)
        return run.wait_and_measure_lateness(count, each_second, due + count / each_second)


def measure_lateness_after_kill(contender: Contender, setting: Setting, each_second: float, count: int) -> Lateness:
    """Measure the same timers where the worker is killed before the first one is due, and restarted at once."""
    with open_run(contender, setting, SHORT_VISIBILITY_S) as run:
        run.start()
        due = run.first_due_time(setting.soon_s, count) + setting.up_s
        run.place_timers(1, count, due, 1 / each_second)
        time.sleep(max(due - setting.up_s - time.time(), 0))  # by then the worker has prefetched what it prefetches
        run.shop.kill()
        run.shop.ensure_worker()
        return run.wait_and_measure_lateness(count, each_second, due + count / each_second)


def measure_waiting(contender: Contender, setting: Setting, count: int) -> Waiting:
    """Measure the start of a worker where `count` timers are due in some hours, and one is due now."""
    with open_run(contender, setting, int(2 * FAR_S)) as run:
        if count:
            run.place_timers(1, count, time.time() + FAR_S, 0.0)
        first_s = run.start()
        return Waiting(count, first_s, run.wait_for_rest_and_measure_memory_mb(setting.rests_s))


def _sum_memory_mb(tree: list[psutil.Process]) -> float:
    total = 0.0
    for one in tree:
        try:
            told: Any = one.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        total += getattr(told, "pss", told.uss) / 1024**2
    return total
