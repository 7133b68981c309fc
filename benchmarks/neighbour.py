"""W: another process writes the same SQLite file all the while, a row and a commit each 5 ms: what a busy worker costs it. Milliseconds."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness import CarriedOut, NotDone, Place, Row, Size, driver_on, fill, line_of, percentile, process, told_by, wait_until
from benchmarks.shop import charging_app, set_up, steps_app
from groundstate import App

STORES: tuple[str, ...] = ("sqlite",)
PAUSE_S = 0.005


def run(place: Place, size: Size) -> list[Row]:
    """Beside a worker that is busy with the database alone, and one that is busy with calls; and alone."""
    return [
        *_rows(place, size, "batches", steps_app),
        *_rows(place, size, "calls", lambda url: charging_app(url, limit=100)),
    ]


def _rows(place: Place, size: Size, kind: str, make: Callable[[str], App]) -> list[Row]:
    alone, _ = _written(place, size, make, busy=False)
    beside, errors = _written(place, size, make, busy=True)
    rows = []
    for name, share in (("median", 0.5), ("p99", 0.99), ("longest", 1.0)):
        reference = {"alone": percentile(alone, share)}
        rows.append(Row("W", place.name, f"other writer beside {kind}, {name}", "ms", percentile(beside, share), len(beside), reference))
    # A percentile of few commits is little more than the longest: how many it came to is a figure of its own.
    commits = {"alone": float(len(alone))}
    rows.append(
        Row("W", place.name, f"other writer beside {kind}, in {size.beside_s:g} s", "commits", float(len(beside)), len(beside), commits)
    )
    rows.append(Row("W", place.name, f"other writer beside {kind}, errors", "errors", float(errors), len(beside), {}, "0"))
    return rows


def _written(place: Place, size: Size, make: Callable[[str], App], *, busy: bool) -> tuple[list[float], int]:
    done = CarriedOut()
    with place.database() as url, done.listening():
        app = make(url)
        set_up(app)
        if busy:
            fill(url, size.backlog, "placed")
            app.start()
            wait_until("the worker is busy", done.any.is_set)
        try:
            with process("benchmarks.bare", "insert", url, "visits", size.beside_s, PAUSE_S) as other:
                line_of(other)
                told = told_by(other)
            if busy:
                _still_busy(url)
        finally:
            app.stop()
        with driver_on(url) as driver:
            if driver.number("SELECT count(*) FROM visits") != len(told["rows"]):
                raise NotDone("what the other process wrote is not all there")
    return [(committed - begun) * 1000 for _, begun, committed in told["rows"]], len(told["errors"])


def _still_busy(url: str) -> None:
    with driver_on(url) as driver:
        if driver.number("SELECT count(*) FROM orders WHERE status IN ('placed', 'paid', 'packed')") == 0:
            raise NotDone("the worker had nothing left to do before the other process ended: give it a larger backlog")
