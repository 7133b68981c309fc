"""Workload C: the limits of one database: commits of one row a second, and on PostgreSQL the bytes that an event adds to the log.

As a program, `python -m benchmarks.limits URL SECONDS`, it is one connection that commits one row after the other.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack

from benchmarks.bare import Driver
from benchmarks.harness import (
    Place,
    Row,
    Size,
    carry_out_all,
    count_with_status,
    insert_orders,
    open_driver,
    read_line,
    require_count,
    start_process,
)
from benchmarks.shop import STEPS, create_charging_app, create_steps_app, create_tables
from benchmarks.steps import run_bare_driver

STORES: tuple[str, ...] = ("sqlite", "postgres")
CONNECTIONS = {"sqlite": (1,), "postgres": (1, 8)}


def run(place: Place, size: Size) -> list[Row]:
    """Measure the commits, and the log where it can be read."""
    rows = [_measure_commits(place, size, number) for number in CONNECTIONS[place.name]]
    return rows + ([] if place.name == "sqlite" else [_measure_log_of_steps(place, size), _measure_log_of_calls(place, size)])


def _measure_commits(place: Place, size: Size, number: int) -> Row:
    with place.database() as url, ExitStack() as stack:
        create_tables(create_steps_app(url))
        running = [stack.enter_context(start_process("benchmarks.limits", url, size.beside_s)) for _ in range(number)]
        done = sum(int(read_line(one)) for one in running)
        require_count("rows committed", count_with_status(url, "written"), done)
    figure = f"one row a commit, by the driver, {number} {'connection' if number == 1 else 'connections'}"
    return Row("C", place.name, figure, "commits/s", done / size.beside_s, done)


def _measure_log_of_steps(place: Place, size: Size) -> Row:
    found: dict[str, float] = {}
    for contender in ("ours", "driver"):
        with place.database() as url:
            app = create_steps_app(url)
            create_tables(app)
            insert_orders(url, size.orders, "placed")
            with open_driver(url) as driver:
                before = _log_position(driver)
                _ = carry_out_all(app) if contender == "ours" else run_bare_driver(url)
                found[contender] = (_log_position(driver) - before) / (size.orders * len(STEPS))
            require_count("orders shipped", count_with_status(url, "shipped"), size.orders)
    return Row("C", place.name, "log of a step in a batch", "bytes", found["ours"], size.orders, {"driver": found["driver"]})


def _measure_log_of_calls(place: Place, size: Size) -> Row:
    with place.database() as url:
        app = create_charging_app(url, limit=100)
        create_tables(app)
        insert_orders(url, size.calls, "placed")
        with open_driver(url) as driver:
            before = _log_position(driver)
            carry_out_all(app)
            added = _log_position(driver) - before
        require_count("orders paid", count_with_status(url, "paid"), size.calls)
    return Row("C", place.name, "log of a call, begun and concluded", "bytes", added / size.calls, size.calls)


def _log_position(driver: Driver) -> int:
    """Return the position in the log, after a checkpoint.

    After a checkpoint each page is logged whole when it is first changed, as happens in continuous operation.
    """
    driver.execute("CHECKPOINT")
    return driver.fetch_number("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")


def commit_rows(url: str, seconds: float) -> None:
    """Commit one row after the other for `seconds`, and print the number of rows."""
    driver = Driver(url)
    done, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        driver.execute("INSERT INTO orders (status) VALUES ('written')")
        done += 1
    print(done, flush=True)


if __name__ == "__main__":
    commit_rows(sys.argv[1], float(sys.argv[2]))
