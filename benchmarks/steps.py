"""Workload T: orders pass from placed to paid, packed and shipped, in the database only, each step by a Python handler. Steps a second."""

from __future__ import annotations

import time
from functools import partial
from types import SimpleNamespace

from sqlalchemy import select
from sqlalchemy.orm import Session

from benchmarks.harness import (
    Place,
    Row,
    Size,
    carry_out_all,
    count_with_status,
    create_durable_engine,
    insert_orders,
    median_of_rounds,
    open_driver,
    require_count,
)
from benchmarks.shop import STEPS, Order, create_steps_app, create_tables

STORES: tuple[str, ...] = ("sqlite", "postgres")
BATCH = 500
TARGETS = {"sqlite": "25,000", "postgres": "15,000"}


def run(place: Place, size: Size) -> list[Row]:
    """Measure groundstate, the bare driver and a plain ORM loop, each on a new database."""

    def measure_rate(contender: str) -> float:
        with place.database() as url:
            app = create_steps_app(url)
            create_tables(app)
            insert_orders(url, size.orders, "placed")
            seconds = {"ours": lambda: carry_out_all(app), "bare": lambda: run_bare_driver(url), "ORM": lambda: run_plain_orm(url)}[
                contender
            ]()
            require_count(f"orders shipped by {contender}", count_with_status(url, "shipped"), size.orders)
            return len(STEPS) * size.orders / seconds

    found = median_of_rounds(size.rounds, {name: partial(measure_rate, name) for name in ("ours", "bare", "ORM")})
    ours = found.pop("ours")
    beside = {"driver, one UPDATE a batch": found["bare"], "ORM loop": found["ORM"]}
    return [Row("T", place.name, "3-step orders", "steps/s", ours, size.orders * len(STEPS), beside, TARGETS[place.name])]


def run_bare_driver(url: str) -> float:
    """Carry out the orders by the bare driver in batches of 500: SELECT FOR UPDATE, a handler for each row, one UPDATE, a commit."""
    with open_driver(url) as driver:
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
                        changed = driver.bind_many([order.id for order in orders])
                        driver.execute(f"UPDATE orders SET status = ? WHERE id {driver.among}", orders[0].status, changed)
        return time.perf_counter() - started


def run_plain_orm(url: str) -> float:
    """Carry out the orders by a plain ORM loop in batches of 500: load, a handler for each record, flush, commit."""
    with create_durable_engine(url) as engine:
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
