"""Fleets of three processes, rolled one by one to another version of the code and back while calls are in the air, and killed at that.

Whatever the versions say of the service, the key, the occurrence or the condition: nothing is done twice, and all of it is listed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from groundstate.engine import attempts
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.kind import HELD_FOR
from groundstate.store import opening
from tests.engine import rolled
from tests.engine.rolled import Books, Order
from tests.patience import HANG_S, until

SIZE = 3
HANGING = 6  # of 18 orders


class Fleet:
    """Worker processes of both versions on one database."""

    def __init__(self, url: str, folder: Path, change: str) -> None:
        self.url, self.folder, self.change = url, folder, change
        self.books = Books(folder)
        self.engine = create_engine(opening.settings_of(url).url)
        self.workers: list[ForkServerProcess] = []
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.engine.rolled"])

    def init(self, version: int, **how: object) -> None:
        rolled.shop(self.url, self.folder, self.change, version).init(**how)  # type: ignore[arg-type]  # each as `init` has it

    def start(self, version: int, count: int = SIZE) -> None:
        for _ in range(count):
            one = self._context.Process(target=rolled.work, args=(self.url, str(self.folder), self.change, version))
            one.start()
            self.workers.append(one)

    def roll(self, version: int, how: int) -> None:
        """Each old worker ends, and one of this version starts before the next is ended."""
        for old in list(self.workers):
            assert old.pid is not None
            os.kill(old.pid, how)
            if how == signal.SIGTERM:
                old.join(HANG_S)
                assert old.exitcode == 0
            self.start(version, 1)
        for old in self.workers[:-SIZE]:
            old.join(HANG_S)
        self.workers = self.workers[-SIZE:]

    def orders(self, first: int, last: int, status: str = "placed") -> None:
        with Session(self.engine) as session, session.begin():
            session.add_all([Order(id=number, status=status) for number in range(first, last + 1)])

    def count(self, status: str) -> int:
        with Session(self.engine) as session:
            return session.execute(select(func.count()).select_from(Order).where(Order.status == status)).scalar_one()

    def attempts(self) -> list[Attempt]:
        with self.engine.connect() as connection:
            return [attempts.from_row(row) for row in connection.execute(attempts.rows())]

    def hanging(self, first: int, last: int) -> int:
        """Calls of these orders that have acted, and have not answered yet."""
        done = self.books.done()
        return sum(1 for number in range(first, last + 1) if rolled.hangs(number) and done[number])

    def close(self) -> None:
        for one in self.workers:
            one.kill()
            one.join(HANG_S)
        self.engine.dispose()


@pytest.fixture
def fleet(database_url: str, tmp_path: Path) -> Iterator[Callable[[str], Fleet]]:
    made: list[Fleet] = []

    def of(change: str) -> Fleet:
        made.append(Fleet(database_url, tmp_path, change))
        return made[-1]

    yield of
    for one in made:
        one.close()


HOWS = pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])


def _settled(fleet: Fleet) -> bool:
    """Each order is paid, or is held for a person with the reason."""
    left = fleet.attempts()
    return fleet.count("placed") == len(left) and all(one.state is State.HELD for one in left)


def _nothing_twice_and_all_of_it_told(fleet: Fleet, orders: int, how: int) -> None:
    """What surely was not done is called, and not held. A kill may come between an attempt's commit and its call: then nobody is sure."""
    done = fleet.books.done()
    assert set(done.values()) <= {1}, done
    left = fleet.attempts()
    assert all((one.why or "").startswith(HELD_FOR) or "hold()" in (one.why or "") for one in left), left
    assert all(one.unsure for one in left)
    assert fleet.count("paid") + len(left) == orders
    assert set(range(1, orders + 1)) - set(done) <= {int(one.record) for one in left}
    if how == signal.SIGTERM:
        assert len(done) == orders


@HOWS
@pytest.mark.parametrize("change", rolled.CHANGES)
def test_a_fleet_that_is_rolled_forward_and_back_with_calls_in_the_air_does_nothing_twice(
    fleet: Callable[[str], Fleet], change: str, how: int
) -> None:
    here = fleet(change)
    here.init(1, tables=True, accept=True)
    here.orders(1, 18)
    here.start(1)
    until(lambda: here.hanging(1, 18) == HANGING)
    here.roll(2, how)
    until(lambda: _settled(here))
    _nothing_twice_and_all_of_it_told(here, 18, how)
    here.orders(19, 36)
    until(lambda: here.hanging(19, 36) == HANGING)
    here.roll(1, how)
    here.books.gate.touch()
    until(lambda: _settled(here))
    _nothing_twice_and_all_of_it_told(here, 36, how)


@HOWS
def test_rows_that_a_person_left_are_left_by_a_fleet_that_is_rolled_forward_and_back_and_forward(
    fleet: Callable[[str], Fleet], how: int
) -> None:
    here = fleet("condition")
    here.init(1, tables=True, accept=True)
    here.orders(1, 10, "closed")
    here.start(1)
    here.init(2, baseline=["swept"])
    for swept, version in ((3, 2), (6, 1), (9, 2)):
        here.roll(version, how)
        if version == 2:
            here.init(2, accept=["swept"])  # once more after a rollback: a person carries out what is there, but for what was left
        here.orders(swept + 8, swept + 10, "archived" if version == 1 else "closed")
        until(lambda: here.count("swept") == swept)  # noqa: B023  # asked within the round
        assert here.count("closed") == 10
        assert [one.why for one in here.attempts()] == ["baseline"] * 10
