"""D: a million timers. All due at once: timers a second. None due yet: start, memory, idling, and a look for the next, beside none."""

from __future__ import annotations

import time
from functools import partial
from types import SimpleNamespace

from benchmarks.harness import (
    Place,
    Row,
    Size,
    alternate,
    carry_out_all,
    cpu_s,
    driver_on,
    expect,
    fill_timers,
    line_of,
    process,
    timers_done,
    told_by,
)
from benchmarks.shop import add_indexes, reminding_app, set_up
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch.due_timers import AT_ONCE, HORIZON
from groundstate.store import connect

STORES: tuple[str, ...] = ("sqlite", "postgres")
BATCH = 500
ROUNDS_MOST = 3  # each fills a database anew
LOOKS = 200
FAR_S = 30 * 86_400.0
RESTS_S = 2.0


def run(place: Place, size: Size) -> list[Row]:
    """Beside the driver where they are due, beside an empty table where they are not."""
    return [_due(place, size), *_future(place, size)]


# ---- due at once ---------------------------------------------------------------------------------------------------------------
def _due(place: Place, size: Size) -> Row:
    def on(contender: str) -> float:
        with place.database() as url:
            app = reminding_app(url)
            set_up(app)
            fill_timers(url, size.timers, time.time() - 60)
            add_indexes(app)
            seconds = carry_out_all(app) if contender == "ours" else bare(url)
            expect(f"timers carried out by {contender}", timers_done(url), size.timers)
            return size.timers / seconds

    found = alternate(min(size.rounds, ROUNDS_MOST), {name: partial(on, name) for name in ("ours", "bare")})
    beside = {"driver, one UPDATE a batch": found["bare"]}
    return Row("D", place.name, f"{size.timers:,} timers due at once", "timers/s", found["ours"], size.timers, beside)


def bare(url: str) -> float:
    """Batches of 500 in the order of their time: locked and read, a handler for each row, one UPDATE, a commit."""
    with driver_on(url) as driver:
        started = time.perf_counter()
        clock = "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')" if driver.embedded else "now()"
        ready = f"SELECT id, due_at, {clock} FROM timers WHERE done_at IS NULL AND due_at <= {clock}"
        order = f"ORDER BY due_at, id LIMIT {BATCH}{driver.locks}"
        rows = driver.execute(f"{ready} {order}").fetchall()
        while rows:
            with driver.transaction():
                timers = [SimpleNamespace(id=number, due_at=due, done_at=None) for number, due, _ in rows]
                for timer in timers:
                    timer.done_at = rows[0][2]
                driver.execute(
                    f"UPDATE timers SET done_at = ? WHERE id {driver.among}", rows[0][2], driver.many([one.id for one in timers])
                )
                rows = driver.execute(f"{ready} AND (due_at, id) > (?, ?) {order}", rows[-1][1], rows[-1][0]).fetchall()
        return time.perf_counter() - started


# ---- due in a month ------------------------------------------------------------------------------------------------------------
def _future(place: Place, size: Size) -> list[Row]:
    empty, full = _resting(place, size, 0), _resting(place, size, size.timers)
    of = f"{size.timers:,} due in a month"
    rows = [
        Row("D", place.name, f"{of}: {figure}", unit, full[name], size.timers, {"empty table": empty[name]})
        for name, figure, unit in (
            ("first_s", "start until the one that is due", "s"),
            ("memory_mb", "memory then", "MB"),
            ("idle", "idle worker", "% of a core"),
        )
    ]
    beside = {"driver": full["bare_look_ms"], "empty table": empty["look_ms"]}
    return [*rows, Row("D", place.name, f"{of}: a look for the next", "ms", full["look_ms"], size.timers, beside)]


def _resting(place: Place, size: Size, count: int) -> dict[str, float]:
    with place.database() as url:
        app = reminding_app(url)
        set_up(app)
        if count:
            fill_timers(url, count, time.time() + FAR_S, 0.001, first=2)
        add_indexes(app)
        fill_timers(url, 1, time.time() - 60)
        started = time.monotonic()
        with process("benchmarks.worker", "timers", 1, url) as worker:
            line_of(worker)
            told = told_by(worker)
            time.sleep(min(RESTS_S, size.idle_s))
            before, since = cpu_s(worker.pid), time.monotonic()
            time.sleep(size.idle_s)
            idle = (cpu_s(worker.pid) - before) / (time.monotonic() - since) * 100
        expect("timers carried out", timers_done(url), 1)
        look_ms, bare_look_ms = _look_ms(url), _bare_look_ms(url)
    first_s = told["first"] - started
    return {"first_s": first_s, "memory_mb": told["memory_mb"], "idle": idle, "look_ms": look_ms, "bare_look_ms": bare_look_ms}


def _look_ms(url: str) -> float:
    """What a worker asks when it wants to know until when it may sleep, its transaction included."""
    database, *_ = connect.open_store(reminding_app(url).stores[0].settings())
    [spec] = reminding_app(url).reactions.values()
    try:
        database.connect()
        statement = ConditionQuery(spec, database).next_due(HORIZON, AT_ONCE)
        started = time.perf_counter()
        for _ in range(LOOKS):
            with database.reading() as connection:
                connection.execute(statement).all()
        return (time.perf_counter() - started) * 1000 / LOOKS
    finally:
        database.close()


def _bare_look_ms(url: str) -> float:
    with driver_on(url) as driver:
        clock = "strftime('%Y-%m-%d %H:%M:%f', 'now')" if driver.embedded else "now()"
        statement = f"SELECT due_at FROM timers WHERE done_at IS NULL AND due_at > {clock} ORDER BY due_at LIMIT 1"
        started = time.perf_counter()
        for _ in range(LOOKS):
            driver.execute(statement).fetchall()
        return (time.perf_counter() - started) * 1000 / LOOKS
