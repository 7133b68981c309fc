"""M: many workers on one PostgreSQL: 3-step orders a second, latency, what an idle fleet asks. Beside as many bare loops.

As a program: `python -m benchmarks.fleet steps|hear|idle|bare URL`: one worker of it, or one bare loop. Says `up`, and begins with a line.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from sqlalchemy.orm import Session

from benchmarks import steps
from benchmarks.harness import (
    ROOT,
    CommitClock,
    NotDone,
    Place,
    Row,
    Size,
    driver_on,
    engine_on,
    expect,
    fill,
    line_of,
    percentile,
    with_status,
)
from benchmarks.shop import STEPS, Order, add_indexes, packing_app, set_up, steps_app
from groundstate import App

STORES: tuple[str, ...] = ("postgres",)
EACH_S = 0.01
LONGER = 12  # times as many orders as for one worker: so many processes take a while until all are up, and how many do best is tried out
SETTLES_S = 3.0
REACTIONS = 100
_CONTROL = ("BEGIN", "COMMIT", "ROLLBACK", "SET ")


def run(place: Place, size: Size) -> list[Row]:
    """Throughput and latency by the number of workers, and the idle cost of the largest fleet."""
    rows = []
    orders = LONGER * size.orders
    ours = {count: _steps(place, orders, count, "steps") for count in size.workers}
    bare = {count: _steps(place, orders, count, "bare") for count in size.workers}
    for count in size.workers:
        beside = {f"driver, {_processes(count)}": bare[count], "the best of ours": max(ours.values())}
        rows.append(
            Row("M", place.name, f"3-step orders, {_workers(count)}", "steps/s", ours[count], orders * 3, beside, "0.9 of the best")
        )
    for count in size.workers:
        late = _latency(place, size, count)
        figure = f"commit to handler, {_workers(count)}"
        rows.append(Row("M", place.name, f"{figure}, median", "ms", percentile(late, 0.5), len(late)))
        rows.append(Row("M", place.name, f"{figure}, p99", "ms", percentile(late, 0.99), len(late)))
    return [*rows, _idle(place, size, max(size.workers))]


# ---- throughput ----------------------------------------------------------------------------------------------------------------
def _steps(place: Place, orders: int, count: int, kind: str) -> float:
    with place.database() as url:
        app = steps_app(url)
        set_up(app)
        add_indexes(app)  # each worker looks for what is left again and again
        with _fleet(kind, url, count) as fleet:
            fill(url, orders, "placed")
            started = time.perf_counter()
            _go(fleet)
            _until_shipped(url, orders)
            seconds = time.perf_counter() - started
        expect(f"orders shipped by {_workers(count)}", with_status(url, "shipped"), orders)
        return 3 * orders / seconds


def _until_shipped(url: str, orders: int) -> None:
    with driver_on(url) as driver:
        end = time.monotonic() + 300
        driver.execute("SET enable_seqscan = off")  # by the conditions' own indexes: else this is most of the work at the end
        left = " OR ".join(f"EXISTS (SELECT 1 FROM orders WHERE status = '{status}')" for status in STEPS)
        while driver.number(f"SELECT CAST({left} AS int)"):
            if time.monotonic() > end:
                raise NotDone(f"after 300 s {orders - with_status(url, 'shipped')} of {orders} orders are left")
            time.sleep(0.02)


# ---- latency -------------------------------------------------------------------------------------------------------------------
def _latency(place: Place, size: Size, count: int) -> list[float]:
    """Milliseconds from the commit of a session in a process for hints alone to the first line of the handler, wherever that runs."""
    with place.database() as url, engine_on(url) as engine, CommitClock() as clock:
        app = packing_app(url)
        set_up(app)
        add_indexes(app)
        seen: dict[int, float] = {}
        with _fleet("hear", url, count) as fleet:
            for one in fleet:
                threading.Thread(target=_read, args=(one, seen), daemon=True).start()
            _go(fleet)
            app.start(hints_only=True)
            try:
                time.sleep(SETTLES_S)
                written: dict[int, float] = {}
                for _ in range(size.samples):
                    with Session(engine) as session:
                        order = Order()
                        session.add(order)
                        session.commit()
                        written[order.id] = clock.at
                    time.sleep(EACH_S)
                end = time.monotonic() + 30
                while len(seen) < len(written) and time.monotonic() < end:
                    time.sleep(0.01)
            finally:
                app.stop()
    expect("orders heard of", len(seen), size.samples)
    return [(seen[number] - at) * 1000 for number, at in written.items()]


def _read(one: Popen[str], seen: dict[int, float]) -> None:
    for line in one.stdout or ():
        number, at = json.loads(line)
        seen.setdefault(number, at)


# ---- idle ----------------------------------------------------------------------------------------------------------------------
def _idle(place: Place, size: Size, count: int) -> Row:
    """Statements a second of the whole fleet, but for BEGIN, COMMIT and SET, as the server's log has them."""
    with place.database() as url:
        app = _many_reactions(url)
        set_up(app)
        fill(url, size.finished[0], "shipped")
        add_indexes(app)
        with _fleet("idle", url, count) as fleet, _logged(url) as log:
            _go(fleet)
            time.sleep(max(SETTLES_S * 3, 1.0) if size.idle_s > 1 else size.idle_s)
            before = _statements(log)
            started = time.monotonic()
            time.sleep(size.idle_s)
            asked = (_statements(log) - before) / (time.monotonic() - started)
        work = with_status(url, "shipped")
    return Row("M", place.name, f"idle, {_workers(count)} with {REACTIONS} reactions", "statements/s", asked, work, {}, "under 5")


