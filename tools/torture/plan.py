"""The plan of one run: how many workers are killed, which other troubles occur, and how often; all drawn by a seed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from random import Random

KILLS = ("kill", "kill two", "kill all", "kill a stopped one")
# To how many kills of workers each other trouble comes once on average; each run has at least one of each.
ONE_IN = {
    "stop past deadlines": 60,
    "stop for a moment": 50,
    "drain": 40,
    "start cold": 150,
    "fill the disk": 120,
    "deploy": 400,
    "put a copy back": 500,
    "delete an attempt": 60,
    "move an occurrence": 40,
    "roll another service": 400,
    "roll another occurrence": 400,
    "roll a wider condition": 400,
}
ONE_IN_POSTGRES = {
    "cut connections": 12,
    "stall connections": 60,
    "kill PostgreSQL": 150,
    "kill a backend": 120,
    "cut the power": 300,
    "restart PostgreSQL": 250,
}
FORWARD_AND_BACK = ("deploy", "roll another service", "roll another occurrence", "roll a wider condition")
CHUNK = 400  # kills that are planned at once
IN_A_RUN = 40  # from this many kills on, a chunk has at least two of each deploy; a smaller one has at least one of each trouble


@dataclass(frozen=True)
class Plan:
    """One run; the same seed gives the same random numbers, but not the same timing, which the machine decides.

    store: "sqlite" or "postgres".
    kills: how many workers are killed; None means until the time is over.
    minutes: the longest duration; None means until the kills were made.
    workers: how many run at once.
    under_way: how many orders are on their way at once.
    a_second: the highest rate of kills.
    settles_within_s: seconds that the shop may take at the end to finish all work.
    keep: a folder for what the run wrote.
    only: the troubles beside the kills; an empty one means all.
    """

    store: str
    kills: int | None = 100
    minutes: float | None = None
    seed: int = 1
    workers: int = 6
    under_way: int = 250
    a_second: float = 25.0
    settles_within_s: float = 180.0
    keep: Path | None = None
    only: tuple[str, ...] = ()


def trouble_intervals(store: str) -> dict[str, int]:
    """Map each trouble beside the kills to the number of kills in which it occurs once, for this store."""
    return ONE_IN | ONE_IN_POSTGRES if store == "postgres" else dict(ONE_IN)


def draw_actions(dice: Random, kills: int, store: str, only: Collection[str] = ()) -> list[str]:
    """Return a random sequence of actions: at least `kills` kills, with all troubles, or those in `only`, between them."""
    done = dice.choices(KILLS, (86, 8, 1.5, 3), k=kills)
    for trouble, one_in in trouble_intervals(store).items():
        if only and trouble not in only:
            continue
        count = max(round(kills / one_in * dice.uniform(0.7, 1.3)), 2 if trouble in FORWARD_AND_BACK and kills >= IN_A_RUN else 1)
        for place in [dice.randrange(len(done) + 1) for _ in range(count)]:
            done.insert(place, trouble)
    return done


def draw_actions_forever(plan: Plan, dice: Random) -> Iterator[list[str]]:
    """Yield the actions of a run without end; the caller stops when the plan is fulfilled."""
    for size in repeat(min(plan.kills or CHUNK, CHUNK)):
        yield draw_actions(dice, size, plan.store, plan.only)
