"""C: what one database bears: commits a second of one row each, and on PostgreSQL the bytes that an event adds to its log.

As a program: `python -m benchmarks.limits URL SECONDS`, one connection that commits one row after the other.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack

from benchmarks.bare import Driver
from benchmarks.harness import Place, Row, Size, carry_out_all, driver_on, expect, fill, line_of, process, with_status
from benchmarks.shop import STEPS, charging_app, set_up, steps_app
from benchmarks.steps import bare

STORES: tuple[str, ...] = ("sqlite", "postgres")
CONNECTIONS = {"sqlite": (1,), "postgres": (1, 8)}


def run(place: Place, size: Size) -> list[Row]:
    """Commits; and the log, where it can be read."""
    rows = [_commits(place, size, number) for number in CONNECTIONS[place.name]]
    return rows + ([] if place.name == "sqlite" else [_log_of_steps(place, size), _log_of_calls(place, size)])


def _commits(place: Place, size: Size, number: int) -> Row:
    with place.database() as url, ExitStack() as stack:
        set_up(steps_app(url))
        running = [stack.enter_context(process("benchmarks.limits", url, size.beside_s)) for _ in range(number)]
        done = sum(int(line_of(one)) for one in running)
        expect("rows committed", with_status(url, "written"), done)
    figure = f"one row a commit, by the driver, {number} {'connection' if number == 1 else 'connections'}"
    return Row("C", place.name, figure, "commits/s", done / size.beside_s, done)


def _log_of_steps(place: Place, size: Size) -> Row:
    found: dict[str, float] = {}
    for contender in ("ours", "driver"):
        with place.database() as url:
            app = steps_app(url)
            set_up(app)
            fill(url, size.orders, "placed")
            with driver_on(url) as driver:
                before = _log_at(driver)
                _ = carry_out_all(app) if contender == "ours" else bare(url)
                found[contender] = (_log_at(driver) - before) / (size.orders * len(STEPS))
            expect("orders shipped", with_status(url, "shipped"), size.orders)
    return Row("C", place.name, "log of a step in a batch", "bytes", found["ours"], size.orders, {"driver": found["driver"]})


def _log_of_calls(place: Place, size: Size) -> Row:
    with place.database() as url:
        app = charging_app(url, limit=100)
        set_up(app)
        fill(url, size.calls, "placed")
        with driver_on(url) as driver:
            before = _log_at(driver)
            carry_out_all(app)
            added = _log_at(driver) - before
        expect("orders paid", with_status(url, "paid"), size.calls)
    return Row("C", place.name, "log of a call, begun and concluded", "bytes", added / size.calls, size.calls)


def _log_at(driver: Driver) -> int:
    """The position in the log. After a checkpoint each page goes into it whole when it is first touched, as it does in the long run."""
    driver.execute("CHECKPOINT")
    return driver.number("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")


def commit(url: str, seconds: float) -> None:
    """One row after the other; how many."""
    driver = Driver(url)
    done, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        driver.execute("INSERT INTO orders (status) VALUES ('written')")
        done += 1
    print(done, flush=True)


if __name__ == "__main__":
    commit(sys.argv[1], float(sys.argv[2]))
