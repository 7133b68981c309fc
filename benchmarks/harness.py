"""What all workloads share: sizes, fresh databases, rounds that alternate, rows of the result, and processes beside ours."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, Self

import psutil
from sqlalchemy import create_engine, event
from sqlalchemy.orm import Session
from tools.servers.postgres import PostgresServer

from benchmarks.bare import Driver
from benchmarks.shop import Order
from groundstate import App
from groundstate.engine.sql import commit_hooks

LONGEST = timedelta(minutes=10)
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Size:
    """How much of everything. Seconds where it says so."""

    rounds: int = 5
    orders: int = 20_000
    calls: int = 10_000
    limits: tuple[int, ...] = (100, 500)
    samples: int = 500
    finished: tuple[int, ...] = (10_000, 1_000_000)
    unfinished: int = 1_000
    backlog: int = 1_000_000
    failed: int = 100_000
    line: int = 100_000
    idle_s: float = 20.0
    beside_s: float = 10.0
    snapshot_s: float = 60.0
    timers: int = 1_000_000
    rates: tuple[int, ...] = (1, 100, 1_000, 10_000)
    rate_s: float = 10.0
    workers: tuple[int, ...] = (1, 2, 4, 8, 16)
    telling_s: float = 3.0
    shards: tuple[int, ...] = (1, 2, 4)
    tenants: tuple[int, ...] = (1, 4, 40, 1_000)
    written_before_s: float = 2.0  # a timer is written so long before it is due: at least one sweep


FULL = Size()
QUICK = Size(
    rounds=3, orders=5_000, calls=3_000, samples=100, finished=(10_000,), backlog=100_000, failed=10_000, line=10_000, idle_s=5.0,
    beside_s=3.0, snapshot_s=10.0, timers=100_000, rates=(100, 10_000), rate_s=2.0,
    workers=(1, 4, 16), telling_s=1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One figure, with what it is to be seen beside. `work`: how much was carried out for it, counted in the database afterwards."""

    workload: str
    store: str
    figure: str
    unit: str
    ours: float
    work: int
    beside: Mapping[str, float] = field(default_factory=dict)
    target: str = ""


class NotDone(Exception):
    """The work was not done, so that its time means nothing."""


class Workload(Protocol):
    """One file of this folder."""

    STORES: tuple[str, ...]

    def run(self, place: Place, size: Size) -> list[Row]:
        """Its figures on one store."""


class Place:
    """Where fresh databases come from: a folder, or a PostgreSQL of our own in it."""

    def __init__(self, name: str, folder: Path, server: PostgresServer | None = None) -> None:
        self.name, self._folder, self._server = name, folder, server
        self._count = 0

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of an empty database, which is gone after the block."""
        if self._server is not None:
            url = self._server.create_database()
            try:
                yield url
            finally:
                self._server.drop_database(url)
            return
        self._count += 1
        path = self._folder / f"{self._count}.db"
        try:
            yield f"sqlite:///{path}"
        finally:
            for left in self._folder.glob(f"{path.name}*"):
                left.unlink()

    @property
    def has_server(self) -> bool:
        """Whether its databases are on a server, and not in files."""
        return self._server is not None

    def kill_server(self) -> None:
        """All its processes at once, where it has one."""
        if self._server is not None:
            self._server.kill()

    def start(self) -> None:
        """Brings its server up, where it has one."""
        if self._server is not None:
            self._server.start()


# ---- measuring -----------------------------------------------------------------------------------------------------------------
def alternate(rounds: int, contenders: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """The median of each over the rounds, in which each comes once: what disturbs the machine disturbs all."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            figures[name].append(contender())
    return {name: statistics.median(some) for name, some in figures.items()}


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of them does not exceed."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def expect(what: str, found: int, wanted: int) -> None:
    """Refuses a figure for work that was not done."""
    if found != wanted:
        raise NotDone(f"{what}: {found:,} of {wanted:,}")


