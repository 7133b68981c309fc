"""Workload E: one external call of 2 ms for each order, with a limit on the calls in flight. Orders a second."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from benchmarks.harness import (
    Place,
    Row,
    Size,
    carry_out_all,
    count_with_status,
    insert_orders,
    median_of_rounds,
    open_driver,
    require_count,
)
from benchmarks.shop import create_charging_app, create_tables

STORES: tuple[str, ...] = ("sqlite", "postgres")
CALL_S = 0.002
TARGETS = {"sqlite": "6,000", "postgres": "4,000"}


def run(place: Place, size: Size) -> list[Row]:
    """Measure groundstate and the bare driver with the same limits on the calls in flight."""
    return [_measure_limit(place, size, limit) for limit in size.limits]


def _measure_limit(place: Place, size: Size, limit: int) -> Row:
    def measure_rate(contender: str) -> float:
        with place.database() as url:
            app = create_charging_app(url, limit=limit, call_s=CALL_S)
            create_tables(app)
            insert_orders(url, size.calls, "placed")
            seconds = carry_out_all(app) if contender == "ours" else asyncio.run(run_bare_driver(url, limit))
            require_count(f"orders paid by {contender}", count_with_status(url, "paid"), size.calls)
            return size.calls / seconds

    found = median_of_rounds(size.rounds, {name: partial(measure_rate, name) for name in ("ours", "bare")})
    figure = f"one call in each, {limit} in flight"
    beside = {"driver, begun and concluded": found["bare"]}
    return Row("E", place.name, figure, "calls/s", found["ours"], size.calls, beside, TARGETS[place.name])


async def run_bare_driver(url: str, limit: int) -> float:
    """Carry out the orders by the bare driver, and return the seconds.

    One transaction a tick writes the outcomes that came back and the calls to be sent next; these are sent after its commit.
    """
    with open_driver(url) as driver:
        driver.execute("CREATE TABLE in_flight (id INTEGER PRIMARY KEY, begun_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)")
        read = f"SELECT id FROM orders WHERE status = 'placed' AND id > ? ORDER BY id LIMIT ?{driver.locks}"
        returned: list[tuple[str, int]] = []
        arrived = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        async def call(number: int) -> None:
            await asyncio.sleep(CALL_S)
            returned.append((f"r{number}", number))
            arrived.set()

        started, last, flying, more = time.perf_counter(), 0, 0, True
        while more or flying:
            arrived.clear()
            done, returned = returned, []
            flying -= len(done)
            with driver.transaction():
                if done:
                    driver.execute_many("UPDATE orders SET status = 'paid', receipt = ? WHERE id = ?", done)
                    driver.execute(f"DELETE FROM in_flight WHERE id {driver.among}", driver.bind_many([number for _, number in done]))
                begun = [row[0] for row in driver.execute(read, last, limit - flying).fetchall()] if more else []
                more = more and len(begun) == limit - flying
                driver.execute_many("INSERT INTO in_flight (id) VALUES (?)", [(number,) for number in begun])
            last = begun[-1] if begun else last
            flying += len(begun)
            for number in begun:
                task = asyncio.create_task(call(number))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if flying:
                await arrived.wait()
        return time.perf_counter() - started
