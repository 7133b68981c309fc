"""Workload B: what groundstate leaves in the database for a finished order. Rows, and bytes for each order."""

from __future__ import annotations

from benchmarks.harness import Place, Row, Size, carry_out_all, count_attempts, count_with_status, insert_orders, open_driver, require_count
from benchmarks.shop import create_charging_app, create_tables

STORES: tuple[str, ...] = ("sqlite", "postgres")
WAVES = 4
TABLES = ("groundstate_attempt", "groundstate_reaction", "groundstate_worker", "groundstate_rate")


def run(place: Place, size: Size) -> list[Row]:
    """Carry out waves of orders with a call, and return what the last wave adds to groundstate's tables.

    The first waves leave free space, which later ones use again.
    """
    count = max(size.calls // 2, 1)
    with place.database() as url:
        app = create_charging_app(url, limit=100)
        create_tables(app)
        sizes = []
        for wave in range(WAVES):
            insert_orders(url, count, "placed", first=1 + wave * count)
            carry_out_all(app)
            require_count("orders paid", count_with_status(url, "paid"), (wave + 1) * count)
            sizes.append(_table_bytes(url))
        rows = count_attempts(url)
    done = WAVES * count
    return [
        Row("B", place.name, "rows of ours, all orders finished", "rows", float(rows), done, {}, "0"),
        Row("B", place.name, "bytes of ours for each further order", "bytes", max(sizes[-1] - sizes[-2], 0) / count, done, {}, "0"),
        Row("B", place.name, "our four tables, however many orders", "kB", sizes[-1] / 1000, done),
    ]


def _table_bytes(url: str) -> int:
    """Return the size of groundstate's tables and their indexes. On SQLite it is the space that becomes free when they are dropped."""
    with open_driver(url) as driver:
        if not driver.embedded:
            for table in TABLES:
                driver.execute(f"VACUUM {table}")
            return sum(driver.fetch_number("SELECT pg_total_relation_size(?::regclass)", table) for table in TABLES)
        free = driver.fetch_number("PRAGMA freelist_count")
        driver.execute("BEGIN IMMEDIATE")
        for table in TABLES:
            driver.execute(f"DROP TABLE {table}")
        pages = driver.fetch_number("PRAGMA freelist_count") - free
        driver.execute("ROLLBACK")
        return pages * driver.fetch_number("PRAGMA page_size")
