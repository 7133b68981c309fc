"""One run of one contender: the shop is set up, orders are placed, the worker is killed by the schedule and started at once again.

Then it waits until all is done, or until nothing happened for longer than the contender's own timeouts, and counts. It kills no process
but its own children.
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
from benchmarks.crash.counting import Counts, Row, count
from benchmarks.crash.environment import redis_server
from benchmarks.crash.gateway import LATEST_S, Served
from benchmarks.crash.schedule import Kill
from benchmarks.harness import ROOT

PAUSE_S = 0.02  # between two orders that are placed
TABLE = "CREATE TABLE orders (id integer PRIMARY KEY, total integer NOT NULL, status text NOT NULL, receipt text)"
LOOK_S = 0.02
AGAIN_S = 5.0  # between two looks at what the contender's own tools list
LONGEST_S = 1800.0


@dataclass(frozen=True)
class Plan:
    """What is the same for all contenders of a run of the command."""

    orders: int
    seed: int
    kills: Sequence[Kill]
    venv: Path
    folder: Path
    quiet_s: float | None = None  # in place of each contender's own: for tests


@dataclass(frozen=True)
class Result:
    """What became of one contender at one kind of gateway."""

    contender: str
    kind: str
    kills: int
    requests: int
    seconds: float
    counts: Counts


class Shop:
    """The processes of one run, which write to `folder`. In a `with`: on the way out the worker is killed."""

    def __init__(self, contender: Contender, venv: Path, folder: Path, environment: Mapping[str, str]) -> None:
        self._contender, self._venv, self._folder = contender, venv, folder
        path = os.pathsep.join([str(ROOT), str(contender.peers)]) if contender.ours else str(contender.peers)
        self._environment = {**os.environ, **environment, **contender.environment, "PYTHONPATH": path}
        self._log = folder / "log"
        self._worker: subprocess.Popen[bytes] | None = None
        self.ended_by_itself = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def run(self, words: tuple[str, ...]) -> str:
        """Runs a command of the contender to its end; what it wrote."""
        with self._log.open("ab") as log:
            done = subprocess.run(self._words(words), env=self._environment, cwd=self._cwd, stdout=subprocess.PIPE, stderr=log, check=False)
        if done.returncode:
            raise RuntimeError(f"{self._contender.name}: {words} ended with {done.returncode}: see {self._log}")
        return done.stdout.decode()

    def start(self, words: tuple[str, ...]) -> subprocess.Popen[bytes]:
        """Starts a command of the contender in a process group of its own."""
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._words(words),
                env=self._environment,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def keep_a_worker(self) -> None:
        """Starts one where there is none: what a process supervisor does."""
        if self._worker is not None and self._worker.poll() is not None:
            self.ended_by_itself += 1
            self._worker = None
        if self._worker is None:
            self._worker = self.start(self._contender.work)

    def kill(self) -> None:
        """SIGKILL to the worker and to all its descendants; returns when they are gone."""
        tree = self.tree()
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

    def tree(self) -> list[psutil.Process]:
        """The worker and all its descendants, as they are now."""
        try:
            parent = psutil.Process(self._worker.pid) if self._worker is not None else None
            return [parent, *parent.children(recursive=True)] if parent is not None else []
        except psutil.NoSuchProcess:
            return []

    def listed(self) -> dict[int, str]:
        """What the contender's own tools list as not done: the order, and their word for it."""
        said: dict[str, str] = json.loads(self.run((*self._contender.script, "left")).splitlines()[-1])
        return {int(number): word for number, word in said.items()}

    @property
    def _cwd(self) -> Path:
        return self._folder if self._contender.ours else self._contender.peers

    def _words(self, words: tuple[str, ...]) -> list[str]:
        return self._contender.command(words, self._venv)


