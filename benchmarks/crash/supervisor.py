"""One run of one contender: set up the shop, place orders, kill the worker by the schedule, and restart it at once.

Then the run waits until all orders are done, or until nothing has happened for longer than the contender's own timeouts, and counts. It
kills only its own child processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
from sqlalchemy import create_engine, text
from tools.servers.postgres import PostgresServer

from benchmarks.crash.contenders import CONCURRENCY, Contender
from benchmarks.crash.counting import Counts, Row, count_orders
from benchmarks.crash.environment import start_redis_server
from benchmarks.crash.gateway import LATEST_S, Served
from benchmarks.crash.schedule import Kill
from benchmarks.harness import ROOT

PAUSE_S = 0.02  # seconds between two orders
TABLE = "CREATE TABLE orders (id integer PRIMARY KEY, total integer NOT NULL, status text NOT NULL, receipt text)"
LOOK_S = 0.02
AGAIN_S = 5.0  # seconds between two calls of the contender's own tools
LONGEST_S = 1800.0


@dataclass(frozen=True)
class Plan:
    """The settings that are the same for all contenders."""

    orders: int
    seed: int
    kills: Sequence[Kill]
    venv: Path
    folder: Path
    quiet_s: float | None = None  # replaces the contenders' own values; for tests


@dataclass(frozen=True)
class Result:
    """The result of one contender at one kind of gateway."""

    contender: str
    kind: str
    kills: int
    requests: int
    seconds: float
    counts: Counts


class Shop:
    """The processes of one run, which write to `folder`. Leaving the `with` block kills the worker."""

    def __init__(self, contender: Contender, venv: Path, folder: Path, environment: Mapping[str, str]) -> None:
        self._contender, self._venv, self._folder = contender, venv, folder
        path = os.pathsep.join([str(ROOT), str(contender.peers)]) if contender.is_ours else str(contender.peers)
        self._environment = {**os.environ, **environment, **contender.environment, "PYTHONPATH": path}
        self._log = folder / "log"
        self._worker: subprocess.Popen[bytes] | None = None
        self.ended_by_itself = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def run(self, words: tuple[str, ...]) -> str:
        """Run a command of the contender to its end, and return its output."""
        with self._log.open("ab") as log:
            done = subprocess.run(
                self._fill_in_words(words), env=self._environment, cwd=self._working_folder, stdout=subprocess.PIPE, stderr=log, check=False
            )
        if done.returncode:
            raise RuntimeError(f"{self._contender.name}: {words} ended with {done.returncode}: see {self._log}")
        return done.stdout.decode()

    def start(self, words: tuple[str, ...]) -> subprocess.Popen[bytes]:
        """Start a command of the contender in a process group of its own."""
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._fill_in_words(words),
                env=self._environment,
                cwd=self._working_folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ensure_worker(self) -> None:
        """Start a worker if none runs, as a process supervisor does."""
        if self._worker is not None and self._worker.poll() is not None:
            self.ended_by_itself += 1
            self._worker = None
        if self._worker is None:
            self._worker = self.start(self._contender.work)

    def kill(self) -> None:
        """Kill the worker and all its descendants by SIGKILL; return when they are gone."""
        tree = self.process_tree()
        worker, self._worker = self._worker, None
        if worker is None:
            return
        for one in tree:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        worker.wait(30)
        psutil.wait_procs(tree, timeout=30)

    def process_tree(self) -> list[psutil.Process]:
        """Return the worker and all its descendants."""
        try:
            parent = psutil.Process(self._worker.pid) if self._worker is not None else None
            return [parent, *parent.children(recursive=True)] if parent is not None else []
        except psutil.NoSuchProcess:
            return []

    def list_unfinished(self) -> dict[int, str]:
        """Return the orders that the contender's own tools list as unfinished, each with the tool's word for it."""
        said: dict[str, str] = json.loads(self.run((*self._contender.script, "left")).splitlines()[-1])
        return {int(number): word for number, word in said.items()}

    @property
    def _working_folder(self) -> Path:
        return self._folder if self._contender.is_ours else self._contender.peers

    def _fill_in_words(self, words: tuple[str, ...]) -> list[str]:
        return self._contender.fill_in_command(words, self._venv)


class Books:
    """The shop's table, read from outside of the contender."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)

    def create_table(self) -> None:
        """Create the empty table."""
        with self._engine.begin() as connection:
            connection.execute(text(TABLE))

    def read_rows(self) -> dict[int, Row]:
        """Return the committed orders by number."""
        with self._engine.connect() as connection:
            return {row.id: Row(row.status, row.receipt) for row in connection.execute(text("SELECT id, status, receipt FROM orders"))}

    def close(self) -> None:
        """Close the connections; nothing can be read after this."""
        self._engine.dispose()


