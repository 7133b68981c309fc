"""Remembers which schedules were tried, so that no run is made twice.

A run is deterministic. So a schedule repeats an earlier run if its last move would happen at a crossing that the run never reaches. It also
repeats one if it has a mood for a call that the run never makes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from groundstate.testing.simulate.crash_plan import Move, Schedule


@dataclass(frozen=True)
class Length:
    """The number of crossings and calls in a run that was not ended early."""

    crossings: int
    calls: int


class Tried:
    """The schedules that one `crash_everywhere` has tried.

    idle: pairs (number of another program's transaction, crossing at which it would write nothing in the clean run).
    """

    def __init__(self) -> None:
        self.idle: Collection[tuple[int, int]] = frozenset()
        self._known: dict[Schedule, Length | None] = {}

    def record(self, one: Schedule, length: Length | None) -> None:
        """Record that the schedule was tried. length: None if the run was ended early."""
        self._known[one] = length

    def find_same_run(self, one: Schedule) -> Schedule | None:
        """Return a schedule that was tried and gives the same run as this one; None if there is none."""
        if one in self._known:
            return one
        return self._find_same_without_last_move(one) or self._find_same_without_last_mood(one) or self._find_same_without_idle_move(one)

    def _find_same_without_last_move(self, one: Schedule) -> Schedule | None:
        last = max(one.moves, default=None)
        if last is None or last.kind == "leap":  # a leap changes when late requests arrive, even a leap after the run's end
            return None
        same = self.find_same_run(_without_move(one, last))
        length = None if same is None else self._known[same]
        return same if length is not None and length.crossings < last.crossing else None

    def _find_same_without_last_mood(self, one: Schedule) -> Schedule | None:
        last = max((number for number, _ in one.moods), default=None)
        if last is None:
            return None
        same = self.find_same_run(replace(one, moods=tuple(mood for mood in one.moods if mood[0] != last)))
        length = None if same is None else self._known[same]
        return same if length is not None and length.calls < last else None

    def _find_same_without_idle_move(self, one: Schedule) -> Schedule | None:
        """Leave out the first move, and return a tried schedule that gives the same run as the other moves.

        Return None if no such schedule was tried, if the first move would write something in the clean run, or if the schedule has
        disturbances that are not moves.
        """
        first = min(one.moves, default=None)
        if first is None or first.kind != "meanwhile" or replace(one, moves=()) != Schedule():
            return None
        return self.find_same_run(_without_move(one, first)) if (max(first.which, 1), first.crossing) in self.idle else None


def _without_move(one: Schedule, move: Move) -> Schedule:
    return replace(one, moves=tuple(other for other in one.moves if other is not move))
