"""Which schedules are tried: every single crossing, then pairs and mixtures, drawn by a seed within a budget. Runs nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from groundstate.testing.provider import Mood
from groundstate.testing.schedule import Move, Schedule
from groundstate.testing.stage import Crossing

HINTS = ("lost", "doubled", "reordered", "invented")


@dataclass(frozen=True)
class Seen:
    """What a run without mischief was like."""

    crossings: Sequence[Crossing]
    calls: int
    sync_calls: bool  # some call is made in a thread, whose answer can come late
    has_finds: bool

    @property
    def count(self) -> int:
        return len(self.crossings)


def singles(seen: Seen, meanwhile: int) -> Iterator[Schedule]:
    """One thing at each place: a death at every crossing; someone else's transaction at every crossing; each mood for each call."""
    for number in range(1, seen.count + 1):
        yield Schedule((Move(number, "die"),))
    for which in range(1, meanwhile + 1):
        for number in range(1, seen.count + 1):
            yield Schedule((Move(number, "meanwhile", which),))
    for call in range(1, seen.calls + 1):
        for mood in moods(seen):
            yield Schedule(moods=((call, mood),))
    for hints in HINTS:
        yield Schedule(hints=hints)
    if seen.has_finds:
        yield Schedule(finds_lag=True)
    if seen.calls:
        yield from (Schedule((Move(number, "unlock"),)) for number in range(1, seen.count + 1) if _worth_a_look(seen, number))
    yield Schedule(workers=2)
    yield from (Schedule((Move(number, "switch"),), workers=2) for number in range(1, 2 * seen.count + 1))


def moods(seen: Seen) -> list[Mood]:
    """Those that mean something to these calls."""
    return [mood for mood in Mood if mood is not Mood.DONE and (mood is not Mood.LATE_ANSWER or seen.sync_calls)]


def mixtures(seen: Seen, meanwhile: int, dice: random.Random) -> Iterator[Schedule]:
    """For ever: several things at once. Half of them are pairs of deaths."""
    while True:
        yield _pair(seen, dice) if dice.random() < 0.4 else _mixture(seen, meanwhile, dice)


def _pair(seen: Seen, dice: random.Random) -> Schedule:
    """The restart dies too: counted from the first death, within as many crossings as a whole run has."""
    first = dice.randint(1, seen.count)
    return Schedule((Move(first, "die"), Move(first + dice.randint(1, seen.count), "die")))


def _mixture(seen: Seen, meanwhile: int, dice: random.Random) -> Schedule:
    anywhere = 2 * seen.count
    moves = [Move(dice.randint(1, anywhere), "die") for _ in range(dice.choice((0, 1, 1, 2)))]
    if meanwhile and dice.random() < 0.6:
        moves.append(Move(dice.randint(1, seen.count), "meanwhile", dice.randint(1, meanwhile)))
    workers = 1
    if dice.random() < 0.3:
        workers = 2
        moves += [Move(dice.randint(1, anywhere), "switch") for _ in range(dice.randint(1, 4))]
    if seen.calls and dice.random() < 0.15:
        moves.append(Move(dice.randint(1, anywhere), "unlock"))
    if dice.random() < 0.15:
        copy = dice.randint(1, seen.count)
        moves += [Move(copy, "copy"), Move(copy + dice.randint(1, seen.count), "restore")]
    chosen = [(call, dice.choice(moods(seen))) for call in range(1, 2 * seen.calls + 1) if dice.random() < 0.3]
    return Schedule(
        tuple(sorted(moves)),
        tuple(chosen),
        hints=dice.choice(HINTS) if dice.random() < 0.2 else "told",
        finds_lag=seen.has_finds and dice.random() < 0.3,
        workers=workers,
    )


def _worth_a_look(seen: Seen, number: int) -> bool:
    """A lock that is lost matters around calls and commits; in the middle of a transaction it is like at its end."""
    return seen.crossings[number - 1].kind != "statement"
