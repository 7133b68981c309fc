"""Workload F: how soon a new order is carried out and committed while a large backlog is processed. Milliseconds after its own commit."""

from __future__ import annotations

import time
from functools import partial

from sqlalchemy.orm import Session

from benchmarks.harness import (
    CarriedOut,
    CommitClock,
    Place,
    Row,
    Size,
    create_durable_engine,
    insert_orders,
    percentile,
    read_json_line,
    read_line,
    start_process,
    wait_until,
)
from benchmarks.shop import Order, create_packing_app, create_tables

STORES: tuple[str, ...] = ("sqlite", "postgres")
EACH_S = 0.02
FOREIGN_S = 0.1


def run(place: Place, size: Size) -> list[Row]:
    """Measure orders of this process, which send hints, with and without a backlog; on SQLite, also orders of another process."""
    beside, alone = measure_hinted_orders_ms(place, size, size.backlog), measure_hinted_orders_ms(place, size, 0)
    of = f"fresh among {size.backlog:,}"
    rows = [
        Row("F", place.name, f"{of}, median", "ms", percentile(beside, 0.5), len(beside), {"no backlog": percentile(alone, 0.5)}, "50"),
        Row("F", place.name, f"{of}, p99", "ms", percentile(beside, 0.99), len(beside), {"no backlog": percentile(alone, 0.99)}),
    ]
    if place.name == "sqlite":
        told, quiet = measure_foreign_orders_ms(place, size, size.backlog), measure_foreign_orders_ms(place, size, 0)
        of = f"{of}, by another process"
        rows += [
            Row("F", place.name, f"{of}, median", "ms", percentile(told, 0.5), len(told), {"no backlog": percentile(quiet, 0.5)}),
            Row("F", place.name, f"{of}, p99", "ms", percentile(told, 0.99), len(told), {"no backlog": percentile(quiet, 0.99)}),
        ]
    return rows


def measure_hinted_orders_ms(place: Place, size: Size, backlog: int) -> list[float]:
    """Return the latencies of orders that an ordinary session of this process inserts."""
    done = CarriedOut()
    with place.database() as url, create_durable_engine(url) as engine, CommitClock() as clock, done.registered():
        app = create_packing_app(url)
        create_tables(app)
        if backlog:
            insert_orders(url, backlog, "placed")
        app.start()
        try:
            took: list[float] = []
            if backlog:
                done.any.wait(60)
            for _ in range(size.samples):
                with Session(engine) as session:
                    order = Order(status="placed")
                    session.add(order)
                    session.flush()
                    number = order.id
                    session.commit()
                wait_until("a fresh order is carried out", partial(done.at.__contains__, number))
                took.append((done.at[number] - clock.at) * 1000)
                time.sleep(EACH_S)
                if backlog and len(done.at) >= backlog:
                    break  # the backlog is finished
        finally:
            app.stop()
    return took


def measure_foreign_orders_ms(place: Place, size: Size, backlog: int) -> list[float]:
    """Return the latencies of orders that a process without groundstate inserts."""
    done = CarriedOut()
    seconds = min(size.samples * FOREIGN_S, size.beside_s)
    with place.database() as url, done.registered():
        app = create_packing_app(url)
        create_tables(app)
        if backlog:
            insert_orders(url, backlog, "placed")
        app.start()
        try:
            with start_process("benchmarks.bare", "insert", url, "orders", seconds, FOREIGN_S) as other:
                read_line(other)
                rows = read_json_line(other)["rows"]
            numbers = [number for number, _, _ in rows]
            wait_until("all of the other's orders are carried out", lambda: all(number in done.at for number in numbers), 120)
        finally:
            app.stop()
    return [(done.at[number] - committed) * 1000 for number, _, committed in rows]
