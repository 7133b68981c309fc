"""Workload D: a million timers. Where all are due at once: timers a second. Where none is due: start, memory, idle load, and the query for
the next due time, each beside an empty table.
"""

from __future__ import annotations

import time
from functools import partial
from types import SimpleNamespace

from benchmarks.harness import (
    Place,
    Row,
    Size,
    carry_out_all,
    count_done_timers,
    cpu_seconds,
    insert_timers,
    median_of_rounds,
    open_driver,
    read_json_line,
    read_line,
    require_count,
    start_process,
)
from benchmarks.shop import create_proposed_indexes, create_reminding_app, create_tables
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch.due_timers import AT_ONCE, HORIZON
from groundstate.store import connect

STORES: tuple[str, ...] = ("sqlite", "postgres")
BATCH = 500
ROUNDS_MOST = 3  # rounds at most, since each fills a new database
LOOKS = 200
FAR_S = 30 * 86_400.0
RESTS_S = 2.0


def run(place: Place, size: Size) -> list[Row]:
    """Measure due timers beside the bare driver, and future timers beside an empty table."""
    return [_measure_due_timers(place, size), *_measure_future_timers(place, size)]


# ---- due at once ---------------------------------------------------------------------------------------------------------------
def _measure_due_timers(place: Place, size: Size) -> Row:
    def measure_rate(contender: str) -> float:
        with place.database() as url:
            app = create_reminding_app(url)
            create_tables(app)
            insert_timers(url, size.timers, time.time() - 60)
            create_proposed_indexes(app)
            seconds = carry_out_all(app) if contender == "ours" else run_bare_driver(url)
            require_count(f"timers carried out by {contender}", count_done_timers(url), size.timers)
            return size.timers / seconds

    found = median_of_rounds(min(size.rounds, ROUNDS_MOST), {name: partial(measure_rate, name) for name in ("ours", "bare")})
    beside = {"driver, one UPDATE a batch": found["bare"]}
    return Row("D", place.name, f"{size.timers:,} timers due at once", "timers/s", found["ours"], size.timers, beside)


def run_bare_driver(url: str) -> float:
    """Carry out due timers by the bare driver, and return the seconds.

    It works in batches of 500 in the order of their time: SELECT FOR UPDATE, a handler for each row, one UPDATE, a commit.
    """
    with open_driver(url) as driver:
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
                    f"UPDATE timers SET done_at = ? WHERE id {driver.among}", rows[0][2], driver.bind_many([one.id for one in timers])
                )
                rows = driver.execute(f"{ready} AND (due_at, id) > (?, ?) {order}", rows[-1][1], rows[-1][0]).fetchall()
        return time.perf_counter() - started


# ---- due in a month ------------------------------------------------------------------------------------------------------------
def _measure_future_timers(place: Place, size: Size) -> list[Row]:
    empty, full = _measure_resting_worker(place, size, 0), _measure_resting_worker(place, size, size.timers)
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


def _measure_resting_worker(place: Place, size: Size, count: int) -> dict[str, float]:
    with place.database() as url:
        app = create_reminding_app(url)
        create_tables(app)
        if count:
            insert_timers(url, count, time.time() + FAR_S, 0.001, first=2)
        create_proposed_indexes(app)
        insert_timers(url, 1, time.time() - 60)
        started = time.monotonic()
        with start_process("benchmarks.worker", "timers", 1, url) as worker:
            read_line(worker)
            told = read_json_line(worker)
            time.sleep(min(RESTS_S, size.idle_s))
            before, since = cpu_seconds(worker.pid), time.monotonic()
            time.sleep(size.idle_s)
            idle = (cpu_seconds(worker.pid) - before) / (time.monotonic() - since) * 100
        require_count("timers carried out", count_done_timers(url), 1)
        look_ms, bare_look_ms = _measure_next_due_query_ms(url), _measure_bare_query_ms(url)
    first_s = told["first"] - started
    return {"first_s": first_s, "memory_mb": told["memory_mb"], "idle": idle, "look_ms": look_ms, "bare_look_ms": bare_look_ms}


def _measure_next_due_query_ms(url: str) -> float:
    """Return the milliseconds in which a worker finds out until when it may sleep, including the transaction."""
    database, *_ = connect.open_store(create_reminding_app(url).stores[0].settings())
    [spec] = create_reminding_app(url).reactions.values()
    try:
        database.connect()
        statement = ConditionQuery(spec, database).selects.select_next_base_times(HORIZON, AT_ONCE)
        started = time.perf_counter()
        for _ in range(LOOKS):
            with database.reading() as connection:
                connection.execute(statement).all()
        return (time.perf_counter() - started) * 1000 / LOOKS
    finally:
        database.close()


def _measure_bare_query_ms(url: str) -> float:
    with open_driver(url) as driver:
        clock = "strftime('%Y-%m-%d %H:%M:%f', 'now')" if driver.embedded else "now()"
        statement = f"SELECT due_at FROM timers WHERE done_at IS NULL AND due_at > {clock} ORDER BY due_at LIMIT 1"
        started = time.perf_counter()
        for _ in range(LOOKS):
            driver.execute(statement).fetchall()
        return (time.perf_counter() - started) * 1000 / LOOKS