def run(contender: Contender, kind: str, plan: Plan, server: PostgresServer | None) -> Result:
    """Run one contender at one kind of gateway, from an empty table to its counts."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        gateway = stack.enter_context(Served(plan.folder / "ledger.jsonl", plan.seed, kind=kind))
        environment = {"CRASH_GATEWAY": gateway.url, "CRASH_KIND": kind, "CRASH_CONCURRENCY": str(CONCURRENCY)}
        environment["GROUNDSTATE_STATE"] = str(plan.folder / "state")
        if server is not None:
            url = server.create_database()
            stack.callback(server.drop_database, url)
        else:
            url = f"sqlite:///{plan.folder / 'shop.db'}"
        plain = url.replace("+psycopg", "")
        environment |= {"CRASH_DATABASE": url if contender.is_ours else plain, "PGDSN": plain}
        if contender.redis:
            environment["CRASH_REDIS"] = stack.enter_context(start_redis_server(plan.venv, plan.folder))
        books = Books(url)
        stack.callback(books.close)
        shop = stack.enter_context(Shop(contender, plan.venv, plan.folder, environment))
        if not contender.is_ours:
            books.create_table()
        if contender.setup is not None:
            shop.run(contender.setup)
        return _kill_and_settle(contender, gateway, books, shop, plan)


def _kill_and_settle(contender: Contender, gateway: Served, books: Books, shop: Shop, plan: Plan) -> Result:
    started = time.monotonic()
    placing = shop.start((*contender.script, "place", str(plan.orders), str(PAUSE_S)))
    shop.ensure_worker()
    to_come, since = list(plan.kills), 0
    rest = RestDetector(gateway, books, shop, plan.quiet_s or contender.quiet_s)
    while time.monotonic() - started < LONGEST_S:
        time.sleep(LOOK_S)
        shop.ensure_worker()
        asked = gateway.bank.charges_asked
        if to_come and asked >= to_come[0].after and asked > since:  # each worker must send at least one request before it is killed
            time.sleep(to_come.pop(0).wait_s)
            shop.kill()
            since = gateway.bank.charges_asked
            shop.ensure_worker()
        elif placing.poll() is not None and rest.has_come():
            break
    else:
        raise TimeoutError(f"{contender.name}: not at rest after {LONGEST_S:g} s: see {plan.folder}")
    if placing.returncode:
        raise RuntimeError(f"{contender.name}: placing orders ended with {placing.returncode}: see {plan.folder}")
    counts = count_orders(books.read_rows(), gateway.read_entries(), shop.list_unfinished())
    ends = shop.ended_by_itself
    if counts.right == 0 or len(to_come) > len(plan.kills) / 2 or ends:
        # If a contender does nothing at all, its setup is wrong, and the result must not be counted.
        raise RuntimeError(f"{contender.name}: {counts}, {len(to_come)} kills left, {ends} ends by itself: see {plan.folder}")
    return Result(
        contender=contender.name,
        kind=gateway.bank.kind,
        kills=len(plan.kills) - len(to_come),
        requests=gateway.bank.requests,
        seconds=round(time.monotonic() - started, 1),
        counts=counts,
    )


class RestDetector:
    """Detects when a shop has come to rest: all orders are done and none is listed, or nothing has happened for `quiet_s` seconds."""

    def __init__(self, gateway: Served, books: Books, shop: Shop, quiet_s: float) -> None:
        self._gateway, self._books, self._shop, self._quiet_s = gateway, books, shop, quiet_s
        self._seen: Any = None
        self._since = self._looked = time.monotonic()

    def has_come(self) -> bool:
        """Return whether the shop has come to rest. It may be called at any rate; the shop is checked only now and then."""
        now = time.monotonic()
        if now - self._looked < 1:
            return False
        self._looked = now
        rows = self._books.read_rows()
        waiting = sum(row.status == "placed" for row in rows.values())
        seen = (self._gateway.bank.requests, len(self._gateway.read_entries()), waiting)
        if seen != self._seen:
            self._seen, self._since = seen, now
        idle_s = now - self._since
        if idle_s < LATEST_S:
            return False
        if idle_s >= self._quiet_s:
            return True
        if waiting == 0:
            self._looked += AGAIN_S
            return not self._shop.list_unfinished()
        return False
