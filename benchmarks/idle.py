"""I: the share of a core that a worker process uses while there is nothing to do. Percent."""

from __future__ import annotations

import time

from benchmarks.harness import Place, Row, Size, cpu_s, fill, line_of, process, with_status
from benchmarks.shop import add_indexes, charging_app, set_up

STORES: tuple[str, ...] = ("sqlite", "postgres")
SETTLES_S = 2.0


def run(place: Place, size: Size) -> list[Row]:
    """Beside a process that asks the same question each second by the bare driver, at the same time."""
    with place.database() as url:
        app = charging_app(url, limit=1)
        set_up(app)
        fill(url, size.finished[0], "paid")
        add_indexes(app)
        with process("benchmarks.worker", 1, 0, 0, url) as ours, process("benchmarks.bare", "ask", url) as bare:
            line_of(ours)
            line_of(bare)
            time.sleep(min(SETTLES_S, size.idle_s))
            before = [cpu_s(ours.pid), cpu_s(bare.pid)]
            started = time.monotonic()
            time.sleep(size.idle_s)
            passed = time.monotonic() - started
            percent = [(now - then) / passed * 100 for now, then in zip([cpu_s(ours.pid), cpu_s(bare.pid)], before, strict=True)]
        work = with_status(url, "paid")
    return [Row("I", place.name, "idle worker", "% of a core", percent[0], work, {"driver asks each second": percent[1]}, "under 1")]
