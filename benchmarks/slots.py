"""Q: calls of 30 ms where four slots, or a rate for each tenant, are all there is: calls a second by the tenants and the workers.

As a program: `python -m benchmarks.slots per|whole slots|rates URL`: a worker. Says `up`, and works until it is killed.
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

from benchmarks.harness import Place, Row, Size, driver_on, line_of, process, wait_until
from benchmarks.shop import add_indexes, set_up
from groundstate import App, ExternalService, InDoubt, Rate, Store

STORES: tuple[str, ...] = ("sqlite", "postgres")
SLOTS, CALL_S = 4, 0.03
RATE, RATED = 20, 8  # calls a second of each tenant, of so many
WORKERS = (1, 4)


@dataclass(frozen=True)
class Bound:
    """What bounds the calls: so many a second are allowed, of which so many are made before it is measured."""

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
    """The table of this workload."""


class Notice(Base):
    """What a tenant's endpoint is to be told."""

    __tablename__ = "notices"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[int]
    status: Mapped[str] = mapped_column(default="new")


def run(place: Place, size: Size) -> list[Row]:
    """Calls a second with `per`, beside the same without it and what the limit or the rates allow."""
    rows: list[Row] = []
    for workers in [count for count in WORKERS if count in size.workers]:
        for bound in BOUNDS:
            calls = max(round(bound.allowed * size.beside_s), bound.at_first)
            whole = _calls_a_second(place, bound, "whole", workers, 1, calls)
            for tenants in bound.tenants or size.tenants:
                ours = _calls_a_second(place, bound, "per", workers, tenants, calls)
                figure = f"{bound.words}, {tenants:,} tenants, {'1 worker' if workers == 1 else f'{workers} workers'}"
                beside = {"without per": whole, "allowed": bound.allowed}
                rows.append(Row("Q", place.name, figure, "calls/s", ours, calls, beside, "0.9"))
    return rows


def notices_app(url: str, kind: str, bound: str) -> App:
    """A call for each notice, by tenants or not, bound by slots or by rates."""
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


def _calls_a_second(place: Place, bound: Bound, kind: str, workers: int, tenants: int, calls: int) -> float:
    with place.database() as url, ExitStack() as stack:
        app = notices_app(url, kind, bound.name)
        set_up(app)
        add_indexes(app)
        for one in [stack.enter_context(process("benchmarks.slots", kind, bound.name, url)) for _ in range(workers)]:
            line_of(one)
        _fill(url, 2 * (bound.at_first + calls), tenants)
        wait_until("the first calls are made", lambda: _delivered(url) >= bound.at_first)
        before, started = _delivered(url), time.perf_counter()
        wait_until("the others are made", lambda: _delivered(url) >= before + calls)
        return (_delivered(url) - before) / (time.perf_counter() - started)


def _delivered(url: str) -> int:
    with driver_on(url) as driver:
        return driver.number("SELECT count(*) FROM notices WHERE status = ?", "delivered")


def _fill(url: str, count: int, tenants: int) -> None:
    """By the driver: no worker hears of it."""
    with driver_on(url) as driver:
        numbers = (
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
            if driver.embedded
            else f"WITH n AS (SELECT i FROM generate_series(1, {count}) AS i)"
        )
        driver.execute(f"INSERT INTO notices (id, tenant, status) {numbers} SELECT i, i - {tenants} * (i / {tenants}), 'new' FROM n")
        if not driver.embedded:
            driver.execute("VACUUM ANALYZE notices")


def _main(kind: str, bound: str, url: str) -> None:
    app = notices_app(url, kind, bound)
    app.start()
    print("up", flush=True)
    while app.failure is None:
        time.sleep(60)


if __name__ == "__main__":
    _main(*sys.argv[1:])
