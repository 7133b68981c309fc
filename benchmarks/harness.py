"""Shared by all workloads: sizes, new databases, alternating rounds, rows of the result, and helper processes."""

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
    """The sizes of all workloads. Names that end with `_s` are in seconds."""

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
    written_before_s: float = 2.0  # seconds from the insert of a timer to its due time, at least one sweep


FULL = Size()
QUICK = Size(
    rounds=3, orders=5_000, calls=3_000, samples=100, finished=(10_000,), backlog=100_000, failed=10_000, line=10_000, idle_s=5.0,
    beside_s=3.0, snapshot_s=10.0, timers=100_000, rates=(100, 10_000), rate_s=2.0,
    workers=(1, 4, 16), telling_s=1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One figure with its references. `work`: the amount of work that was done for it, counted in the database afterwards."""

    workload: str
    store: str
    figure: str
    unit: str
    ours: float
    work: int
    beside: Mapping[str, float] = field(default_factory=dict)
    target: str = ""


class NotDone(Exception):
    """Raised where the work was not done, so that its time means nothing."""


class Workload(Protocol):
    """The interface of a workload's module."""

    STORES: tuple[str, ...]

    def run(self, place: Place, size: Size) -> list[Row]:
        """Return the workload's figures on one store."""


class Place:
    """Creates new databases, in a folder or on a PostgreSQL server of its own."""

    def __init__(self, name: str, folder: Path, server: PostgresServer | None = None) -> None:
        self.name, self._folder, self._server = name, folder, server
        self._count = 0

    @contextmanager
    def database(self) -> Iterator[str]:
        """Within the block, yield the URL of an empty database, which is removed at the end."""
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
        """Whether the databases are on a server, and not in files."""
        return self._server is not None

    def kill_server(self) -> None:
        """Kill all processes of the server, if there is one."""
        if self._server is not None:
            self._server.kill()

    def start(self) -> None:
        """Start the server, if there is one."""
        if self._server is not None:
            self._server.start()


# ---- measuring -----------------------------------------------------------------------------------------------------------------
def median_of_rounds(rounds: int, contenders: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Run each contender once in each round, and return the median of each. So a disturbance of the machine affects all contenders."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            figures[name].append(contender())
    return {name: statistics.median(some) for name, some in figures.items()}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def require_count(what: str, found: int, wanted: int) -> None:
    """Raise NotDone if the amount of work that was done is not the wanted one."""
    if found != wanted:
        raise NotDone(f"{what}: {found:,} of {wanted:,}")


def wait_until(what: str, condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until the condition is true; raise NotDone where it is not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise NotDone(f"after {seconds:g} s still not: {what}")
        time.sleep(0.005)


class CommitClock:
    """Records when the last commit of a session of this process was on disk, before any other listener is called."""

    def __enter__(self) -> Self:
        self.at = 0.0
        event.listen(Session, "after_commit", self._record_commit, insert=True)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(Session, "after_commit", self._record_commit)

    def _record_commit(self, _session: Session) -> None:
        if threading.current_thread() is threading.main_thread():
            self.at = time.monotonic()


class CarriedOut:
    """Records when a worker of this process committed its change of each order (or other record), from the engine's own notifications."""

    def __init__(self, record: type = Order) -> None:
        self.at: dict[int, float] = {}
        self.any = threading.Event()
        self._record = record

    def note_commit(self, touched: commit_hooks.TouchedRecords) -> None:
        """Record the commit of any thread; the engine calls it."""
        if threading.current_thread() is threading.main_thread():
            return
        now = time.monotonic()
        for key in touched.keys.get(self._record, {}):
            self.at[key[0]] = now
        self.any.set()

    @contextmanager
    def registered(self) -> Iterator[None]:
        """Receive notifications within the block."""
        commit_hooks.add_listener(self)
        try:
            yield
        finally:
            commit_hooks.remove_listener(self)


# ---- data ------------------------------------------------------------------------------------------------------------------------
@contextmanager
def open_driver(url: str) -> Iterator[Driver]:
    """Within the block, yield a connection of the bare driver."""
    driver = Driver(url)
    try:
        yield driver
    finally:
        driver.close()


def insert_orders(url: str, count: int, status: str, *, first: int = 1) -> None:
    """Insert `count` orders by one statement of the bare driver, so that no hint is sent."""
    with open_driver(url) as driver:
        if driver.embedded:
            numbers = "WITH RECURSIVE n(i) AS (SELECT ? UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT i, ? FROM n"
            driver.execute(f"INSERT INTO orders (id, status) {numbers}", first, first + count - 1, status)
            driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        else:
            numbers = "SELECT i, ? FROM generate_series(?::int, ?::int) AS i"
            driver.execute(f"INSERT INTO orders (id, status) {numbers}", status, first, first + count - 1)
            driver.execute("SELECT setval(pg_get_serial_sequence('orders', 'id'), (SELECT max(id) FROM orders))")
            driver.execute("VACUUM ANALYZE orders")


def insert_timers(url: str, count: int, due: float, each_s: float = 0.0, *, first: int = 1) -> None:
    """Insert `count` timers without hints. due: when the first is due (Unix time). each_s: seconds from one timer to the next."""
    with open_driver(url) as driver:
        if driver.embedded:
            at = "strftime('%Y-%m-%d %H:%M:%f', ? + i * ?, 'unixepoch') || '000'"
            numbers = f"WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT ? + i, {at} FROM n"
            driver.execute(f"INSERT INTO timers (id, due_at) {numbers}", count - 1, first, due, each_s)
        else:
            numbers = "SELECT ?::int + i, to_timestamp(?::float8 + i * ?::float8) FROM generate_series(0, ?::int) AS i"
            driver.execute(f"INSERT INTO timers (id, due_at) {numbers}", first, due, each_s, count - 1)
            driver.execute("VACUUM ANALYZE timers")


def count_done_timers(url: str, *, last: int | None = None) -> int:
    """Return the number of timers that were carried out, up to the id `last`."""
    with open_driver(url) as driver:
        return driver.fetch_number(f"SELECT count(*) FROM timers WHERE done_at IS NOT NULL{'' if last is None else f' AND id <= {last}'}")


def count_with_status(url: str, status: str) -> int:
    """Return the number of orders with this status."""
    with open_driver(url) as driver:
        return driver.fetch_number("SELECT count(*) FROM orders WHERE status = ?", status)


def count_attempts(url: str) -> int:
    """Return the number of rows in groundstate's table of attempts."""
    with open_driver(url) as driver:
        return driver.fetch_number("SELECT count(*) FROM groundstate_attempt")


def carry_out_all(app: App) -> float:
    """Return the seconds in which a worker that has already started carries out all work."""
    app.start(wait=True)
    try:
        started = time.perf_counter()
        app.go()
        app.run_until_idle(LONGEST)
        return time.perf_counter() - started
    finally:
        app.stop()


@contextmanager
def create_durable_engine(url: str) -> Iterator[Any]:
    """Within the block, yield a user's engine with the durability of groundstate's own engine."""
    engine = create_engine(url)
    if url.startswith("sqlite"):
        event.listen(engine, "connect", _set_durable_pragmas)
    try:
        yield engine
    finally:
        engine.dispose()


def _set_durable_pragmas(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous = FULL")


# ---- processes -----------------------------------------------------------------------------------------------------------------
@contextmanager
def start_process(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Within the block, run `python -m ...` with its stdout as a pipe; the process is killed at the end."""
    command = [sys.executable, "-m", *map(str, arguments)]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        if running.stdout is not None:
            running.stdout.close()


def read_line(running: subprocess.Popen[str]) -> str:
    """Return the next line that the process prints. Raises NotDone where the process has ended."""
    line = running.stdout.readline() if running.stdout is not None else ""
    if not line:
        raise NotDone(f"{running.args!r} ended with {running.wait()} and said nothing")
    return line.strip()


def read_json_line(running: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the JSON object in the next line that the process prints."""
    told: dict[str, Any] = json.loads(read_line(running))
    return told


def cpu_seconds(pid: int) -> float:
    """Return the seconds of processor time that a process has used."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def measure_sync_ms(folder: Path) -> float:
    """Return the milliseconds in which 8 kB are brought to disk in this folder.

    Below 0.01 the folder is in memory, and no figure of this machine means anything.
    """
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
