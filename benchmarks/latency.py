"""L: from the commit of an insert in the same process to the first line of the handler, one order at a time. Milliseconds."""

from __future__ import annotations

import queue
import threading
import time

from sqlalchemy.orm import Session

from benchmarks.bare import Driver
from benchmarks.harness import CommitClock, Place, Row, Size, driver_on, engine_on, expect, percentile, with_status
from benchmarks.shop import Order, packing_app, set_up

STORES: tuple[str, ...] = ("sqlite", "postgres")


def run(place: Place, size: Size) -> list[Row]:
    """Ours, and a thread that is handed the key and locks and reads the row by the bare driver."""
    ours_ms: list[float] = []
    bare_ms: list[float] = []
    some = max(size.samples // size.rounds, 1)
    for _ in range(size.rounds):
        ours_ms += ours(place, some)
        bare_ms += bare(place, some)
    name = "driver, handed over by a queue"
    return [
        Row("L", place.name, "commit to handler, median", "ms", percentile(ours_ms, 0.5), len(ours_ms), {name: percentile(bare_ms, 0.5)}),
        Row("L", place.name, "commit to handler, p99", "ms", percentile(ours_ms, 0.99), len(ours_ms), {name: percentile(bare_ms, 0.99)}),
    ]


def ours(place: Place, count: int) -> list[float]:
    """An ordinary session's commit wakes the reaction."""
    first_lines: queue.SimpleQueue[float] = queue.SimpleQueue()
    with place.database() as url, engine_on(url) as engine, CommitClock() as clock:
        app = packing_app(url, heard=lambda _: first_lines.put(time.monotonic()))
        set_up(app)
        app.start()
        took: list[float] = []
        try:
            for _ in range(count):
                with Session(engine) as session:
                    session.add(Order(status="placed"))
                    session.commit()
                took.append((first_lines.get(timeout=30) - clock.at) * 1000)
                time.sleep(0.002)  # one at a time: the handler's own commit is over
        finally:
            app.stop()
        expect("orders packed", with_status(url, "packed"), count)
    return took


def bare(place: Place, count: int) -> list[float]:
    """The same with nothing between."""
    with place.database() as url, driver_on(url) as writer, driver_on(url) as reader:
        set_up(packing_app(url))
        keys: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        first_lines: queue.SimpleQueue[float] = queue.SimpleQueue()
        thread = threading.Thread(target=_listen, args=(reader, keys, first_lines))
        thread.start()
        took: list[float] = []
        try:
            for _ in range(count):
                number = writer.number("INSERT INTO orders (status) VALUES ('placed') RETURNING id")
                committed = time.monotonic()
                keys.put(number)
                took.append((first_lines.get(timeout=30) - committed) * 1000)
                time.sleep(0.002)
        finally:
            keys.put(None)
            thread.join()
        expect("orders packed by the bare driver", with_status(url, "packed"), count)
    return took


def _listen(driver: Driver, keys: queue.SimpleQueue[int | None], first_lines: queue.SimpleQueue[float]) -> None:
    while (number := keys.get()) is not None:
        with driver.transaction():
            driver.execute(f"SELECT id, status FROM orders WHERE id = ?{driver.locks}", number).fetchone()
            first_lines.put(time.monotonic())
            driver.execute("UPDATE orders SET status = 'packed' WHERE id = ?", number)
