"""What is to happen in one run: moves, each at a crossing, and the moods of the outside. Written as one line that repeats the run.

Crossings are numbered from 1 in the order in which they are reached, over all lives of a run; calls are numbered in the order in which
they were sent. The same schedule on the same app is the same run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from groundstate.testing.provider import Mood

KINDS = ("die", "meanwhile", "switch", "unlock", "freeze", "copy", "restore", "leap", "suspend")
HINTS = ("told", "lost", "doubled", "reordered", "invented")
_MOODS = {mood.value: mood for mood in Mood}


@dataclass(frozen=True, order=True)
class Move:
    """At the crossing: the process dies (die); someone else's transaction number `which` (meanwhile); another worker goes on (switch);
    the lock is lost by a process that lives (unlock), or that stands still until all its deadlines are past (freeze); the database is
    copied, or put back to that copy while all is dead (copy, restore); the time of day leaps, or the host is suspended, as number `which`
    of the lab's clock says (leap, suspend).
    """

    crossing: int
    kind: str
    which: int = 0

    def __str__(self) -> str:
        return f"{self.kind}{self.which or ''}@{self.crossing}"


@dataclass(frozen=True)
class Schedule:
    """One run. moods: call number -> what happens to it; `done` where it is not named."""

    moves: tuple[Move, ...] = ()
    moods: tuple[tuple[int, Mood], ...] = ()
    hints: str = "told"  # lost, doubled, reordered, invented
    finds_lag: bool = False  # a find sees an effect only when `settle_after` is over
    workers: int = 1

    def __str__(self) -> str:
        words = [str(move) for move in sorted(self.moves)]
        words += [f"call{number}={mood.value}" for number, mood in sorted(self.moods, key=lambda one: one[0])]
        words += [f"hints={self.hints}"] if self.hints != "told" else []
        words += ["finds=lag"] if self.finds_lag else []
        words += [f"workers={self.workers}"] if self.workers != 1 else []
        return " ".join(words) or "nothing"

    @property
    def size(self) -> int:
        """How many things it does: the smallest schedule that fails tells most."""
        return len(self.moves) + len(self.moods) + (self.hints != "told") + self.finds_lag + (self.workers - 1)

    @property
    def sort(self) -> str:
        """What it does: the kind of its one move, `calls` for one mood, `others` for one thing of the whole run, `mixtures` for more."""
        if self.size > 1:
            return "mixtures"
        return self.moves[0].kind if self.moves else "calls" if self.moods else "others"

    def smaller(self) -> Iterator[Schedule]:
        """All schedules that do one thing less."""
        for move in self.moves:
            yield replace(self, moves=tuple(one for one in self.moves if one is not move))
        for mood in self.moods:
            yield replace(self, moods=tuple(one for one in self.moods if one is not mood))
        if self.hints != "told":
            yield replace(self, hints="told")
        if self.finds_lag:
            yield replace(self, finds_lag=False)
        if self.workers > 1 and not any(move.kind == "switch" for move in self.moves):
            yield replace(self, workers=self.workers - 1)


_WORD = re.compile(
    r"(?P<kind>[a-z]+)(?P<which>\d*)@(?P<crossing>\d+)|call(?P<call>\d+)=(?P<mood>[a-z-]+)|(?P<name>hints|finds|workers)=(?P<value>\w+)"
)


def parsed(line: str) -> Schedule:
    """The schedule that was written so. Raises ValueError with the word that is none."""
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
        elif found["name"] == "finds":
            made = replace(made, finds_lag=True)
        else:
            made = replace(made, workers=int(found["value"]))
    return made


def _has_meaning(found: re.Match[str]) -> bool:
    if found["kind"]:
        return found["kind"] in KINDS
    if found["call"]:
        return found["mood"] in _MOODS
    return {"hints": found["value"] in HINTS, "finds": found["value"] == "lag", "workers": found["value"] in _WORKERS}[found["name"]]


_WORKERS = ("1", "2", "3", "4")