@contextmanager
def _logged(url: str) -> Iterator[Path]:
    """The server's log, with every statement in it while the block runs."""
    with driver_on(url) as driver:
        data = Path(driver.execute("SHOW data_directory").fetchone()[0])
        driver.execute("ALTER SYSTEM SET log_statement = 'all'")
        driver.execute("SELECT pg_reload_conf()")
        try:
            yield data.parent / "log"
        finally:
            driver.execute("ALTER SYSTEM RESET log_statement")
            driver.execute("SELECT pg_reload_conf()")


def _statements(log: Path) -> int:
    found = 0
    for line in log.read_text(errors="replace").splitlines():
        _, said, statement = line.partition("LOG:  ")
        _, colon, words = statement.partition(": ")
        if said and colon and statement.startswith(("execute ", "statement")) and not words.startswith(_CONTROL):
            found += 1
    return found


def _many_reactions(url: str) -> App:
    app = steps_app(url)
    for number in range(REACTIONS - len(app.reactions)):
        app.on(Order, Order.status == f"state {number}", name=f"reaction_{number}")(_moves(number))
    return app


def _moves(number: int) -> Any:
    def handler(order: Order) -> None:
        order.status = f"state {number + 1}"

    return handler


# ---- processes -----------------------------------------------------------------------------------------------------------------
@contextmanager
def _fleet(kind: str, url: str, count: int) -> Iterator[list[Popen[str]]]:
    with ExitStack() as stack:
        fleet = [stack.enter_context(_one(kind, url)) for _ in range(count)]
        for one in fleet:
            line_of(one)
        yield fleet


@contextmanager
def _one(kind: str, url: str) -> Iterator[Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.fleet", kind, url]
    with Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def _go(fleet: Sequence[Popen[str]]) -> None:
    for one in fleet:
        if one.stdin is not None:
            one.stdin.write("go\n")
            one.stdin.flush()


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _heard(number: int) -> None:
    print(json.dumps([number, time.monotonic()]), flush=True)


def _main(kind: str, url: str) -> None:
    if kind == "bare":
        print("up", flush=True)
        sys.stdin.readline()
        while True:  # others may have locked what was left when this one went by
            steps.bare(url)
    app = {"steps": steps_app, "hear": lambda of: packing_app(of, _heard), "idle": _many_reactions}[kind](url)
    app.start(wait=True)
    print("up", flush=True)
    sys.stdin.readline()
    app.go()
    while app.failure is None:
        time.sleep(60)


if __name__ == "__main__":
    _main(*sys.argv[1:])
