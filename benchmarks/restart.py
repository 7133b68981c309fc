"""Workload R: a worker process is killed with calls in flight and another one started: the seconds from its start until all is under way.

An order is under way when it was carried out or its call was looked up. The indexes exist that `groundstate check` proposes. A second case
on PostgreSQL kills the server together with the worker; then the new worker waits before it adopts attempts that may be a living worker's.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.harness import ROOT, NotDone, Place, Row, Size, count_attempts, insert_orders, read_json_line, read_line, start_process
from benchmarks.shop import create_charging_app, create_proposed_indexes, create_tables

STORES: tuple[str, ...] = ("sqlite", "postgres")
LIMIT = 200
HANGS_S = 3600.0
ROUNDS_MOST = 3  # rounds at most, since each fills a new database


def run(place: Place, size: Size) -> list[Row]:
    """Measure the restart for each number of finished orders."""
    return [row for finished in size.finished for row in _measure_rows(place, size, finished)]


def _measure_rows(place: Place, size: Size, finished: int) -> list[Row]:
    rounds = min(size.rounds, ROUNDS_MOST)
    middle = _median_of_each([_measure_restart(place, finished, size.unfinished) for _ in range(rounds)])
    beside = {"import of sqlalchemy.orm": middle["orm"], "driver fetches them": middle["fetch"]}
    of = f"{size.unfinished:,} unfinished of {finished + size.unfinished:,}"
    target = "0.6, of it 0.3 the ORM's import"
    rows = [
        Row("R", place.name, f"{of}: first under way", "s", middle["first"], size.unfinished, beside),
        Row("R", place.name, f"{of}: all under way", "s", middle["all"], size.unfinished, beside, target),
        Row("R", place.name, f"{of}: memory then", "MB", middle["memory_mb"], size.unfinished),
    ]
    if place.has_server:
        together = _median_of_each([_measure_restart(place, finished, size.unfinished, server_too=True) for _ in range(rounds)])
        words = f"{of}: all under way, server and workers killed together"
        rows.append(
            Row("R", place.name, words, "s", together["all"], size.unfinished, {"first": together["first"]}, "5 and the row before")
        )
    return rows


def _median_of_each(lives: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(life[name] for life in lives) for name in lives[0]}


def _measure_restart(place: Place, finished: int, unfinished: int, *, server_too: bool = False) -> dict[str, float]:
    with place.database() as url:
        return _restart_and_measure(place, url, finished, unfinished, server_too=server_too)


def _restart_and_measure(place: Place, url: str, finished: int, unfinished: int, *, server_too: bool) -> dict[str, float]:
    limit = min(LIMIT, unfinished)
    app = create_charging_app(url, limit=limit)
    create_tables(app)
    insert_orders(url, finished, "paid")
    insert_orders(url, unfinished, "placed", first=finished + 1)
    create_proposed_indexes(app)
    with start_process("benchmarks.worker", limit, HANGS_S, limit, url) as first_life:
        read_line(first_life)
        read_json_line(first_life)  # now the calls hang, and all slots are taken
        if server_too:
            place.kill_server()
        first_life.kill()
        first_life.wait()
    if server_too:
        place.start()
    if count_attempts(url) != limit:
        raise NotDone(f"{count_attempts(url)} of {limit} calls were in the air when it was killed")
    started = time.monotonic()
    with start_process("benchmarks.worker", limit, 0.002, unfinished, url) as second_life:
        read_line(second_life)
        told = read_json_line(second_life)
    return {
        "first": told["first"] - started,
        "all": told["all"] - started,
        "memory_mb": told["memory_mb"],
        "orm": _run_timed("-c", "import sqlalchemy.orm"),
        "fetch": _run_timed("-m", "benchmarks.bare", "fetch", url),
    }


def _run_timed(*arguments: str) -> float:
    """Of a whole process."""
    started = time.monotonic()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started
