"""The schedule of one run: moves, each at a crossing, and the moods of the external services; one line of text repeats the run.

Crossings are numbered from 1 in the order in which they are reached, over all worker incarnations of a run; calls are numbered in the order
in which they are sent. The same schedule on the same app is the same run.
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

    die: the process is killed.
    meanwhile: the transaction number `which` of another program is committed.
    switch: another worker goes on.
    unlock, freeze: a process loses its lock while it runs on, or while it is suspended until all its deadlines have passed.
    copy, restore: the database is copied, or restored from that copy while no process is alive.
    leap, suspend: the time of day leaps or the host is suspended, as number `which` of the lab's clock says.
    """

    crossing: int
    kind: str
    which: int = 0

    def __str__(self) -> str:
        return f"{self.kind}{self.which or ''}@{self.crossing}"


@dataclass(frozen=True)
class Schedule:
    """The disturbances of one run. moods: pairs of call number and mood; a call without a mood is done and answered."""

    moves: tuple[Move, ...] = ()
    moods: tuple[tuple[int, Mood], ...] = ()
    hints: str = "told"  # one of HINTS: told, lost, doubled, reordered, invented
    lookups_lag: bool = False  # whether a lookup sees an effect only after `settle_after`
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
        """Return how many disturbances the schedule has; the smallest schedule that fails explains most."""
        return len(self.moves) + len(self.moods) + (self.hints != "told") + self.lookups_lag + (self.workers - 1)

    @property
    def sort(self) -> str:
        """Return the sort of the schedule: the kind of its one move, `calls` for one mood, `others` for one setting of the run, `mixtures`
        for more.
        """
        if self.size > 1:
            return "mixtures"
        return self.moves[0].kind if self.moves else "calls" if self.moods else "others"

    def smaller(self) -> Iterator[Schedule]:
        """Yield all schedules with one disturbance less."""
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


def parsed(line: str) -> Schedule:
    """Parse the line that `Schedule.__str__` writes. Raises ValueError, which names the invalid part."""
    made = Schedule()
    for word in line.split():
        found = _WORD.fullmatch(word)
        if word == "nothing":
            continue
        if found is None or not _has_meaning(found):
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


def _has_meaning(found: re.Match[str]) -> bool:
    if found["kind"]:
        return found["kind"] in KINDS
    if found["call"]:
        return found["mood"] in _MOODS
    return {"hints": found["value"] in HINTS, "lookups": found["value"] == "lag", "workers": found["value"] in _WORKERS}[found["name"]]


_WORKERS = ("1", "2", "3", "4")
