"""Which schedules are tried: every single crossing, then pairs and mixtures, drawn by a seed within a budget. Runs nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from groundstate.testing.crossing import Crossing
from groundstate.testing.provider import Mood
from groundstate.testing.schedule import HINTS, Move, Schedule
from groundstate.testing.stage import Stage

CLOCK_SHARE = 0.5  # of the mixtures, where the clock moves at all
GOLDEN = (5**0.5 - 1) / 2
LOCK_LOST = ("unlock", "freeze")
IN_THE_AIR = ("call", "done", "answered", "find", "found")
MISCHIEF = tuple(one for one in HINTS if one != "told")


@dataclass(frozen=True)
class Seen:
    """What a run without mischief was like.

    deaths: crossings at which a death leaves something else than at the one before. between: those at which someone else's transaction
    would find or make something else than at the one before. told: those between which and the one before a clock was looked at, or
    something left for the outside: where a clock that leaps makes a difference. leaps, suspends: how many there are of each.
    """

    crossings: Sequence[Crossing]
    calls: int
    sync_calls: bool  # some call is made in a thread, whose answer can come late
    has_finds: bool
    deaths: Sequence[int]
    between: Sequence[int]
    told: Sequence[int] = ()
    leaps: int = 0
    suspends: int = 0

    @property
    def count(self) -> int:
        return len(self.crossings)


def seen(stage: Stage, *, locks_rows: bool) -> Seen:
    """What this clean run tells. locks_rows: False where a transaction sees nothing of others that go on beside it."""
    calls = [spec.call for some in stage.specs for spec in some if spec.call is not None]
    marks = stage.marks or []
    return Seen(
        crossings=stage.crossings,
        calls=stage.calls,
        sync_calls=any(not call.function.is_async for call in calls),
        has_finds=any(call.find is not None for call in calls),
        deaths=[number for number in range(1, len(marks) + 1) if number == 1 or marks[number - 1] != marks[number - 2]],
        between=list(_between(stage.crossings, locks_rows=locks_rows)),
        told=[one.number for one in stage.crossings if one.told or one.kind in IN_THE_AIR],
        leaps=len(stage.clock.leaps),
        suspends=len(stage.clock.suspends),
    )


def _between(crossings: Sequence[Crossing], *, locks_rows: bool) -> Iterator[int]:
    """The first crossing after each statement; where transactions are apart, after each transaction alone."""
    fresh = True
    for crossing in crossings:
        if fresh and (locks_rows or not crossing.inside):
            yield crossing.number
            fresh = False
        if crossing.kind in ("statement", "commit"):
            fresh = True


def singles(seen: Seen, meanwhile: int) -> Iterator[Schedule]:
    """One thing at each place: a death at every crossing; someone else's transaction at every crossing; each mood for each call."""
    for number in seen.deaths:
        yield Schedule((Move(number, "die"),))
    for which in range(1, meanwhile + 1):
        for number in seen.between:
            yield Schedule((Move(number, "meanwhile", which),))
    for kind, which in _clock_moves(seen):
        for number in seen.told:
            yield Schedule((Move(number, kind, which),))
    for call in range(1, seen.calls + 1):
        for mood in moods(seen):
            yield Schedule(moods=((call, mood),))
    for hints in MISCHIEF:
        yield Schedule(hints=hints)
    if seen.has_finds:
        yield Schedule(finds_lag=True)
    yield Schedule(workers=2)


def _clock_moves(seen: Seen) -> list[tuple[str, int]]:
    return [("leap", which) for which in range(1, seen.leaps + 1)] + [("suspend", which) for which in range(1, seen.suspends + 1)]


def moods(seen: Seen) -> list[Mood]:
    """Those that mean something to these calls."""
    in_threads = (Mood.LATE_ANSWER, Mood.STUCK)
    return [mood for mood in Mood if mood is not Mood.DONE and (mood not in in_threads or seen.sync_calls)]


