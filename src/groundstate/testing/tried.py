"""Which schedules were tried, and which others would be the same run: those are not run again. Runs nothing.

A run is the same each time. So a schedule whose last move lies behind the end of the run without it is that run; and so is one whose call
is never made.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from groundstate.testing.schedule import Move, Schedule


@dataclass(frozen=True)
class Length:
    """Of a run that was carried out to its end."""

    crossings: int
    calls: int


class Tried:
    """Of one `crash_everywhere`. idle: (which, crossing) of others' transactions that would write nothing in the clean run."""

    def __init__(self) -> None:
        self.idle: Collection[tuple[int, int]] = frozenset()
        self._known: dict[Schedule, Length | None] = {}

    def was(self, one: Schedule, length: Length | None) -> None:
        """It was tried. None: it did not come to an end of its own."""
        self._known[one] = length

    def same_as(self, one: Schedule) -> Schedule | None:
        """A schedule that was tried, of which this one is the same run; None where there is none."""
        if one in self._known:
            return one
        return self._without_the_last_move(one) or self._without_the_last_mood(one) or self._without_an_idle_move(one)

    def _without_the_last_move(self, one: Schedule) -> Schedule | None:
        last = max(one.moves, default=None)
        if last is None or last.kind == "leap":  # of a run with leaps the outside knows
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
        """Until its first move a run of moves alone is the clean one."""
        first = min(one.moves, default=None)
        if first is None or first.kind != "meanwhile" or replace(one, moves=()) != Schedule():
            return None
        return self.same_as(_without(one, first)) if (max(first.which, 1), first.crossing) in self.idle else None


def _without(one: Schedule, move: Move) -> Schedule:
    return replace(one, moves=tuple(other for other in one.moves if other is not move))
