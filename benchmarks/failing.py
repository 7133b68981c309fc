"""K: many orders that failed and wait for their next try stand before those that can be carried out (hazard 27). Orders a second."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import insert

from benchmarks.harness import Place, Row, Size, alternate, attempts_left, carry_out_all, engine_on, expect, fill, with_status
from benchmarks.shop import add_indexes, packing_app, set_up
from groundstate.store.tables import attempt

STORES: tuple[str, ...] = ("sqlite", "postgres")


def run(place: Place, size: Size) -> list[Row]:
    """Beside the same orders with none before them."""
    found = alternate(
        size.rounds, {"behind": lambda: _orders_a_second(place, size, size.failed), "none": lambda: _orders_a_second(place, size, 0)}
    )
    figure = f"orders behind {size.failed:,} that failed"
    return [Row("K", place.name, figure, "orders/s", found["behind"], size.orders, {"none failed": found["none"]})]


def _orders_a_second(place: Place, size: Size, failed: int) -> float:
    with place.database() as url:
        app = packing_app(url)
        set_up(app)
        fill(url, failed + size.orders, "placed")
        write_failures(url, failed)
        add_indexes(app)
        seconds = carry_out_all(app)
        expect("orders packed", with_status(url, "packed"), size.orders)
        expect("failures that wait", attempts_left(url), failed)
        return size.orders / seconds


def write_failures(url: str, count: int) -> None:
    """Failed attempts for the first so many orders, to be tried again tomorrow."""
    now = datetime.now(UTC)
    same = {
        "app": "packing", "reaction": "packed", "occurrence": "", "state": "failed", "worker": 1, "call_no": 0, "unsure": False,
        "since": now, "first_at": now, "deadline": now, "failures": 1, "next_at": now + timedelta(days=1), "error": "ValueError: no",
        "blocks": "orders", "together": 0,
    }  # fmt: skip
    with engine_on(url) as engine:
        with engine.begin() as connection:
            for first in range(1, count + 1, 10_000):
                some = range(first, min(first + 10_000, count + 1))
                connection.execute(insert(attempt), [{**same, "record": str(number), "call": number} for number in some])
        if count and engine.name == "postgresql":
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM ANALYZE groundstate_attempt")