def wait_until(what: str, condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Waits for it, or refuses."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise NotDone(f"after {seconds:g} s still not: {what}")
        time.sleep(0.005)


class CommitClock:
    """When the last commit of a session of this process was on disk, before anybody else in the process hears of it."""

    def __enter__(self) -> Self:
        self.at = 0.0
        event.listen(Session, "after_commit", self._note, insert=True)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(Session, "after_commit", self._note)

    def _note(self, _session: Session) -> None:
        if threading.current_thread() is threading.main_thread():
            self.at = time.monotonic()


class CarriedOut:
    """When an order's (or other record's) commit by a worker of this process was done: what the engine itself tells after each."""

    def __init__(self, record: type = Order) -> None:
        self.at: dict[int, float] = {}
        self.any = threading.Event()
        self._record = record

    def hear(self, touched: commit_hooks.Touched) -> None:
        """A commit of whatever thread."""
        if threading.current_thread() is threading.main_thread():
            return
        now = time.monotonic()
        for key in touched.keys.get(self._record, {}):
            self.at[key[0]] = now
        self.any.set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hears while the block runs."""
        commit_hooks.listen(self)
        try:
            yield
        finally:
            commit_hooks.stop_listening(self)


# ---- data ------------------------------------------------------------------------------------------------------------------------
@contextmanager
def driver_on(url: str) -> Iterator[Driver]:
    """A bare connection, closed after the block."""
    driver = Driver(url)
    try:
        yield driver
    finally:
        driver.close()


def fill(url: str, count: int, status: str, *, first: int = 1) -> None:
    """So many orders, by one statement of the driver: nobody in this process hears of them."""
    with driver_on(url) as driver:
        if driver.embedded:
            numbers = "WITH RECURSIVE n(i) AS (SELECT ? UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT i, ? FROM n"
            driver.execute(f"INSERT INTO orders (id, status) {numbers}", first, first + count - 1, status)
            driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        else:
            numbers = "SELECT i, ? FROM generate_series(?::int, ?::int) AS i"
            driver.execute(f"INSERT INTO orders (id, status) {numbers}", status, first, first + count - 1)
            driver.execute("SELECT setval(pg_get_serial_sequence('orders', 'id'), (SELECT max(id) FROM orders))")
            driver.execute("VACUUM ANALYZE orders")


def fill_timers(url: str, count: int, due: float, each_s: float = 0.0, *, first: int = 1) -> None:
    """So many timers, the first due then (seconds since 1970) and each so much later than the one before; nobody hears of them."""
    with driver_on(url) as driver:
        if driver.embedded:
            at = "strftime('%Y-%m-%d %H:%M:%f', ? + i * ?, 'unixepoch') || '000'"
            numbers = f"WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT ? + i, {at} FROM n"
            driver.execute(f"INSERT INTO timers (id, due_at) {numbers}", count - 1, first, due, each_s)
        else:
            numbers = "SELECT ?::int + i, to_timestamp(?::float8 + i * ?::float8) FROM generate_series(0, ?::int) AS i"
            driver.execute(f"INSERT INTO timers (id, due_at) {numbers}", first, due, each_s, count - 1)
            driver.execute("VACUUM ANALYZE timers")


def timers_done(url: str, *, last: int | None = None) -> int:
    """How many were carried out, of those up to this number."""
    with driver_on(url) as driver:
        return driver.number(f"SELECT count(*) FROM timers WHERE done_at IS NOT NULL{'' if last is None else f' AND id <= {last}'}")


def with_status(url: str, status: str) -> int:
    """How many orders have it."""
    with driver_on(url) as driver:
        return driver.number("SELECT count(*) FROM orders WHERE status = ?", status)


def attempts_left(url: str) -> int:
    """Rows of ours."""
    with driver_on(url) as driver:
        return driver.number("SELECT count(*) FROM groundstate_attempt")


def carry_out_all(app: App) -> float:
    """Seconds from the word to go until nothing is left, of a worker that is up already."""
    app.start(wait=True)
    try:
        started = time.perf_counter()
        app.go()
        app.run_until_idle(LONGEST)
        return time.perf_counter() - started
    finally:
        app.stop()


@contextmanager
def engine_on(url: str) -> Iterator[Any]:
    """A user's engine, with the durability that groundstate gives its own."""
    engine = create_engine(url)
    if url.startswith("sqlite"):
        event.listen(engine, "connect", _durable)
    try:
        yield engine
    finally:
        engine.dispose()


def _durable(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous = FULL")


# ---- processes -----------------------------------------------------------------------------------------------------------------
@contextmanager
def process(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """`python -m ...`, its stdout read by us; killed at the end of the block, whatever it does."""
    command = [sys.executable, "-m", *map(str, arguments)]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        if running.stdout is not None:
            running.stdout.close()


def line_of(running: subprocess.Popen[str]) -> str:
    """The next line that it writes. Raises NotDone where it ended instead."""
    line = running.stdout.readline() if running.stdout is not None else ""
    if not line:
        raise NotDone(f"{running.args!r} ended with {running.wait()} and said nothing")
    return line.strip()


def told_by(running: subprocess.Popen[str]) -> dict[str, Any]:
    """The JSON object of its next line."""
    told: dict[str, Any] = json.loads(line_of(running))
    return told


def cpu_s(pid: int) -> float:
    """Seconds of a core that a process has used."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def sync_ms(folder: Path) -> float:
    """What it costs here to bring 8 kB to the disk, in ms: below 0.01 the folder is in memory, and no figure means anything."""
    took: list[float] = []
    path = folder / "fsync"
    with path.open("wb", buffering=0) as file:
        for _ in range(50):
            started = time.perf_counter()
            file.write(b"x" * 8192)
            os.fsync(file.fileno())
            took.append((time.perf_counter() - started) * 1000)
    path.unlink()
    return statistics.median(took)
