"""Workload K: many orders that failed and wait for a retry come before those that can be carried out (hazard 27). Orders a second."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import insert

from benchmarks.harness import (
    Place,
    Row,
    Size,
    carry_out_all,
    count_attempts,
    count_with_status,
    create_durable_engine,
    insert_orders,
    median_of_rounds,
    require_count,
)
from benchmarks.shop import create_packing_app, create_proposed_indexes, create_tables
from groundstate.store.tables import attempt

STORES: tuple[str, ...] = ("sqlite", "postgres")


def run(place: Place, size: Size) -> list[Row]:
    """Measure the orders with and without failed ones before them."""
    found = median_of_rounds(
        size.rounds,
        {"behind": lambda: _measure_orders_a_second(place, size, size.failed), "none": lambda: _measure_orders_a_second(place, size, 0)},
    )
    figure = f"orders behind {size.failed:,} that failed"
    return [Row("K", place.name, figure, "orders/s", found["behind"], size.orders, {"none failed": found["none"]})]


def _measure_orders_a_second(place: Place, size: Size, failed: int) -> float:
    with place.database() as url:
        app = create_packing_app(url)
        create_tables(app)
        insert_orders(url, failed + size.orders, "placed")
        insert_failed_attempts(url, failed)
        create_proposed_indexes(app)
        seconds = carry_out_all(app)
        require_count("orders packed", count_with_status(url, "packed"), size.orders)
        require_count("failures that wait", count_attempts(url), failed)
        return size.orders / seconds


def insert_failed_attempts(url: str, count: int) -> None:
    """Insert failed attempts for the first `count` orders, to be retried tomorrow."""
    now = datetime.now(UTC)
    same = {
        "app": "packing", "reaction": "packed", "occurrence": "", "state": "failed", "worker": 1, "call_no": 0, "unsure": False,
        "since": now, "first_at": now, "deadline": now, "failures": 1, "next_at": now + timedelta(days=1), "error": "ValueError: no",
        "blocks": "orders", "together": 0,
    }  # fmt: skip
    with create_durable_engine(url) as engine:
        with engine.begin() as connection:
            for first in range(1, count + 1, 10_000):
                some = range(first, min(first + 10_000, count + 1))
                connection.execute(insert(attempt), [{**same, "record": str(number), "call": number} for number in some])
        if count and engine.name == "postgresql":
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM ANALYZE groundstate_attempt")
