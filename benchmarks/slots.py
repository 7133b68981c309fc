"""Workload Q: calls of 30 ms under a limit of four slots, or a rate for each tenant: calls a second, by numbers of tenants and workers.

As a program, `python -m benchmarks.slots per|whole slots|rates URL`, it is a worker. It prints `up`, and works until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.harness import Place, Row, Size, open_driver, read_line, start_process, wait_until
from benchmarks.shop import create_proposed_indexes, create_tables
from groundstate import App, ExternalService, InDoubt, Rate, Store

STORES: tuple[str, ...] = ("sqlite", "postgres")
SLOTS, CALL_S = 4, 0.03
RATE, RATED = 20, 8  # calls a second for each tenant; number of tenants
WORKERS = (1, 4)


@dataclass(frozen=True)
class Bound:
    """What limits the calls. allowed: calls a second that the limit allows. at_first: calls that are made before the measurement."""

    name: str
    words: str
    allowed: float
    at_first: int
    tenants: tuple[int, ...] = ()


BOUNDS = (
    Bound("slots", f"calls of {CALL_S * 1000:g} ms, {SLOTS} slots", SLOTS / CALL_S, SLOTS),
    Bound("rates", f"{RATE} calls a second for each", RATE * RATED, RATE * RATED, (RATED,)),
)


class Base(DeclarativeBase):
    """The declarative base of this workload's table."""


class Notice(Base):
    """A notice for the endpoint of a tenant."""

    __tablename__ = "notices"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[int]
    status: Mapped[str] = mapped_column(default="new")


def run(place: Place, size: Size) -> list[Row]:
    """Measure the calls with `per`, beside the same calls without it and beside the rate that the limit allows."""
    rows: list[Row] = []
    for workers in [count for count in WORKERS if count in size.workers]:
        for bound in BOUNDS:
            calls = max(round(bound.allowed * size.beside_s), bound.at_first)
            whole = _measure_calls_a_second(place, bound, "whole", workers, 1, calls)
            for tenants in bound.tenants or size.tenants:
                ours = _measure_calls_a_second(place, bound, "per", workers, tenants, calls)
                figure = f"{bound.words}, {tenants:,} tenants, {'1 worker' if workers == 1 else f'{workers} workers'}"
                beside = {"without per": whole, "allowed": bound.allowed}
                rows.append(Row("Q", place.name, figure, "calls/s", ours, calls, beside, "0.9"))
    return rows


def create_notices_app(url: str, kind: str, bound: str) -> App:
    """Return an app with a call for each notice, with or without `per` tenant, limited by slots or by rates."""
    app = App("notices", Store(url, Base))
    second = timedelta(seconds=1)
    limits: dict[str, Any] = {
        "slots": {"limit": SLOTS},
        "rates": {"rate_per": Rate(RATE, second)} if kind == "per" else {"rate": Rate(RATE * RATED, second)},
    }
    endpoints = ExternalService("endpoints", **limits[bound])

    @endpoints.call(in_doubt=InDoubt.repeat(), timeout=timedelta(seconds=60))
    async def deliver(_notice: Notice) -> str:
        await asyncio.sleep(CALL_S)
        return "200"

    @app.on(Notice, Notice.status == "new", call=deliver, per=Notice.tenant if kind == "per" else None)
    def delivered(notice: Notice, _answer: str) -> None:
        notice.status = "delivered"

    return app


def _measure_calls_a_second(place: Place, bound: Bound, kind: str, workers: int, tenants: int, calls: int) -> float:
    with place.database() as url, ExitStack() as stack:
        app = create_notices_app(url, kind, bound.name)
        create_tables(app)
        create_proposed_indexes(app)
        for one in [stack.enter_context(start_process("benchmarks.slots", kind, bound.name, url)) for _ in range(workers)]:
            read_line(one)
        _insert_notices(url, 2 * (bound.at_first + calls), tenants)
        wait_until("the first calls are made", lambda: _count_delivered(url) >= bound.at_first)
        before, started = _count_delivered(url), time.perf_counter()
        wait_until("the others are made", lambda: _count_delivered(url) >= before + calls)
        return (_count_delivered(url) - before) / (time.perf_counter() - started)


def _count_delivered(url: str) -> int:
    with open_driver(url) as driver:
        return driver.fetch_number("SELECT count(*) FROM notices WHERE status = ?", "delivered")


def _insert_notices(url: str, count: int, tenants: int) -> None:
    """Insert the notices by the bare driver, so that no hint is sent."""
    with open_driver(url) as driver:
        numbers = (
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
            if driver.embedded
            else f"WITH n AS (SELECT i FROM generate_series(1, {count}) AS i)"
        )
        driver.execute(f"INSERT INTO notices (id, tenant, status) {numbers} SELECT i, i - {tenants} * (i / {tenants}), 'new' FROM n")
        if not driver.embedded:
            driver.execute("VACUUM ANALYZE notices")


def _main(kind: str, bound: str, url: str) -> None:
    app = create_notices_app(url, kind, bound)
    app.start()
    print("up", flush=True)
    while app.failure is None:
        time.sleep(60)


if __name__ == "__main__":
    _main(*sys.argv[1:])
