"""B: what stays of ours in the database for an order that is finished. Rows, and bytes an order."""

from __future__ import annotations

from benchmarks.harness import Place, Row, Size, attempts_left, carry_out_all, driver_on, expect, fill, with_status
from benchmarks.shop import charging_app, set_up

STORES: tuple[str, ...] = ("sqlite", "postgres")
TABLES = ("groundstate_attempt", "groundstate_reaction", "groundstate_worker")


def run(place: Place, size: Size) -> list[Row]:
    """After orders with a call each; our tables' size before and after."""
    with place.database() as url:
        app = charging_app(url, limit=100)
        set_up(app)
        before = _bytes(url)
        fill(url, size.calls, "placed")
        carry_out_all(app)
        expect("orders paid", with_status(url, "paid"), size.calls)
        rows, after = attempts_left(url), _bytes(url, drop=True)
    return [
        Row("B", place.name, "rows of ours, all orders finished", "rows", float(rows), size.calls, {}, "0"),
        Row("B", place.name, "bytes of ours for each", "bytes", max(after - before, 0) / size.calls, size.calls, {}, "0"),
    ]


def _bytes(url: str, *, drop: bool = False) -> int:
    """Of our tables and their indexes. SQLite tells it by the pages that are free once they are gone; else they are put back."""
    with driver_on(url) as driver:
        if not driver.embedded:
            for table in TABLES:
                driver.execute(f"VACUUM {table}")
            return sum(driver.number("SELECT pg_total_relation_size(?::regclass)", table) for table in TABLES)
        free = driver.number("PRAGMA freelist_count")
        driver.execute("BEGIN IMMEDIATE")
        for table in TABLES:
            driver.execute(f"DROP TABLE {table}")
        pages = driver.number("PRAGMA freelist_count") - free
        driver.execute("COMMIT" if drop else "ROLLBACK")
        return pages * driver.number("PRAGMA page_size")
