"""Workload S: calls while a transaction keeps its snapshot open, so that PostgreSQL cannot remove dead rows. Calls a second."""

from __future__ import annotations

import time

from benchmarks.harness import LONGEST, Place, Row, Size, count_with_status, insert_orders, open_driver, require_count
from benchmarks.shop import create_charging_app, create_proposed_indexes, create_tables
from groundstate import App

STORES: tuple[str, ...] = ("postgres",)


def run(place: Place, size: Size) -> list[Row]:
    """Compare the last quarter of the time with the first, and with the last quarter of a run without the snapshot."""
    (early, late, done), (_, late_without, _) = measure_calls(place, size, snapshot=True), measure_calls(place, size, snapshot=False)
    figure = f"calls beside a snapshot, last quarter of {size.snapshot_s:g} s"
    return [Row("S", place.name, figure, "calls/s", late, done, {"first quarter": early, "no snapshot": late_without})]


def measure_calls(place: Place, size: Size, *, snapshot: bool) -> tuple[float, float, int]:
    """Return the calls a second in the first and in the last quarter, and the number of orders."""
    with place.database() as url, open_driver(url) as other:
        app = create_charging_app(url, limit=100)
        create_tables(app)
        insert_orders(url, 1, "paid")
        create_proposed_indexes(app)
        if snapshot:
            other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            other.execute("SELECT count(*) FROM orders").fetchall()
        app.start()
        try:
            rates = _measure_chunks(app, url, size)
        finally:
            app.stop()
        done = 1 + len(rates) * size.calls
        require_count("orders paid", count_with_status(url, "paid"), done)
    quarter = max(len(rates) // 4, 1)
    return _mean(rates[:quarter]), _mean(rates[-quarter:]), done


def _measure_chunks(app: App, url: str, size: Size) -> list[float]:
    """Carry out one chunk of orders after the other until the time is over, and return the rate of each chunk."""
    rates: list[float] = []
    end = time.monotonic() + size.snapshot_s
    while time.monotonic() < end:
        insert_orders(url, size.calls, "placed", first=2 + len(rates) * size.calls)
        started = time.perf_counter()
        app.run_until_idle(LONGEST)
        rates.append(size.calls / (time.perf_counter() - started))
    return rates


def _mean(rates: list[float]) -> float:
    return len(rates) / sum(1 / rate for rate in rates)
