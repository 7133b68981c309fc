"""Remembers which schedules were tried, so that a schedule that would be the same run is not run again.

A run is deterministic. So a schedule whose last move lies behind the end of the run without that move is the same run; and so is a schedule
with a mood for a call that is never made.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from groundstate.testing.simulate.crash_plan import Move, Schedule


@dataclass(frozen=True)
class Length:
    """The length of a run that was carried out to its end."""

    crossings: int
    calls: int


class Tried:
    """The schedules that one `crash_everywhere` has tried.

    idle: (which, crossing) of the transactions of other programs that would write nothing in the clean run.
    """

    def __init__(self) -> None:
        self.idle: Collection[tuple[int, int]] = frozenset()
        self._known: dict[Schedule, Length | None] = {}

    def was(self, one: Schedule, length: Length | None) -> None:
        """Record that the schedule was tried; `length` is None where the run did not reach its own end."""
        self._known[one] = length

    def same_as(self, one: Schedule) -> Schedule | None:
        """Return a schedule that was tried and is the same run as this one, or None."""
        if one in self._known:
            return one
        return self._without_the_last_move(one) or self._without_the_last_mood(one) or self._without_an_idle_move(one)

    def _without_the_last_move(self, one: Schedule) -> Schedule | None:
        last = max(one.moves, default=None)
        if last is None or last.kind == "leap":  # external services notice leaps, so a run with leaps is never the same
            return None
        same = self.same_as(_without(one, last))
        length = None if same is None else self._known[same]
        return same if length is not None and length.crossings < last.crossing else None

    def _without_the_last_mood(self, one: Schedule) -> Schedule | None:
        last = max((number for number, _ in one.moods), default=None)
        if last is None:
            return None
        same = self.same_as(replace(one, moods=tuple(mood for mood in one.moods if mood[0] != last)))
        length = None if same is None else self._known[same]
        return same if length is not None and length.calls < last else None

    def _without_an_idle_move(self, one: Schedule) -> Schedule | None:
        """Return the tried schedule that equals this one without an idle first move; up to its first move the run is the clean one."""
        first = min(one.moves, default=None)
        if first is None or first.kind != "meanwhile" or replace(one, moves=()) != Schedule():
            return None
        return self.same_as(_without(one, first)) if (max(first.which, 1), first.crossing) in self.idle else None


def _without(one: Schedule, move: Move) -> Schedule:
    return replace(one, moves=tuple(other for other in one.moves if other is not move))
