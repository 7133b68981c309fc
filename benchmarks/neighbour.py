"""Workload W: another process commits a row to the same SQLite file every 5 ms: how much a busy worker delays it. Milliseconds."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness import (
    CarriedOut,
    NotDone,
    Place,
    Row,
    Size,
    insert_orders,
    open_driver,
    percentile,
    read_json_line,
    read_line,
    start_process,
    wait_until,
)
from benchmarks.shop import create_charging_app, create_steps_app, create_tables
from groundstate import App

STORES: tuple[str, ...] = ("sqlite",)
PAUSE_S = 0.005


def run(place: Place, size: Size) -> list[Row]:
    """Measure the other process beside a worker that is busy with the database, one that is busy with calls, and no worker."""
    return [
        *_measure_rows(place, size, "batches", create_steps_app),
        *_measure_rows(place, size, "calls", lambda url: create_charging_app(url, limit=100)),
    ]


def _measure_rows(place: Place, size: Size, kind: str, make: Callable[[str], App]) -> list[Row]:
    alone, _ = _measure_writer(place, size, make, busy=False)
    beside, errors = _measure_writer(place, size, make, busy=True)
    rows = []
    for name, share in (("median", 0.5), ("p99", 0.99), ("longest", 1.0)):
        reference = {"alone": percentile(alone, share)}
        rows.append(Row("W", place.name, f"other writer beside {kind}, {name}", "ms", percentile(beside, share), len(beside), reference))
    # With few commits, the percentile is nearly the maximum, so the number of commits is reported as well.
    commits = {"alone": float(len(alone))}
    rows.append(
        Row("W", place.name, f"other writer beside {kind}, in {size.beside_s:g} s", "commits", float(len(beside)), len(beside), commits)
    )
    rows.append(Row("W", place.name, f"other writer beside {kind}, errors", "errors", float(errors), len(beside), {}, "0"))
    return rows


def _measure_writer(place: Place, size: Size, make: Callable[[str], App], *, busy: bool) -> tuple[list[float], int]:
    done = CarriedOut()
    with place.database() as url, done.registered():
        app = make(url)
        create_tables(app)
        if busy:
            insert_orders(url, size.backlog, "placed")
            app.start()
            wait_until("the worker is busy", done.any.is_set)
        try:
            with start_process("benchmarks.bare", "insert", url, "visits", size.beside_s, PAUSE_S) as other:
                read_line(other)
                told = read_json_line(other)
            if busy:
                _require_work_left(url)
        finally:
            app.stop()
        with open_driver(url) as driver:
            if driver.fetch_number("SELECT count(*) FROM visits") != len(told["rows"]):
                raise NotDone("what the other process wrote is not all there")
    return [(committed - begun) * 1000 for _, begun, committed in told["rows"]], len(told["errors"])


def _require_work_left(url: str) -> None:
    with open_driver(url) as driver:
        if driver.fetch_number("SELECT count(*) FROM orders WHERE status IN ('placed', 'paid', 'packed')") == 0:
            raise NotDone("the worker had nothing left to do before the other process ended: give it a larger backlog")
