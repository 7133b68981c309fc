"""T: orders pass placed, paid, packed, shipped, in the database alone; each step a handler in Python. Steps a second."""

from __future__ import annotations

import time
from functools import partial
from types import SimpleNamespace

from sqlalchemy import select
from sqlalchemy.orm import Session

from benchmarks.harness import Place, Row, Size, alternate, carry_out_all, driver_on, engine_on, expect, fill, with_status
from benchmarks.shop import STEPS, Order, set_up, steps_app

STORES: tuple[str, ...] = ("sqlite", "postgres")
BATCH = 500
TARGETS = {"sqlite": "25,000", "postgres": "15,000"}


def run(place: Place, size: Size) -> list[Row]:
    """Ours, the bare driver and a plain ORM loop, each on a fresh database."""

    def on(contender: str) -> float:
        with place.database() as url:
            app = steps_app(url)
            set_up(app)
            fill(url, size.orders, "placed")
            seconds = {"ours": lambda: carry_out_all(app), "bare": lambda: bare(url), "ORM": lambda: orm(url)}[contender]()
            expect(f"orders shipped by {contender}", with_status(url, "shipped"), size.orders)
            return len(STEPS) * size.orders / seconds

    found = alternate(size.rounds, {name: partial(on, name) for name in ("ours", "bare", "ORM")})
    ours = found.pop("ours")
    beside = {"driver, one UPDATE a batch": found["bare"], "ORM loop": found["ORM"]}
    return [Row("T", place.name, "3-step orders", "steps/s", ours, size.orders * len(STEPS), beside, TARGETS[place.name])]


def bare(url: str) -> float:
    """Batches of 500: locked and read, a handler for each row, one UPDATE, a commit."""
    with driver_on(url) as driver:
        started = time.perf_counter()
        read = f"SELECT id, status FROM orders WHERE status = ? AND id > ? ORDER BY id LIMIT {BATCH}{driver.locks}"
        for before in STEPS:
            last, rows = 0, [(0, before)]
            while rows:
                with driver.transaction():
                    rows = driver.execute(read, before, last).fetchall()
                    orders = [SimpleNamespace(id=number, status=status) for number, status in rows]
                    for order in orders:
                        _handler(order)
                    if orders:
                        last = orders[-1].id
                        changed = driver.many([order.id for order in orders])
                        driver.execute(f"UPDATE orders SET status = ? WHERE id {driver.among}", orders[0].status, changed)
        return time.perf_counter() - started


def orm(url: str) -> float:
    """Batches of 500: loaded, a handler for each record, the unit of work, a commit."""
    with engine_on(url) as engine:
        started = time.perf_counter()
        for before in STEPS:
            last, orders = 0, [Order()]
            while orders:
                with Session(engine) as session:
                    batch = select(Order).where(Order.status == before, Order.id > last).order_by(Order.id).limit(BATCH)
                    orders = list(session.scalars(batch.with_for_update(skip_locked=True, key_share=True)))
                    last = orders[-1].id if orders else last
                    for order in orders:
                        _handler(order)
                    session.commit()
        return time.perf_counter() - started


def _handler(order: Order | SimpleNamespace) -> None:
    order.status = STEPS[order.status]
