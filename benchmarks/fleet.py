"""Workload M: many workers on one PostgreSQL: 3-step orders a second, latency, and the idle load, beside as many loops on the bare driver.

As a program, `python -m benchmarks.fleet steps|hear|idle|bare URL`, it is one worker or one bare loop. It prints `up`, and begins when it
reads a line.
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
    count_with_status,
    create_durable_engine,
    insert_orders,
    open_driver,
    percentile,
    read_line,
    require_count,
)
from benchmarks.shop import STEPS, Order, create_packing_app, create_proposed_indexes, create_steps_app, create_tables
from groundstate import App

STORES: tuple[str, ...] = ("postgres",)
EACH_S = 0.01
LONGER = 12  # times as many orders as for one worker, since many processes take a while to start
SETTLES_S = 3.0
REACTIONS = 100
_CONTROL = ("BEGIN", "COMMIT", "ROLLBACK", "SET ")


def run(place: Place, size: Size) -> list[Row]:
    """Measure throughput and latency for each number of workers, and the idle load of the largest fleet."""
    rows = []
    orders = LONGER * size.orders
    ours = {count: _measure_steps(place, orders, count, "steps") for count in size.workers}
    bare = {count: _measure_steps(place, orders, count, "bare") for count in size.workers}
    for count in size.workers:
        beside = {f"driver, {_processes_label(count)}": bare[count], "the best of ours": max(ours.values())}
        rows.append(
            Row("M", place.name, f"3-step orders, {_workers_label(count)}", "steps/s", ours[count], orders * 3, beside, "0.9 of the best")
        )
    for count in size.workers:
        late = _measure_latencies_ms(place, size, count)
        figure = f"commit to handler, {_workers_label(count)}"
        rows.append(Row("M", place.name, f"{figure}, median", "ms", percentile(late, 0.5), len(late)))
        rows.append(Row("M", place.name, f"{figure}, p99", "ms", percentile(late, 0.99), len(late)))
    return [*rows, _measure_idle_statements(place, size, max(size.workers))]


# ---- throughput ----------------------------------------------------------------------------------------------------------------
def _measure_steps(place: Place, orders: int, count: int, kind: str) -> float:
    with place.database() as url:
        app = create_steps_app(url)
        create_tables(app)
        create_proposed_indexes(app)  # each worker repeatedly queries for remaining orders
        with _start_fleet(kind, url, count) as fleet:
            insert_orders(url, orders, "placed")
            started = time.perf_counter()
            _start_work(fleet)
            _wait_until_shipped(url, orders)
            seconds = time.perf_counter() - started
        require_count(f"orders shipped by {_workers_label(count)}", count_with_status(url, "shipped"), orders)
        return 3 * orders / seconds


def _wait_until_shipped(url: str, orders: int) -> None:
    with open_driver(url) as driver:
        end = time.monotonic() + 300
        driver.execute("SET enable_seqscan = off")  # it uses the indexes; otherwise this query would take most of the time at the end
        left = " OR ".join(f"EXISTS (SELECT 1 FROM orders WHERE status = '{status}')" for status in STEPS)
        while driver.fetch_number(f"SELECT CAST({left} AS int)"):
            if time.monotonic() > end:
                raise NotDone(f"after 300 s {orders - count_with_status(url, 'shipped')} of {orders} orders are left")
            time.sleep(0.02)


# ---- latency -------------------------------------------------------------------------------------------------------------------
def _measure_latencies_ms(place: Place, size: Size, count: int) -> list[float]:
    """Return the milliseconds from the commit of a session to the first line of the handler, in whichever worker it runs.

    The session is in a process that runs no worker and only sends hints.
    """
    with place.database() as url, create_durable_engine(url) as engine, CommitClock() as clock:
        app = create_packing_app(url)
        create_tables(app)
        create_proposed_indexes(app)
        seen: dict[int, float] = {}
        with _start_fleet("hear", url, count) as fleet:
            for one in fleet:
                threading.Thread(target=_read_first_lines, args=(one, seen), daemon=True).start()
            _start_work(fleet)
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
    require_count("orders heard of", len(seen), size.samples)
    return [(seen[number] - at) * 1000 for number, at in written.items()]


def _read_first_lines(one: Popen[str], seen: dict[int, float]) -> None:
    for line in one.stdout or ():
        number, at = json.loads(line)
        seen.setdefault(number, at)


# ---- idle ----------------------------------------------------------------------------------------------------------------------
def _measure_idle_statements(place: Place, size: Size, count: int) -> Row:
    """Measure the statements a second of the whole fleet by the server's log, without BEGIN, COMMIT and SET."""
    with place.database() as url:
        app = _create_app_with_many_reactions(url)
        create_tables(app)
        insert_orders(url, size.finished[0], "shipped")
        create_proposed_indexes(app)
        with _start_fleet("idle", url, count) as fleet, _log_statements(url) as log:
            _start_work(fleet)
            time.sleep(max(SETTLES_S * 3, 1.0) if size.idle_s > 1 else size.idle_s)
            before = _count_statements(log)
            started = time.monotonic()
            time.sleep(size.idle_s)
            asked = (_count_statements(log) - before) / (time.monotonic() - started)
        work = count_with_status(url, "shipped")
    return Row("M", place.name, f"idle, {_workers_label(count)} with {REACTIONS} reactions", "statements/s", asked, work, {}, "under 5")


