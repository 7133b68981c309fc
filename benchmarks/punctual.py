"""Workload P: the lateness of timers, from the due time to the commit of the handler's work, at several rates and for moved due times.

In milliseconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from benchmarks.bare import Driver
from benchmarks.harness import (
    CarriedOut,
    NotDone,
    Place,
    Row,
    Size,
    count_done_timers,
    insert_timers,
    open_driver,
    percentile,
    require_count,
    wait_until,
)
from benchmarks.shop import Timer, create_proposed_indexes, create_reminding_app, create_tables

STORES: tuple[str, ...] = ("sqlite", "postgres")
LEAST = 20
FILLING_S = 0.00002  # seconds for the insert of one timer
TOMORROW_S = 86_400.0
EACH_S = 0.05
POLL_S = 0.01
SHARES = (("median", 0.5), ("p99", 0.99))
TARGETS = {"median": "50", "p99": ""}


def run(place: Place, size: Size) -> list[Row]:
    """Measure groundstate, and a loop that polls every 10 ms by the bare driver."""
    rows: list[Row] = []
    for rate in size.rates:
        count = max(int(rate * size.rate_s), LEAST)
        cases = {
            name: contender(place, partial(_insert_timers_at_rate, rate=rate, count=count, before_s=size.written_before_s))
            for name, contender in CONTENDERS.items()
        }
        rows += _measure_rows(place, f"{rate:,} a second", cases)
    count = max(int(size.rate_s / EACH_S / 2), LEAST)
    cases = {
        name: contender(place, partial(_move_timers, count=count, before_s=size.written_before_s)) for name, contender in CONTENDERS.items()
    }
    return rows + _measure_rows(place, "moved", cases)


def _measure_rows(place: Place, what: str, late_ms: dict[str, list[float]]) -> list[Row]:
    for name, some in late_ms.items():
        if min(some) < 0:
            raise NotDone(f"{what}, {name}: a timer was carried out {-min(some):.3f} ms before its time")
    ours, bare = late_ms["ours"], late_ms["bare"]
    name = "driver looks each 10 ms"
    return [
        Row("P", place.name, f"late, {what}, {share}", "ms", percentile(ours, of), len(ours), {name: percentile(bare, of)}, TARGETS[share])
        for share, of in SHARES
    ]


# ---- what is due ---------------------------------------------------------------------------------------------------------------
Plan = Callable[[str], dict[int, float]]


def _insert_timers_at_rate(url: str, *, rate: int, count: int, before_s: float) -> dict[int, float]:
    """Insert `count` timers by another connection, due at `rate` a second; return the due time of each."""
    due = time.time() + before_s + count * FILLING_S
    insert_timers(url, count, due, 1 / rate)
    if time.time() > due - before_s / 2:
        raise NotDone(f"{count:,} timers were not written {before_s / 2:g} s before the first of them was due")
    return _read_due_times(url)


def _move_timers(url: str, *, count: int, before_s: float) -> dict[int, float]:
    """Insert timers that are due tomorrow, and move one after the other to a time that is soon; return the due times.

    As many other timers are due soon, and are moved to tomorrow.
    """
    insert_timers(url, count, time.time() + TOMORROW_S)
    insert_timers(url, count, time.time() + before_s + count * EACH_S, first=count + 1)
    with open_driver(url) as driver:
        for number in range(1, count + 1):
            for moved, due in ((number, time.time() + before_s), (count + number, time.time() + TOMORROW_S)):
                at = f"strftime('%Y-%m-%d %H:%M:%f', {due!r}, 'unixepoch') || '000'" if driver.embedded else f"to_timestamp({due!r})"
                driver.execute(f"UPDATE timers SET due_at = {at} WHERE id = ?", moved)
            time.sleep(EACH_S)
    dues = _read_due_times(url)
    return {number: dues[number] for number in range(1, count + 1)}


def _read_due_times(url: str) -> dict[int, float]:
    """Return the due times in the database, as Unix times."""
    with open_driver(url) as driver:
        epoch = "(julianday(due_at) - 2440587.5) * 86400.0" if driver.embedded else "extract(epoch FROM due_at)::float8"
        # A Julian day as a float cannot represent tenths of a millisecond, so SQLite's times are whole milliseconds.
        return {number: round(due, 3) if driver.embedded else due for number, due in driver.execute(f"SELECT id, {epoch} FROM timers")}


# ---- who does it ---------------------------------------------------------------------------------------------------------------
def measure_ours_ms(place: Place, plan: Plan) -> list[float]:
    """Return the lateness by a worker that has started and gets no hint of the timers."""
    done = CarriedOut(Timer)
    with place.database() as url, done.registered():
        app = create_reminding_app(url)
        create_tables(app)
        create_proposed_indexes(app)
        app.start()
        try:
            return _lateness_ms(url, plan(url), done.at)
        finally:
            app.stop()


def run_bare_driver(place: Place, plan: Plan) -> list[float]:
    """Return the lateness by a thread that polls every 10 ms."""
    stop = threading.Event()
    with place.database() as url, open_driver(url) as driver:
        app = create_reminding_app(url)
        create_tables(app)
        create_proposed_indexes(app)
        done: dict[int, float] = {}
        thread = threading.Thread(target=_poll_due_timers, args=(driver, done, stop))
        thread.start()
        try:
            return _lateness_ms(url, plan(url), done)
        finally:
            stop.set()
            thread.join()


CONTENDERS: dict[str, Callable[[Place, Plan], list[float]]] = {"ours": measure_ours_ms, "bare": run_bare_driver}


def _poll_due_timers(driver: Driver, done: dict[int, float], stop: threading.Event) -> None:
    clock = "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')" if driver.embedded else "now()"
    ready = f"SELECT id FROM timers WHERE done_at IS NULL AND due_at <= {clock} ORDER BY due_at, id LIMIT 500"
    while not stop.is_set():
        if not driver.execute(ready).fetchall():
            time.sleep(POLL_S)
            continue
        with driver.transaction():
            found = [number for (number,) in driver.execute(f"{ready}{driver.locks}").fetchall()]
            driver.execute(f"UPDATE timers SET done_at = {clock} WHERE id {driver.among}", driver.bind_many(found))
        now = time.monotonic()
        done.update(dict.fromkeys(found, now))


def _lateness_ms(url: str, dues: dict[int, float], done: dict[int, float]) -> list[float]:
    """Wait until all timers are carried out, and return their lateness.

    On a slow machine some timers are carried out that were due soon, before they are moved to tomorrow; they are left out.
    """
    last = max(dues.values())
    wait_until("all timers are carried out", lambda: done.keys() >= dues.keys(), max(last - time.time(), 0) + 60)
    require_count("timers carried out", count_done_timers(url, last=max(dues)), len(dues))
    ahead = time.time() - time.monotonic()
    return [(done[number] + ahead - due) * 1000 for number, due in dues.items()]
