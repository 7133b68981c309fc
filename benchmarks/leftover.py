"""B: what stays of ours in the database for an order that is finished. Rows, and bytes an order."""

from __future__ import annotations

from benchmarks.harness import Place, Row, Size, attempts_left, carry_out_all, driver_on, expect, fill, with_status
from benchmarks.shop import charging_app, set_up

STORES: tuple[str, ...] = ("sqlite", "postgres")
WAVES = 4
TABLES = ("groundstate_attempt", "groundstate_reaction", "groundstate_worker", "groundstate_rate")


def run(place: Place, size: Size) -> list[Row]:
    """After waves of orders with a call each: what the last adds to our tables. The first ones leave room that is used again."""
    count = max(size.calls // 2, 1)
    with place.database() as url:
        app = charging_app(url, limit=100)
        set_up(app)
        sizes = []
        for wave in range(WAVES):
            fill(url, count, "placed", first=1 + wave * count)
            carry_out_all(app)
            expect("orders paid", with_status(url, "paid"), (wave + 1) * count)
            sizes.append(_bytes(url))
        rows = attempts_left(url)
    done = WAVES * count
    return [
        Row("B", place.name, "rows of ours, all orders finished", "rows", float(rows), done, {}, "0"),
        Row("B", place.name, "bytes of ours for each further order", "bytes", max(sizes[-1] - sizes[-2], 0) / count, done, {}, "0"),
        Row("B", place.name, "our four tables, however many orders", "kB", sizes[-1] / 1000, done),
    ]


def _bytes(url: str) -> int:
    """Of our tables and their indexes. SQLite tells it by the pages that are free were they gone."""
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
        driver.execute("ROLLBACK")
        return pages * driver.number("PRAGMA page_size")