@contextmanager
def _log_statements(url: str) -> Iterator[Path]:
    """Within the block, let the server log every statement, and yield the log."""
    with open_driver(url) as driver:
        data = Path(driver.execute("SHOW data_directory").fetchone()[0])
        driver.execute("ALTER SYSTEM SET log_statement = 'all'")
        driver.execute("SELECT pg_reload_conf()")
        try:
            yield data.parent / "log"
        finally:
            driver.execute("ALTER SYSTEM RESET log_statement")
            driver.execute("SELECT pg_reload_conf()")


def _count_statements(log: Path) -> int:
    found = 0
    for line in log.read_text(errors="replace").splitlines():
        _, said, statement = line.partition("LOG:  ")
        _, colon, words = statement.partition(": ")
        if said and colon and statement.startswith(("execute ", "statement")) and not words.startswith(_CONTROL):
            found += 1
    return found


def _create_app_with_many_reactions(url: str) -> App:
    app = create_steps_app(url)
    for number in range(REACTIONS - len(app.reactions)):
        app.on(Order, Order.status == f"state {number}", name=f"reaction_{number}")(_create_handler(number))
    return app


def _create_handler(number: int) -> Any:
    def handler(order: Order) -> None:
        order.status = f"state {number + 1}"

    return handler


# ---- processes -----------------------------------------------------------------------------------------------------------------
@contextmanager
def _start_fleet(kind: str, url: str, count: int) -> Iterator[list[Popen[str]]]:
    with ExitStack() as stack:
        fleet = [stack.enter_context(_start_process(kind, url)) for _ in range(count)]
        for one in fleet:
            read_line(one)
        yield fleet


@contextmanager
def _start_process(kind: str, url: str) -> Iterator[Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.fleet", kind, url]
    with Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def _start_work(fleet: Sequence[Popen[str]]) -> None:
    for one in fleet:
        if one.stdin is not None:
            one.stdin.write("go\n")
            one.stdin.flush()


def _workers_label(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _processes_label(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _print_first_line(number: int) -> None:
    print(json.dumps([number, time.monotonic()]), flush=True)


def _main(kind: str, url: str) -> None:
    if kind == "bare":
        print("up", flush=True)
        sys.stdin.readline()
        while True:  # orders that were skipped because another process had locked them may be free now
            steps.run_bare_driver(url)
    app = {
        "steps": create_steps_app,
        "hear": lambda of: create_packing_app(of, _print_first_line),
        "idle": _create_app_with_many_reactions,
    }[kind](url)
    app.start(wait=True)
    print("up", flush=True)
    sys.stdin.readline()
    app.go()
    while app.failure is None:
        time.sleep(60)


if __name__ == "__main__":
    _main(*sys.argv[1:])
