"""Fleets of three processes, rolled one by one to another version of the code and back while calls are in the air, and killed at that.

Whichever line of the table of changes in docs/operating.md is between the versions: nothing is done twice, and all of it is settled, or
listed with the reason.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from groundstate.engine.rows import attempts
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.begun_kind import HELD_FOR
from groundstate.store import connect, tables
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
        self.engine = create_engine(connect.resolve_settings(url).url)
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
        """Each old worker ends, and one of this version starts before the next is ended.

        The one with most calls in the air is the last: no worker of its own version is left to settle these.
        """
        self.workers.sort(key=lambda one: self.in_the_air()[one.pid])
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

    def in_the_air(self) -> Counter[int | None]:
        """How many calls each process has begun, by its number."""
        with self.engine.connect() as connection:
            begun = select(tables.worker.c.pid).join(tables.attempt, tables.attempt.c.worker == tables.worker.c.id)
            return Counter(connection.execute(begun.where(tables.attempt.c.state == "begun")).scalars())

    def orders(self, first: int, last: int, status: str = "placed", second_round: Callable[[int], bool] = lambda _: False) -> None:
        with Session(self.engine) as session, session.begin():
            for number in range(first, last + 1):
                session.add(Order(id=number, status=status, round=1 + second_round(number), customer=number // 3))

    def count(self, status: str) -> int:
        with Session(self.engine) as session:
            return session.execute(select(func.count()).select_from(Order).where(Order.status == status)).scalar_one()

    def attempts(self) -> list[Attempt]:
        with self.engine.connect() as connection:
            return [attempts.attempt_from_row(row) for row in connection.execute(attempts.select_attempts())]

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


HOW = (signal.SIGKILL, signal.SIGTERM)
HOWS = pytest.mark.parametrize("how", HOW, ids=lambda how: how.name)


def _settled(fleet: Fleet) -> bool:
    """Each order is paid, or is held for a person with the reason."""
    left = fleet.attempts()
    return fleet.count("placed") == len(left) and all(one.state is State.HELD for one in left)


def _in_the_air(fleet: Fleet, first: int, last: int, calls: int = HANGING) -> Callable[[], bool]:
    """So many of these orders hang. Where the other version settles them, nothing else is on its way either.

    Elsewhere a kill may come between an attempt's commit and its call. There it may as well, but a call that is made after all waits long.
    """
    settled = fleet.change not in rolled.HELD or fleet.change == "repeat"

    def holds() -> bool:
        hanging = fleet.hanging(first, last) == calls
        return hanging and (not settled or sum(1 for one in fleet.attempts() if one.state is not State.HELD) == calls)

    return holds


def _nothing_twice_and_all_of_it_told(fleet: Fleet, orders: int, how: int, why: str | None, earlier: str | None = None) -> None:
    """What surely was not done is called, and not held. A kill may come between an attempt's commit and its call: then nobody is sure.

    why: the reason for which what was in the air last is held, None where it is settled; earlier: the same of an earlier roll.
    """
    done = fleet.books.done()
    assert fleet.books.twice() == set(), done
    left = fleet.attempts()
    reasons = [one.why or "" for one in left]
    may_be = [f"{HELD_FOR}: {reason}" for reason in (why, earlier) if reason is not None]
    by_its_own = "InDoubt.hold()" if fleet.change == "key" else None  # the policy of version 1
    assert all(reason in may_be or (by_its_own is not None and by_its_own in reason) for reason in reasons), reasons
    if why is not None:
        assert [reason for reason in reasons if why in reason or (by_its_own is not None and by_its_own in reason)] != []
    assert all(one.unsure for one in left)
    assert fleet.count("paid") + len(left) == orders
    assert set(range(1, orders + 1)) - set(done) <= {int(one.record) for one in left}
    if how == signal.SIGTERM:
        assert len(done) == orders


def _ways(changes: Iterable[str]) -> list[Any]:
    """Of each change one of the two signals at each run, in turn, on the store that takes less time. All of it with --thorough."""
    ways = [(store, how) for store in ("sqlite", "postgres") for how in HOW]
    return [
        pytest.param(change, *way, id=f"{change}-{way[0]}-{way[1].name}", marks=[] if way == ways[number % 2] else [pytest.mark.thorough])
        for number, change in enumerate(changes)
        for way in ways
    ]


WAYS = ["change", "database_url", "how"]


def _rolled_forward_and_back(here: Fleet, how: int, forward: str | None, back: str | None) -> None:
    here.init(1, tables=True, accept=True)
    here.orders(1, 18)
    here.start(1)
    until(_in_the_air(here, 1, 18))
    here.roll(2, how)
    until(lambda: _settled(here))
    _nothing_twice_and_all_of_it_told(here, 18, how, forward)
    here.orders(19, 36)
    until(_in_the_air(here, 19, 36))
    if here.change == "in_order":
        done = here.books.done()
        assert [number for number in range(21, 37) if done[number]] == [*range(21, 37, 3)]  # none but the first of each line
    here.roll(1, how)
    here.books.gate.touch()
    until(lambda: _settled(here))
    _nothing_twice_and_all_of_it_told(here, 36, how, back, forward)


@HOWS
@pytest.mark.parametrize("change", ["service", "key", "occurrence"])
def test_a_fleet_that_is_rolled_forward_and_back_with_calls_in_the_air_does_nothing_twice(
    fleet: Callable[[str], Fleet], change: str, how: signal.Signals
) -> None:
    _rolled_forward_and_back(fleet(change), how, *rolled.HELD[change])


@pytest.mark.parametrize(WAYS, _ways(["call", "find", "repeat", *rolled.SETTLED]), indirect=["database_url"])
def test_so_does_one_between_whose_versions_is_another_line_of_the_table(
    fleet: Callable[[str], Fleet], change: str, how: signal.Signals
) -> None:
    _rolled_forward_and_back(fleet(change), how, *rolled.HELD.get(change, (None, None)))


@pytest.mark.parametrize(WAYS, _ways(rolled.LEAVES_OUT), indirect=["database_url"])
def test_what_a_fleet_had_in_the_air_that_newer_code_leaves_out_is_held_with_its_outcome_and_the_older_calls_it_no_more(
    fleet: Callable[[str], Fleet], change: str, how: signal.Signals
) -> None:
    here = fleet(change)
    here.init(1, tables=True, accept=True)
    here.orders(1, 18, second_round=rolled.hangs)
    here.start(1)
    until(_in_the_air(here, 1, 18))
    here.roll(2, how)
    until(lambda: _settled(here))
    held = {int(one.record) for one in here.attempts()}
    assert held != set()
    _overtaken(here, 18, held)
    here.orders(19, 36, second_round=lambda number: number % 2 == 0)
    if change == "split":
        here.init(2, accept={"paid_too": "call"})  # as plan asks for
        here.books.gate.touch()  # code that does not know it does not start while calls of it are open
        until(lambda: _settled(here))
    else:
        until(_in_the_air(here, 19, 36, 3))
    here.roll(1, how)
    here.books.gate.touch()
    here.orders(37, 42, second_round=lambda number: number % 2 == 0)
    rest = 3 if change == "split" else 12  # that the older alone matches: a person says that they are to be carried out
    until(lambda: here.count("placed") == rest + len(held) and {int(one.record) for one in here.attempts()} == held)
    here.init(1, accept={"paid": "call"})
    until(lambda: here.count("paid") == 42 - len(held))
    _overtaken(here, 42, held)


def _overtaken(fleet: Fleet, orders: int, held: set[int]) -> None:
    """Each order was acted upon once, and these alone are held: with the outcome."""
    assert fleet.books.done() == Counter(range(1, orders + 1))
    left = fleet.attempts()
    assert {int(one.record) for one in left} == held
    assert all(one.reaction == "paid" and one.outcome is not None and (one.why or "").startswith("overtaken") for one in left), left
    assert fleet.count("paid") == orders - len(held)


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
