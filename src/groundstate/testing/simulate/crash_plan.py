"""The schedule of one run: its moves (what disturbs the run at which crossing) and the moods of its calls (what happens to each call).

A schedule can be written as a line of text. Crossings are numbered from 1 in the order in which the workers of a run reach them, across
restarts. Calls are numbered from 1 in the order in which they are sent. The same schedule on the same app always gives the same run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from groundstate.testing.simulate.fake_provider import Mood

KINDS = ("die", "meanwhile", "switch", "unlock", "freeze", "copy", "restore", "leap", "suspend")
HINTS = ("told", "lost", "doubled", "reordered", "invented")
_MOODS = {mood.value: mood for mood in Mood}


@dataclass(frozen=True, order=True)
class Move:
    """One disturbance, which happens when the numbered crossing is reached.

    die: the process that reached the crossing is killed.
    meanwhile: the transaction number `which` of another program is committed.
    switch: another worker than the one that reached the crossing runs next.
    unlock: a process loses its lock, and runs on. freeze: a process loses its lock, and stands still until its deadlines have passed.
    copy: the database is copied. restore: all processes are killed, and the database is restored from the copy.
    leap, suspend: the time of day leaps or the host is suspended, by the amount that is declared as number `which` in the lab's clock.
    """

    crossing: int
    kind: str
    which: int = 0

    def __str__(self) -> str:
        return f"{self.kind}{self.which or ''}@{self.crossing}"


@dataclass(frozen=True)
class Schedule:
    """The disturbances of one run. moods: pairs of call number and mood; a call without a mood is carried out, and its answer arrives."""

    moves: tuple[Move, ...] = ()
    moods: tuple[tuple[int, Mood], ...] = ()
    hints: str = "told"  # what happens to hints; one of HINTS
    lookups_lag: bool = False  # whether a lookup sees what a call did only after `settle_after`
    workers: int = 1

    def __str__(self) -> str:
        words = [str(move) for move in sorted(self.moves)]
        words += [f"call{number}={mood.value}" for number, mood in sorted(self.moods, key=lambda one: one[0])]
        words += [f"hints={self.hints}"] if self.hints != "told" else []
        words += ["lookups=lag"] if self.lookups_lag else []
        words += [f"workers={self.workers}"] if self.workers != 1 else []
        return " ".join(words) or "nothing"

    @property
    def size(self) -> int:
        """Return how many disturbances the schedule has."""
        return len(self.moves) + len(self.moods) + (self.hints != "told") + self.lookups_lag + (self.workers - 1)

    @property
    def sort(self) -> str:
        """Return the sort of the schedule: the kind of its only move, `calls` for one mood, `mixtures` for several disturbances, or
        `others`. Schedules are counted by sort.
        """
        if self.size > 1:
            return "mixtures"
        return self.moves[0].kind if self.moves else "calls" if self.moods else "others"

    def smaller_schedules(self) -> Iterator[Schedule]:
        """Yield each schedule that has one disturbance fewer than this one."""
        for move in self.moves:
            yield replace(self, moves=tuple(one for one in self.moves if one is not move))
        for mood in self.moods:
            yield replace(self, moods=tuple(one for one in self.moods if one is not mood))
        if self.hints != "told":
            yield replace(self, hints="told")
        if self.lookups_lag:
            yield replace(self, lookups_lag=False)
        if self.workers > 1 and not any(move.kind == "switch" for move in self.moves):
            yield replace(self, workers=self.workers - 1)


_WORD = re.compile(
    r"(?P<kind>[a-z]+)(?P<which>\d*)@(?P<crossing>\d+)|call(?P<call>\d+)=(?P<mood>[a-z-]+)|(?P<name>hints|lookups|workers)=(?P<value>\w+)"
)


def parse_schedule(line: str) -> Schedule:
    """Return the schedule that this line, written by `Schedule.__str__`, stands for. Raises ValueError with a message that names the
    invalid part.
    """
    made = Schedule()
    for word in line.split():
        found = _WORD.fullmatch(word)
        if word == "nothing":
            continue
        if found is None or not _is_known_part(found):
            raise ValueError(f"{word!r} is no part of a schedule: copy the line that a failure printed, such as 'die@12 die@30 call1=late'")
        if found["kind"]:
            made = replace(made, moves=(*made.moves, Move(int(found["crossing"]), found["kind"], int(found["which"] or 0))))
        elif found["call"]:
            made = replace(made, moods=(*made.moods, (int(found["call"]), _MOODS[found["mood"]])))
        elif found["name"] == "hints":
            made = replace(made, hints=found["value"])
        elif found["name"] == "lookups":
            made = replace(made, lookups_lag=True)
        else:
            made = replace(made, workers=int(found["value"]))
    return made


def _is_known_part(found: re.Match[str]) -> bool:
    if found["kind"]:
        return found["kind"] in KINDS
    if found["call"]:
        return found["mood"] in _MOODS
    return {"hints": found["value"] in HINTS, "lookups": found["value"] == "lag", "workers": found["value"] in _WORKERS}[found["name"]]


_WORKERS = ("1", "2", "3", "4")
