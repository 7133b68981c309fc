"""Generates the schedules to try: all schedules with one disturbance, and then random mixtures of several disturbances. No schedule is run
here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from groundstate.clock import SeededDice
from groundstate.testing.simulate.crash_plan import HINTS, Move, Schedule
from groundstate.testing.simulate.crash_point import Crossing
from groundstate.testing.simulate.fake_provider import Mood
from groundstate.testing.simulate.simulation import Stage

CLOCK_SHARE = 0.5  # share of the mixtures in which the clock moves, if the lab's clock declares any moves
GOLDEN = (5**0.5 - 1) / 2  # the golden ratio minus 1, which spreads numbers evenly
LOCK_LOST = ("unlock", "freeze")
IN_THE_AIR = ("call", "done", "answered", "lookup", "found")
MISCHIEF = tuple(one for one in HINTS if one != "told")


@dataclass(frozen=True)
class CleanRun:
    """What is known from the clean run, which has no disturbances. Crossings (the places where a program can be killed) are given by
    number.

    deaths: the crossings at which a kill leaves another state than a kill at the crossing before.
    between: the crossings at which another program's transaction can have another effect than at the crossing before.
    told: the crossings at which a leap of the clock can matter, since a clock was read just before, or a call or lookup is made.
    leaps, suspends: the numbers of leaps and of suspensions that the lab's clock declares.
    """

    crossings: Sequence[Crossing]
    calls: int
    sync_calls: bool  # whether some call is sync: its thread can bring an answer after the time-out
    has_lookups: bool
    deaths: Sequence[int]
    between: Sequence[int]
    told: Sequence[int] = ()
    leaps: int = 0
    suspends: int = 0

    @property
    def count(self) -> int:
        return len(self.crossings)


def summarise_clean_run(stage: Stage, *, locks_rows: bool) -> CleanRun:
    """Return the summary of this clean run.

    locks_rows: False if a transaction locks the whole database, as on SQLite.
    """
    calls = [spec.call for some in stage.specs for spec in some if spec.call is not None]
    marks = stage.marks or []
    return CleanRun(
        crossings=stage.crossings,
        calls=stage.calls,
        sync_calls=any(not call.function.is_async for call in calls),
        has_lookups=any(call.lookup is not None for call in calls),
        deaths=[number for number in range(1, len(marks) + 1) if number == 1 or marks[number - 1] != marks[number - 2]],
        between=list(_crossings_after_statements(stage.crossings, locks_rows=locks_rows)),
        told=[one.number for one in stage.crossings if one.told or one.kind in IN_THE_AIR],
        leaps=len(stage.clock.leaps),
        suspends=len(stage.clock.suspends),
    )


def _crossings_after_statements(crossings: Sequence[Crossing], *, locks_rows: bool) -> Iterator[int]:
    """Yield the number of the first crossing after each statement. If `locks_rows` is False, crossings inside a transaction do not
    count.
    """
    fresh = True
    for crossing in crossings:
        if fresh and (locks_rows or not crossing.inside):
            yield crossing.number
            fresh = False
        if crossing.kind in ("statement", "commit"):
            fresh = True


def single_schedules(seen: CleanRun, meanwhile: int) -> Iterator[Schedule]:
    """Yield all schedules with one disturbance, such as a kill, another program's transaction, or a mood (what happens to one call).
    meanwhile: the number of transactions of other programs.
    """
    for number in seen.deaths:
        yield Schedule((Move(number, "die"),))
    for which in range(1, meanwhile + 1):
        for number in seen.between:
            yield Schedule((Move(number, "meanwhile", which),))
    for kind, which in _clock_moves(seen):
        for number in seen.told:
            yield Schedule((Move(number, kind, which),))
    for call in range(1, seen.calls + 1):
        for mood in possible_moods(seen):
            yield Schedule(moods=((call, mood),))
    for hints in MISCHIEF:
        yield Schedule(hints=hints)
    if seen.has_lookups:
        yield Schedule(lookups_lag=True)
    yield Schedule(workers=2)


def _clock_moves(seen: CleanRun) -> list[tuple[str, int]]:
    return [("leap", which) for which in range(1, seen.leaps + 1)] + [("suspend", which) for which in range(1, seen.suspends + 1)]


def possible_moods(seen: CleanRun) -> list[Mood]:
    """Return the moods (what can happen to a call) that are possible for the calls of this app."""
    in_threads = (Mood.LATE_ANSWER, Mood.STUCK)
    return [mood for mood in Mood if mood is not Mood.DONE and (mood not in in_threads or seen.sync_calls)]


def mixed_schedules(seen: CleanRun, meanwhile: int, dice: SeededDice) -> Iterator[Schedule]:
    """Yield random schedules without end, more than a third of them with two kills.

    Some have only one disturbance, such as a switch of workers: `single_schedules` leaves out such disturbances, since they are too many.
    """
    places = [number for number in range(1, seen.count + 1) if _can_lost_lock_matter(seen, number)]
    clock = _clock_moves(seen)
    while True:
        if clock and dice.random() < CLOCK_SHARE:
            yield _add_clock_moves(
                _draw_two_kills(seen, dice) if dice.random() < 0.5 else _draw_mixed_schedule(seen, meanwhile, dice), seen, clock, dice
            )
            continue
        drawn = dice.random()
        if drawn < 0.35:
            yield _draw_two_kills(seen, dice)
        elif drawn < 0.45 and seen.calls:
            yield Schedule((Move(dice.choice(places), dice.choice(LOCK_LOST)),))
        elif drawn < 0.55:
            yield Schedule((Move(dice.randint(1, 2 * seen.count), "switch"),), workers=2)
        else:
            yield _draw_mixed_schedule(seen, meanwhile, dice)


def _draw_two_kills(seen: CleanRun, dice: SeededDice) -> Schedule:
    """Draw a schedule that kills the worker, and then the worker that was started in its place. The second crossing is drawn as a distance
    from the first.
    """
    first = dice.choice(seen.deaths)
    return Schedule((Move(first, "die"), Move(first + dice.randint(1, seen.count), "die")))


def _add_clock_moves(one: Schedule, seen: CleanRun, clock: Sequence[tuple[str, int]], dice: SeededDice) -> Schedule:
    """Return the schedule with one or two random moves of the clock added."""
    moved = [Move(dice.randint(1, 2 * seen.count), *dice.choice(clock)) for _ in range(dice.choice((1, 1, 2)))]
    return replace(one, moves=tuple(sorted((*one.moves, *moved))))


def _draw_mixed_schedule(seen: CleanRun, meanwhile: int, dice: SeededDice) -> Schedule:
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
    # A worker that lost its lock may still run threads, and a call that hangs in a thread may be made twice (hazard 6): STUCK is left out.
    alone = not any(move.kind in LOCK_LOST for move in moves)
    known = [mood for mood in possible_moods(seen) if alone or mood is not Mood.STUCK]
    chosen = [(call, dice.choice(known)) for call in range(1, 2 * seen.calls + 1) if dice.random() < 0.3]
    return Schedule(
        tuple(sorted(moves)),
        tuple(chosen),
        hints=dice.choice(MISCHIEF) if dice.random() < 0.2 else "told",
        lookups_lag=seen.has_lookups and dice.random() < 0.3,
        workers=workers,
    )


def order_evenly(schedules: Sequence[Schedule], dice: SeededDice) -> list[Schedule]:
    """Return the schedules in an order in which the first n schedules, for every n, are a fair sample of all.

    The sample contains every sort of schedule in proportion, and the start, middle and end of each sort.
    """
    sorts: dict[str, list[Schedule]] = {}
    for one in schedules:
        sorts.setdefault(one.sort, []).append(one)
    placed: list[tuple[float, Schedule]] = []
    for some in sorts.values():
        first, begins = dice.random(), dice.random()
        # Multiples of the golden ratio modulo 1 are spread evenly, however many are taken.
        steps = sorted(range(len(some)), key=lambda step: (first + step * GOLDEN) % 1.0)
        placed += [((step + begins) / len(some), one) for step, one in zip(steps, some, strict=True)]
    return [one for _, one in sorted(placed, key=lambda place: place[0])]


def _can_lost_lock_matter(seen: CleanRun, number: int) -> bool:
    """Return whether it is worth trying to take a worker's lock away at this crossing.

    A crossing before a statement is not worth trying: the effect would be the same as at the end of the statement's transaction.
    """
    return seen.crossings[number - 1].kind != "statement"
