"""R: a worker process is killed with calls in the air, and another is started: seconds from its start until all is under way.

Under way is an order that was taken, or of which the lookup of its call was asked. With the indexes that `groundstate check` proposes.
On PostgreSQL once more with the server killed together with the worker: then the second life waits before it adopts what may be another's.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.harness import ROOT, NotDone, Place, Row, Size, attempts_left, fill, line_of, process, told_by
from benchmarks.shop import add_indexes, charging_app, set_up

STORES: tuple[str, ...] = ("sqlite", "postgres")
LIMIT = 200
HANGS_S = 3600.0
ROUNDS_MOST = 3  # each fills a database anew


def run(place: Place, size: Size) -> list[Row]:
    """For each number of finished orders."""
    return [row for finished in size.finished for row in _rows(place, size, finished)]


def _rows(place: Place, size: Size, finished: int) -> list[Row]:
    rounds = min(size.rounds, ROUNDS_MOST)
    middle = _middle([_one(place, finished, size.unfinished) for _ in range(rounds)])
    beside = {"import of sqlalchemy.orm": middle["orm"], "driver fetches them": middle["fetch"]}
    of = f"{size.unfinished:,} unfinished of {finished + size.unfinished:,}"
    target = "0.6, of it 0.3 the ORM's import"
    rows = [
        Row("R", place.name, f"{of}: first under way", "s", middle["first"], size.unfinished, beside),
        Row("R", place.name, f"{of}: all under way", "s", middle["all"], size.unfinished, beside, target),
        Row("R", place.name, f"{of}: memory then", "MB", middle["memory_mb"], size.unfinished),
    ]
    if place.has_server:
        together = _middle([_one(place, finished, size.unfinished, server_too=True) for _ in range(rounds)])
        words = f"{of}: all under way, server and workers killed together"
        rows.append(
            Row("R", place.name, words, "s", together["all"], size.unfinished, {"first": together["first"]}, "5 and the row before")
        )
    return rows


def _middle(lives: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(life[name] for life in lives) for name in lives[0]}


def _one(place: Place, finished: int, unfinished: int, *, server_too: bool = False) -> dict[str, float]:
    with place.database() as url:
        return _restarted(place, url, finished, unfinished, server_too=server_too)


def _restarted(place: Place, url: str, finished: int, unfinished: int, *, server_too: bool) -> dict[str, float]:
    limit = min(LIMIT, unfinished)
    app = charging_app(url, limit=limit)
    set_up(app)
    fill(url, finished, "paid")
    fill(url, unfinished, "placed", first=finished + 1)
    add_indexes(app)
    with process("benchmarks.worker", limit, HANGS_S, limit, url) as first_life:
        line_of(first_life)
        told_by(first_life)  # calls hang, and all slots are taken
        if server_too:
            place.kill_server()
        first_life.kill()
        first_life.wait()
    if server_too:
        place.start()
    if attempts_left(url) != limit:
        raise NotDone(f"{attempts_left(url)} of {limit} calls were in the air when it was killed")
    started = time.monotonic()
    with process("benchmarks.worker", limit, 0.002, unfinished, url) as second_life:
        line_of(second_life)
        told = told_by(second_life)
    return {
        "first": told["first"] - started,
        "all": told["all"] - started,
        "memory_mb": told["memory_mb"],
        "orm": _seconds("-c", "import sqlalchemy.orm"),
        "fetch": _seconds("-m", "benchmarks.bare", "fetch", url),
    }


def _seconds(*arguments: str) -> float:
    """Of a whole process."""
    started = time.monotonic()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started
