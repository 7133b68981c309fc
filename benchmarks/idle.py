"""Workload I: the processor time of an idle worker process, in percent of a core."""

from __future__ import annotations

import time

from benchmarks.harness import Place, Row, Size, count_with_status, cpu_seconds, insert_orders, read_line, start_process
from benchmarks.shop import create_charging_app, create_proposed_indexes, create_tables

STORES: tuple[str, ...] = ("sqlite", "postgres")
SETTLES_S = 2.0


def run(place: Place, size: Size) -> list[Row]:
    """Measure it beside a process that at the same time asks one question each second by the bare driver."""
    with place.database() as url:
        app = create_charging_app(url, limit=1)
        create_tables(app)
        insert_orders(url, size.finished[0], "paid")
        create_proposed_indexes(app)
        with start_process("benchmarks.worker", 1, 0, 0, url) as ours, start_process("benchmarks.bare", "ask", url) as bare:
            read_line(ours)
            read_line(bare)
            time.sleep(min(SETTLES_S, size.idle_s))
            before = [cpu_seconds(ours.pid), cpu_seconds(bare.pid)]
            started = time.monotonic()
            time.sleep(size.idle_s)
            passed = time.monotonic() - started
            percent = [
                (now - then) / passed * 100 for now, then in zip([cpu_seconds(ours.pid), cpu_seconds(bare.pid)], before, strict=True)
            ]
        work = count_with_status(url, "paid")
    return [Row("I", place.name, "idle worker", "% of a core", percent[0], work, {"driver asks each second": percent[1]}, "under 1")]
