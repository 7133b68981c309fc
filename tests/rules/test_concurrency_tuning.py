"""How many workers are let at a backlog: found by trying, of a fleet that is computed here, with its machine's limits."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from groundstate.rules.concurrency_tuning import FEW, SILENT_S, SLOW_S, AdmittedWorkers, Gate, Report
from groundstate.rules.hint_codec import Hint, decode_hint, encode_hint

Curve = Callable[[int], float]
EACH_S = 0.02
TELLS_S = 0.2


def two_cores(count: int) -> float:
    """Rows a second that so many do at once."""
    return 30_000 * min(count, 2) * 0.95 ** max(count - 2, 0)


def a_core_each(count: int) -> float:
    return 30_000.0 * count


def eight_cores(count: int) -> float:
    return 30_000 * min(count, 8) * 0.97 ** max(count - 8, 0)


def one_lock(count: int) -> float:
    """Whoever is more only waits."""
    return float(30_000.0 / count**0.5)


@dataclass
class Crowd:
    """Workers of which each does its share while it is let in. noise: by how much what they do is off, up or down."""

    count: int
    curve: Curve
    noise: float = 0.0
    batch_s: float = 0.02
    door: Gate = field(default_factory=Gate)
    now: float = 0.0
    did: float = 0.0
    silent: set[int] = field(default_factory=set)
    said: AdmittedWorkers | None = None
    dice: random.Random = field(default_factory=lambda: random.Random(7))

    @property
    def lives(self) -> list[int]:
        return list(range(1, self.count + 1))

    @property
    def at_work(self) -> list[int]:
        chosen = self.lives if self.said is None or self.said.workers is None else self.said.workers
        return [life for life in chosen if life not in self.silent and life <= self.count]

    def runs(self, seconds: float) -> float:
        """Rows a second, over so long a time."""
        before, end = self.did, self.now + seconds
        told = dict.fromkeys(self.lives, self.now)
        done = dict.fromkeys(self.lives, 0.0)
        each_s = max(TELLS_S, self.batch_s)
        while self.now < end:
            self.now += EACH_S
            at_work = self.at_work
            for life in self.lives:
                if life not in at_work:
                    told[life] = self.now
                    continue
                rows = EACH_S * self.curve(len(at_work)) / len(at_work) * (1 + self.noise * self.dice.uniform(-1, 1))
                done[life] += rows
                self.did += rows
                if self.now - told[life] >= each_s * self.dice.uniform(0.9, 1.1):
                    self.door.record_report(Report(life, int(done[life]), self.now - told[life]), ["paid"], self.now)
                    told[life], done[life] = self.now, 0.0
            self.look()
        return (self.did - before) / seconds

    def look(self) -> None:
        said = self.door.decide_admission(1, self.lives, self.now)
        self.said = said or self.said

    def best(self) -> float:
        return max(self.curve(count) for count in range(1, self.count + 1))


@pytest.mark.parametrize("noise", [0.0, 0.5], ids=["even", "uneven"])
@pytest.mark.parametrize("count", [2, 3, 4, 8, 16, 64])
@pytest.mark.parametrize("curve", [two_cores, a_core_each, eight_cores, one_lock])
def test_however_many_workers_there_are_as_many_are_let_in_as_do_most(curve: Curve, count: int, noise: float) -> None:
    crowd = Crowd(count, curve, noise)
    crowd.runs(15)
    few = min(count, FEW)
    assert crowd.runs(60) >= 0.9 * max(map(curve, range(few, count + 1)))


def test_the_first_seconds_of_a_backlog_are_not_lost() -> None:
    assert Crowd(16, two_cores).runs(4) >= 0.9 * two_cores(2)
    assert Crowd(16, a_core_each).runs(10) >= 0.6 * a_core_each(16)


def test_a_machine_that_is_given_to_others_lets_fewer_in() -> None:
    crowd = Crowd(16, a_core_each)
    crowd.runs(15)
    assert len(crowd.at_work) == 16
    crowd.curve = two_cores
    crowd.runs(120)
    assert crowd.runs(60) >= 0.9 * two_cores(2)


def test_one_that_joins_is_tried_soon() -> None:
    crowd = Crowd(4, a_core_each)
    crowd.runs(60)
    crowd.count = 8
    crowd.runs(3)
    assert len(crowd.at_work) == 8


def test_who_is_silent_makes_room_for_another() -> None:
    crowd = Crowd(8, two_cores)
    crowd.runs(10)
    gone = next(life for life in crowd.at_work if life != 1)
    crowd.silent = {gone}
    crowd.runs(2 * SILENT_S)
    assert len(crowd.at_work) == 2


def test_who_keeps_the_door_is_always_let_in() -> None:
    crowd = Crowd(8, two_cores)
    for _ in range(50):
        crowd.runs(0.5)
        assert 1 in crowd.at_work


def test_two_workers_are_never_kept_out() -> None:
    crowd = Crowd(2, one_lock)
    crowd.runs(10)
    assert crowd.said is None


def test_a_handler_that_takes_long_is_no_crowd() -> None:
    crowd = Crowd(8, one_lock, batch_s=2 * SLOW_S)
    crowd.runs(20)
    assert len(crowd.at_work) == 8


def test_when_the_backlog_is_over_all_are_let_in_and_told_so_once() -> None:
    crowd = Crowd(8, two_cores)
    crowd.runs(5)
    crowd.silent = set(crowd.lives)
    crowd.runs(3)
    assert crowd.said == AdmittedWorkers(None, ("paid",))
    assert crowd.door.decide_admission(1, crowd.lives, crowd.now) is None


def test_the_next_backlog_begins_with_what_was_found() -> None:
    crowd = Crowd(16, eight_cores)
    crowd.runs(20)
    crowd.silent = set(crowd.lives)
    crowd.runs(5)
    crowd.silent, crowd.said = set(), None
    crowd.runs(TELLS_S * 2)
    assert len(crowd.at_work) == 8


def test_a_report_of_more_than_anybody_does_is_cut_down() -> None:
    found = decode_hint(b'{"v":1,"s":"x","r":["paid"],"n":1,"d":0,"c":1,"p":[5,4611686018427387904,4611686018427387904]}')
    assert found is not None
    assert found.did == Report(5, 10_000_000, 60.0)


@pytest.mark.parametrize(
    "hint",
    [
        Hint("web", ("paid",), 7, 3, crew=2**61, did=Report(2**60, 500, 0.25)),
        Hint("web", ("paid",), 7, 3, crew=9, let_in=(4, AdmittedWorkers((4, 5), ("paid",)))),
        Hint("web", ("paid",), 7, 3, crew=9, let_in=(4, AdmittedWorkers(None, ("paid",)))),
        Hint("web", ("paid",), 7, 3, store="shard-2"),
    ],
    ids=["a report", "who is let in", "everybody", "one shard"],
)
def test_what_workers_tell_each_other_arrives_as_it_was_said(hint: Hint) -> None:
    (said,) = encode_hint(hint, 8000)
    assert decode_hint(said) == hint