def mixtures(seen: Seen, meanwhile: int, dice: random.Random) -> Iterator[Schedule]:
    """For ever: several things at once, a third of them pairs of deaths; among them single ones that are too many to be tried all."""
    places = [number for number in range(1, seen.count + 1) if _worth_a_look(seen, number)]
    clock = _clock_moves(seen)
    while True:
        if clock and dice.random() < CLOCK_SHARE:
            yield _by_the_clock(_pair(seen, dice) if dice.random() < 0.5 else _mixture(seen, meanwhile, dice), seen, clock, dice)
            continue
        drawn = dice.random()
        if drawn < 0.35:
            yield _pair(seen, dice)
        elif drawn < 0.45 and seen.calls:
            yield Schedule((Move(dice.choice(places), dice.choice(LOCK_LOST)),))
        elif drawn < 0.55:
            yield Schedule((Move(dice.randint(1, 2 * seen.count), "switch"),), workers=2)
        else:
            yield _mixture(seen, meanwhile, dice)


def _pair(seen: Seen, dice: random.Random) -> Schedule:
    """The restart dies too: counted from the first death, within as many crossings as a whole run has."""
    first = dice.choice(seen.deaths)
    return Schedule((Move(first, "die"), Move(first + dice.randint(1, seen.count), "die")))


def _by_the_clock(one: Schedule, seen: Seen, clock: Sequence[tuple[str, int]], dice: random.Random) -> Schedule:
    """The same, and the clock moves once or twice."""
    moved = [Move(dice.randint(1, 2 * seen.count), *dice.choice(clock)) for _ in range(dice.choice((1, 1, 2)))]
    return replace(one, moves=tuple(sorted((*one.moves, *moved))))


def _mixture(seen: Seen, meanwhile: int, dice: random.Random) -> Schedule:
    anywhere = 2 * seen.count
    moves = [Move(dice.randint(1, anywhere), "die") for _ in range(dice.choice((0, 1, 1, 2)))]
    if meanwhile and dice.random() < 0.6:
        moves.append(Move(dice.randint(1, seen.count), "meanwhile", dice.randint(1, meanwhile)))
    workers = 1
    if dice.random() < 0.3:
        workers = 2
        moves += [Move(dice.randint(1, anywhere), "switch") for _ in range(dice.randint(1, 4))]
    if seen.calls and dice.random() < 0.2:
        moves.append(Move(dice.randint(1, anywhere), dice.choice(LOCK_LOST)))
    if dice.random() < 0.15:
        copy = dice.randint(1, seen.count)
        moves += [Move(copy, "copy"), Move(copy + dice.randint(1, seen.count), "restore")]
    # Of a worker that lost its lock nobody can know what its threads still do: what hangs there may be done twice (hazard 6).
    alone = not any(move.kind in LOCK_LOST for move in moves)
    known = [mood for mood in moods(seen) if alone or mood is not Mood.STUCK]
    chosen = [(call, dice.choice(known)) for call in range(1, 2 * seen.calls + 1) if dice.random() < 0.3]
    return Schedule(
        tuple(sorted(moves)),
        tuple(chosen),
        hints=dice.choice(MISCHIEF) if dice.random() < 0.2 else "told",
        finds_lag=seen.has_finds and dice.random() < 0.3,
        workers=workers,
    )


def evenly(schedules: Sequence[Schedule], dice: random.Random) -> list[Schedule]:
    """In an order of which each beginning has the same share of all sorts, and of each sort as many from its beginning as from its end."""
    sorts: dict[str, list[Schedule]] = {}
    for one in schedules:
        sorts.setdefault(one.sort, []).append(one)
    placed: list[tuple[float, Schedule]] = []
    for some in sorts.values():
        first, begins = dice.random(), dice.random()
        # Multiples of the golden ratio lie far apart, however many there are of them.
        steps = sorted(range(len(some)), key=lambda step: (first + step * GOLDEN) % 1.0)
        placed += [((step + begins) / len(some), one) for step, one in zip(steps, some, strict=True)]
    return [one for _, one in sorted(placed, key=lambda place: place[0])]


def _worth_a_look(seen: Seen, number: int) -> bool:
    """A lock that is lost matters around calls and commits; in the middle of a transaction it is like at its end."""
    return seen.crossings[number - 1].kind != "statement"
