"""P: how late timers are, from the due time to the commit of what was done, so many a second, and where they were moved. Milliseconds."""

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
    driver_on,
    expect,
    fill_timers,
    percentile,
    timers_done,
    wait_until,
)
from benchmarks.shop import Timer, add_indexes, reminding_app, set_up

STORES: tuple[str, ...] = ("sqlite", "postgres")
LEAST = 20
FILLING_S = 0.00002  # for each
TOMORROW_S = 86_400.0
EACH_S = 0.05
POLL_S = 0.01
SHARES = (("median", 0.5), ("p99", 0.99))
TARGETS = {"median": "50", "p99": ""}


def run(place: Place, size: Size) -> list[Row]:
    """Ours, and a loop that looks each 10 ms by the bare driver."""
    rows: list[Row] = []
    for rate in size.rates:
        count = max(int(rate * size.rate_s), LEAST)
        cases = {
            name: contender(place, partial(_at_a_rate, rate=rate, count=count, before_s=size.written_before_s))
            for name, contender in CONTENDERS.items()
        }
        rows += _rows(place, f"{rate:,} a second", cases)
    count = max(int(size.rate_s / EACH_S / 2), LEAST)
    cases = {name: contender(place, partial(_moved, count=count, before_s=size.written_before_s)) for name, contender in CONTENDERS.items()}
    return rows + _rows(place, "moved", cases)


def _rows(place: Place, what: str, late_ms: dict[str, list[float]]) -> list[Row]:
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


def _at_a_rate(url: str, *, rate: int, count: int, before_s: float) -> dict[int, float]:
    """Written by another connection; the time of each."""
    due = time.time() + before_s + count * FILLING_S
    fill_timers(url, count, due, 1 / rate)
    if time.time() > due - before_s / 2:
        raise NotDone(f"{count:,} timers were not written {before_s / 2:g} s before the first of them was due")
    return _dues(url)


def _moved(url: str, *, count: int, before_s: float) -> dict[int, float]:
    """All were due tomorrow; one after the other is moved to soon. As many more were due soon, and are moved to tomorrow."""
    fill_timers(url, count, time.time() + TOMORROW_S)
    fill_timers(url, count, time.time() + before_s + count * EACH_S, first=count + 1)
    with driver_on(url) as driver:
        for number in range(1, count + 1):
            for moved, due in ((number, time.time() + before_s), (count + number, time.time() + TOMORROW_S)):
                at = f"strftime('%Y-%m-%d %H:%M:%f', {due!r}, 'unixepoch') || '000'" if driver.embedded else f"to_timestamp({due!r})"
                driver.execute(f"UPDATE timers SET due_at = {at} WHERE id = ?", moved)
            time.sleep(EACH_S)
    dues = _dues(url)
    return {number: dues[number] for number in range(1, count + 1)}


def _dues(url: str) -> dict[int, float]:
    """In seconds since 1970, as the database has them."""
    with driver_on(url) as driver:
        epoch = "(julianday(due_at) - 2440587.5) * 86400.0" if driver.embedded else "extract(epoch FROM due_at)::float8"
        # A julian day has not the digits for a millisecond's tenth: SQLite's times are whole milliseconds.
        return {number: round(due, 3) if driver.embedded else due for number, due in driver.execute(f"SELECT id, {epoch} FROM timers")}


# ---- who does it ---------------------------------------------------------------------------------------------------------------
def ours(place: Place, plan: Plan) -> list[float]:
    """A worker that is up, and is told of none of them."""
    done = CarriedOut(Timer)
    with place.database() as url, done.listening():
        app = reminding_app(url)
        set_up(app)
        add_indexes(app)
        app.start()
        try:
            return _late_ms(url, plan(url), done.at)
        finally:
            app.stop()


def bare(place: Place, plan: Plan) -> list[float]:
    """A thread that looks each 10 ms."""
    stop = threading.Event()
    with place.database() as url, driver_on(url) as driver:
        app = reminding_app(url)
        set_up(app)
        add_indexes(app)
        done: dict[int, float] = {}
        thread = threading.Thread(target=_poll, args=(driver, done, stop))
        thread.start()
        try:
            return _late_ms(url, plan(url), done)
        finally:
            stop.set()
            thread.join()


CONTENDERS: dict[str, Callable[[Place, Plan], list[float]]] = {"ours": ours, "bare": bare}


def _poll(driver: Driver, done: dict[int, float], stop: threading.Event) -> None:
    clock = "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')" if driver.embedded else "now()"
    ready = f"SELECT id FROM timers WHERE done_at IS NULL AND due_at <= {clock} ORDER BY due_at, id LIMIT 500"
    while not stop.is_set():
        if not driver.execute(ready).fetchall():
            time.sleep(POLL_S)
            continue
        with driver.transaction():
            found = [number for (number,) in driver.execute(f"{ready}{driver.locks}").fetchall()]
            driver.execute(f"UPDATE timers SET done_at = {clock} WHERE id {driver.among}", driver.many(found))
        now = time.monotonic()
        done.update(dict.fromkeys(found, now))


def _late_ms(url: str, dues: dict[int, float], done: dict[int, float]) -> list[float]:
    """Waits until all are carried out. On a slow machine so are some that are due soon, before they are moved to tomorrow."""
    last = max(dues.values())
    wait_until("all timers are carried out", lambda: done.keys() >= dues.keys(), max(last - time.time(), 0) + 60)
    expect("timers carried out", timers_done(url, last=max(dues)), len(dues))
    ahead = time.time() - time.monotonic()
    return [(done[number] + ahead - due) * 1000 for number, due in dues.items()]
