"""Workload L: the time from the commit of an insert to the first line of the handler, in one process, one order at a time. Milliseconds."""

from __future__ import annotations

import queue
import threading
import time

from sqlalchemy.orm import Session

from benchmarks.bare import Driver
from benchmarks.harness import (
    CommitClock,
    Place,
    Row,
    Size,
    count_with_status,
    create_durable_engine,
    open_driver,
    percentile,
    require_count,
)
from benchmarks.shop import Order, create_packing_app, create_tables

STORES: tuple[str, ...] = ("sqlite", "postgres")


def run(place: Place, size: Size) -> list[Row]:
    """Measure groundstate, and a thread that is given the key and locks and reads the row by the bare driver."""
    ours_ms: list[float] = []
    bare_ms: list[float] = []
    some = max(size.samples // size.rounds, 1)
    for _ in range(size.rounds):
        ours_ms += measure_ours_ms(place, some)
        bare_ms += run_bare_driver(place, some)
    name = "driver, handed over by a queue"
    return [
        Row("L", place.name, "commit to handler, median", "ms", percentile(ours_ms, 0.5), len(ours_ms), {name: percentile(bare_ms, 0.5)}),
        Row("L", place.name, "commit to handler, p99", "ms", percentile(ours_ms, 0.99), len(ours_ms), {name: percentile(bare_ms, 0.99)}),
    ]


def measure_ours_ms(place: Place, count: int) -> list[float]:
    """Return the latencies where the commit of an ordinary session wakes the reaction."""
    first_lines: queue.SimpleQueue[float] = queue.SimpleQueue()
    with place.database() as url, create_durable_engine(url) as engine, CommitClock() as clock:
        app = create_packing_app(url, heard=lambda _: first_lines.put(time.monotonic()))
        create_tables(app)
        app.start()
        took: list[float] = []
        try:
            for _ in range(count):
                with Session(engine) as session:
                    session.add(Order(status="placed"))
                    session.commit()
                took.append((first_lines.get(timeout=30) - clock.at) * 1000)
                time.sleep(0.002)  # so that the handler's own commit is over before the next order
        finally:
            app.stop()
        require_count("orders packed", count_with_status(url, "packed"), count)
    return took


def run_bare_driver(place: Place, count: int) -> list[float]:
    """Return the latencies where the inserting thread passes the key to a thread with the bare driver."""
    with place.database() as url, open_driver(url) as writer, open_driver(url) as reader:
        create_tables(create_packing_app(url))
        keys: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        first_lines: queue.SimpleQueue[float] = queue.SimpleQueue()
        thread = threading.Thread(target=_run_bare_reader, args=(reader, keys, first_lines))
        thread.start()
        took: list[float] = []
        try:
            for _ in range(count):
                number = writer.fetch_number("INSERT INTO orders (status) VALUES ('placed') RETURNING id")
                committed = time.monotonic()
                keys.put(number)
                took.append((first_lines.get(timeout=30) - committed) * 1000)
                time.sleep(0.002)
        finally:
            keys.put(None)
            thread.join()
        require_count("orders packed by the bare driver", count_with_status(url, "packed"), count)
    return took


def _run_bare_reader(driver: Driver, keys: queue.SimpleQueue[int | None], first_lines: queue.SimpleQueue[float]) -> None:
    while (number := keys.get()) is not None:
        with driver.transaction():
            driver.execute(f"SELECT id, status FROM orders WHERE id = ?{driver.locks}", number).fetchone()
            first_lines.put(time.monotonic())
            driver.execute("UPDATE orders SET status = 'packed' WHERE id = ?", number)