class Books:
    """The shop's table, read from outside."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)

    def make(self) -> None:
        """Creates the table, empty."""
        with self._engine.begin() as connection:
            connection.execute(text(TABLE))

    def rows(self) -> dict[int, Row]:
        """The orders as they are committed now."""
        with self._engine.connect() as connection:
            return {row.id: Row(row.status, row.receipt) for row in connection.execute(text("SELECT id, status, receipt FROM orders"))}

    def close(self) -> None:
        """Nothing is read after this."""
        self._engine.dispose()


def run(contender: Contender, kind: str, plan: Plan, server: PostgresServer | None) -> Result:
    """One contender at one kind of gateway, from empty books to its counts."""
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
        environment |= {"CRASH_DATABASE": url if contender.ours else plain, "PGDSN": plain}
        if contender.redis:
            environment["CRASH_REDIS"] = stack.enter_context(redis_server(plan.venv, plan.folder))
        books = Books(url)
        stack.callback(books.close)
        shop = stack.enter_context(Shop(contender, plan.venv, plan.folder, environment))
        if not contender.ours:
            books.make()
        if contender.setup is not None:
            shop.run(contender.setup)
        return _killed_and_settled(contender, gateway, books, shop, plan)


def _killed_and_settled(contender: Contender, gateway: Served, books: Books, shop: Shop, plan: Plan) -> Result:
    started = time.monotonic()
    placing = shop.start((*contender.script, "place", str(plan.orders), str(PAUSE_S)))
    shop.keep_a_worker()
    to_come, since = list(plan.kills), 0
    rest = Rest(gateway, books, shop, plan.quiet_s or contender.quiet_s)
    while time.monotonic() - started < LONGEST_S:
        time.sleep(LOOK_S)
        shop.keep_a_worker()
        asked = gateway.bank.charges_asked
        if to_come and asked >= to_come[0].after and asked > since:  # each life gets to send something
            time.sleep(to_come.pop(0).wait_s)
            shop.kill()
            since = gateway.bank.charges_asked
            shop.keep_a_worker()
        elif placing.poll() is not None and rest.come():
            break
    else:
        raise TimeoutError(f"{contender.name}: not at rest after {LONGEST_S:g} s: see {plan.folder}")
    if placing.returncode:
        raise RuntimeError(f"{contender.name}: placing orders ended with {placing.returncode}: see {plan.folder}")
    counts = count(books.rows(), gateway.entries(), shop.listed())
    ends = shop.ended_by_itself
    if counts.right == 0 or len(to_come) > len(plan.kills) / 2 or ends:
        # A contender that does not work at all was set up wrongly by us: that is no figure.
        raise RuntimeError(f"{contender.name}: {counts}, {len(to_come)} kills left, {ends} ends by itself: see {plan.folder}")
    return Result(
        contender=contender.name,
        kind=gateway.bank.kind,
        kills=len(plan.kills) - len(to_come),
        requests=gateway.bank.requests,
        seconds=round(time.monotonic() - started, 1),
        counts=counts,
    )


class Rest:
    """Whether a shop has come to rest: all is done and nothing listed, or nothing happened for so long that nothing will."""

    def __init__(self, gateway: Served, books: Books, shop: Shop, quiet_s: float) -> None:
        self._gateway, self._books, self._shop, self._quiet_s = gateway, books, shop, quiet_s
        self._seen: Any = None
        self._since = self._looked = time.monotonic()

    def come(self) -> bool:
        """May be asked all the time; looks now and then."""
        now = time.monotonic()
        if now - self._looked < 1:
            return False
        self._looked = now
        rows = self._books.rows()
        waiting = sum(row.status == "placed" for row in rows.values())
        seen = (self._gateway.bank.requests, len(self._gateway.entries()), waiting)
        if seen != self._seen:
            self._seen, self._since = seen, now
        idle_s = now - self._since
        if idle_s < LATEST_S:
            return False
        if idle_s >= self._quiet_s:
            return True
        if waiting == 0:
            self._looked += AGAIN_S
            return not self._shop.listed()
        return False
