"""The same schedule twice: with a death in process, and in a forked child by a real SIGKILL. Compares what each leaves; judges nothing.

`python -m tests.testing.killed N [POSTGRES_URL]` prints, as JSON, for every n-th crossing of a small app: the crossing, what stands in
the database and beside it after each, and whether the child was really killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from groundstate.testing import Lab
from groundstate.testing.databases.scratch_sqlite import SqlitePlace
from groundstate.testing.runner import Trial
from groundstate.testing.simulate.crash_plan import Move, Schedule
from groundstate.testing.simulate.db_intercept import DatabasePool
from groundstate.testing.simulate.simulation import Stage
from tests.patience import until
from tests.testing.shops import Order, shop

COLUMNS = {
    "orders": "*",
    "groundstate_attempt": "*",
    # Not the number of the transaction, nor the process's id, which are others in each.
    "groundstate_reaction": "app, name, key_name, condition, suspect, seen_at, mark, begins",
    "groundstate_worker": "id, app, host, began_at, begins, ended_at",
}


class Left(Exception):
    """The death has happened, and nothing is started again."""


@contextmanager
def no_restart() -> Iterator[None]:
    """While the block runs, a run ends with its first death."""
    start = Stage._start_process

    def once(stage: Stage) -> None:
        if stage.processes:
            raise Left
        start(stage)

    with mock.patch.object(Stage, "_start_process", once):
        yield


def left(lab: Lab) -> Any:
    """What stands in the database and beside it."""
    place: Any = lab._places[-1]
    tables = {
        name: sorted(str(list(row)) for row in place.query_rows(0, f"SELECT {columns} FROM {name}")) for name, columns in COLUMNS.items()
    }
    service = [*sorted(place.folder.glob("*-witness-*")), *sorted(place._state.glob("*"))] if is_file(place) else []
    beside = [(path.name, path.read_bytes().hex()) for path in service]
    return tables, beside


def is_file(place: object) -> bool:
    return isinstance(place, SqlitePlace)


def in_process(lab: Lab, trial: Trial, number: int) -> Any:
    with no_restart():
        try:
            trial.run_once(Schedule((Move(number, "die"),)))
        except Left:
            return left(lab)
    raise AssertionError(f"nothing died at {number}")


def killed(lab: Lab, trial: Trial, number: int) -> tuple[Any, bool]:
    place: Any = lab._places[-1]
    if is_file(place):
        place._close_engines()
    child = os.fork()
    if child == 0:
        try:
            forget_connections(place)
            trial._kept = DatabasePool()
            trial.at_death = lambda _process: os.kill(os.getpid(), signal.SIGKILL)
            trial.run_once(Schedule((Move(number, "die"),)))
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    until(lambda: is_file(place) or not place.query_rows(0, BESIDE)[0][0], lambda: "the server still has connections of a killed process")
    return left(lab), os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


_inherited: list[object] = []  # kept, so that nothing of them is closed, which would end the parent's sessions
BESIDE = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'groundstate%'"


def forget_connections(place: Any) -> None:
    """In the child: the parent's connections are not used, and not closed either."""
    for engine in place._engines:
        _inherited.append(engine.pool)
        engine.dispose(close=False)
    if not is_file(place):
        _inherited.extend([place._asking, place._looking])
        place._asking, place._looking = {}, None


def main(every: int, postgres: str | None) -> None:
    made = shop()
    with Lab(postgres=postgres) as lab:
        lab.fake(made.charge, lambda order: f"r{order.id}")
        lab.fake(made.send, lambda order: f"m{order.id}")
        trial = lab._build_trial(made.app, Order(id=1))
        clean = trial.run_clean()
        found = []
        for number in range(1, len(clean.crossings) + 1, every):
            here = in_process(lab, trial, number)
            there, by_kill = killed(lab, trial, number)
            crossing = str(clean.crossings[number - 1])
            found.append({"crossing": crossing, "here": here, "there": there, "killed": by_kill})
        json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
