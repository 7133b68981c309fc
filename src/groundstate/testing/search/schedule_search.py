"""Which schedules are tried: every single crossing, then pairs and mixtures drawn by a seed within a budget. It runs nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from groundstate.testing.simulate.crash_plan import HINTS, Move, Schedule
from groundstate.testing.simulate.crash_point import Crossing
from groundstate.testing.simulate.fake_provider import Mood
from groundstate.testing.simulate.simulation import Stage

CLOCK_SHARE = 0.5  # share of the mixtures in which the clock moves, if it moves at all
GOLDEN = (5**0.5 - 1) / 2  # the golden ratio minus 1
LOCK_LOST = ("unlock", "freeze")
IN_THE_AIR = ("call", "done", "answered", "lookup", "found")
MISCHIEF = tuple(one for one in HINTS if one != "told")


@dataclass(frozen=True)
class Seen:
    """What the clean run, which has no disturbances, showed.

    deaths: the crossings at which a kill leaves another state than at the crossing before.
    between: the crossings at which a transaction of another program would find or make another state than at the crossing before.
    told: the crossings before which a clock was read, and those of calls and lookups: there a leap of the clock can make a difference.
    leaps, suspends: how many leaps and suspensions the lab's clock declares.
    """

    crossings: Sequence[Crossing]
    calls: int
    sync_calls: bool  # whether some call is made in a thread, whose answer can come late
    has_lookups: bool
    deaths: Sequence[int]
    between: Sequence[int]
    told: Sequence[int] = ()
    leaps: int = 0
    suspends: int = 0

    @property
    def count(self) -> int:
        return len(self.crossings)


def seen(stage: Stage, *, locks_rows: bool) -> Seen:
    """Return what this clean run showed.

    locks_rows: False where a transaction sees nothing of others that run beside it.
    """
    calls = [spec.call for some in stage.specs for spec in some if spec.call is not None]
    marks = stage.marks or []
    return Seen(
        crossings=stage.crossings,
        calls=stage.calls,
        sync_calls=any(not call.function.is_async for call in calls),
        has_lookups=any(call.lookup is not None for call in calls),
        deaths=[number for number in range(1, len(marks) + 1) if number == 1 or marks[number - 1] != marks[number - 2]],
        between=list(_between(stage.crossings, locks_rows=locks_rows)),
        told=[one.number for one in stage.crossings if one.told or one.kind in IN_THE_AIR],
        leaps=len(stage.clock.leaps),
        suspends=len(stage.clock.suspends),
    )


def _between(crossings: Sequence[Crossing], *, locks_rows: bool) -> Iterator[int]:
    """Yield the first crossing after each statement; where transactions are isolated from each other, only the first after each
    transaction.
    """
    fresh = True
    for crossing in crossings:
        if fresh and (locks_rows or not crossing.inside):
            yield crossing.number
            fresh = False
        if crossing.kind in ("statement", "commit"):
            fresh = True


def singles(seen: Seen, meanwhile: int) -> Iterator[Schedule]:
    """Yield all schedules with one disturbance, such as a kill or another program's transaction at a crossing, or one mood for one call."""
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
    if seen.has_lookups:
        yield Schedule(lookups_lag=True)
    yield Schedule(workers=2)


def _clock_moves(seen: Seen) -> list[tuple[str, int]]:
    return [("leap", which) for which in range(1, seen.leaps + 1)] + [("suspend", which) for which in range(1, seen.suspends + 1)]


def moods(seen: Seen) -> list[Mood]:
    """Return the moods that can occur for the calls of this app."""
    in_threads = (Mood.LATE_ANSWER, Mood.STUCK)
    return [mood for mood in Mood if mood is not Mood.DONE and (mood not in in_threads or seen.sync_calls)]


def mixtures(seen: Seen, meanwhile: int, dice: random.Random) -> Iterator[Schedule]:
    """Yield random schedules with several disturbances without end, more than a third of them pairs of kills.

    They include single disturbances, such as a switch of workers, that are too many to be tried all.
    """
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
    """Draw a schedule that kills the worker and then its restart; the second crossing is counted from the first kill."""
    first = dice.choice(seen.deaths)
    return Schedule((Move(first, "die"), Move(first + dice.randint(1, seen.count), "die")))


def _by_the_clock(one: Schedule, seen: Seen, clock: Sequence[tuple[str, int]], dice: random.Random) -> Schedule:
    """Add one or two moves of the clock to the schedule."""
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
    # The threads of a worker that lost its lock may still be running; a call that hangs there may be done twice (hazard 6).
    alone = not any(move.kind in LOCK_LOST for move in moves)
    known = [mood for mood in moods(seen) if alone or mood is not Mood.STUCK]
    chosen = [(call, dice.choice(known)) for call in range(1, 2 * seen.calls + 1) if dice.random() < 0.3]
    return Schedule(
        tuple(sorted(moves)),
        tuple(chosen),
        hints=dice.choice(MISCHIEF) if dice.random() < 0.2 else "told",
        lookups_lag=seen.has_lookups and dice.random() < 0.3,
        workers=workers,
    )


def evenly(schedules: Sequence[Schedule], dice: random.Random) -> list[Schedule]:
    """Order the schedules so that each prefix holds a fair share of all sorts, and of each sort as many from its start as from its end."""
    sorts: dict[str, list[Schedule]] = {}
    for one in schedules:
        sorts.setdefault(one.sort, []).append(one)
    placed: list[tuple[float, Schedule]] = []
    for some in sorts.values():
        first, begins = dice.random(), dice.random()
        # Multiples of the golden ratio modulo 1 lie far apart, however many of them there are.
        steps = sorted(range(len(some)), key=lambda step: (first + step * GOLDEN) % 1.0)
        placed += [((step + begins) / len(some), one) for step, one in zip(steps, some, strict=True)]
    return [one for _, one in sorted(placed, key=lambda place: place[0])]


def _worth_a_look(seen: Seen, number: int) -> bool:
    """Return whether a lost lock can matter at this crossing; inside of a transaction it has the same effect as at its end."""
    return seen.crossings[number - 1].kind != "statement"
