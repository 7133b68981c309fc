"""S: calls beside a transaction that keeps its snapshot open, so that PostgreSQL may remove no dead row. Calls a second, early and late."""

from __future__ import annotations

import time

from benchmarks.harness import LONGEST, Place, Row, Size, driver_on, expect, fill, with_status
from benchmarks.shop import add_indexes, charging_app, set_up
from groundstate import App

STORES: tuple[str, ...] = ("postgres",)


def run(place: Place, size: Size) -> list[Row]:
    """The last quarter of the time, beside the first quarter, and beside the last quarter of a run without the snapshot."""
    (early, late, done), (_, late_without, _) = measure(place, size, snapshot=True), measure(place, size, snapshot=False)
    figure = f"calls beside a snapshot, last quarter of {size.snapshot_s:g} s"
    return [Row("S", place.name, figure, "calls/s", late, done, {"first quarter": early, "no snapshot": late_without})]


def measure(place: Place, size: Size, *, snapshot: bool) -> tuple[float, float, int]:
    """Calls a second in the first quarter and in the last, and how many orders there were."""
    with place.database() as url, driver_on(url) as other:
        app = charging_app(url, limit=100)
        set_up(app)
        fill(url, 1, "paid")
        add_indexes(app)
        if snapshot:
            other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            other.execute("SELECT count(*) FROM orders").fetchall()
        app.start()
        try:
            rates = _chunks(app, url, size)
        finally:
            app.stop()
        done = 1 + len(rates) * size.calls
        expect("orders paid", with_status(url, "paid"), done)
    quarter = max(len(rates) // 4, 1)
    return _mean(rates[:quarter]), _mean(rates[-quarter:]), done


def _chunks(app: App, url: str, size: Size) -> list[float]:
    """The rate of each chunk of orders, one after the other, until the time is over."""
    rates: list[float] = []
    end = time.monotonic() + size.snapshot_s
    while time.monotonic() < end:
        fill(url, size.calls, "placed", first=2 + len(rates) * size.calls)
        started = time.perf_counter()
        app.run_until_idle(LONGEST)
        rates.append(size.calls / (time.perf_counter() - started))
    return rates


def _mean(rates: list[float]) -> float:
    return len(rates) / sum(1 / rate for rate in rates)
