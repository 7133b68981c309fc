"""What is done in one run: how much, to how many, by which dice. Does nothing itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from random import Random

KILLS = ("kill", "kill two", "kill all", "kill a stopped one")
# To how many workers' deaths each of the other troubles comes once, on the mean; no run is without any of them.
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
IN_A_RUN = 40  # from so many kills on, a chunk has at least one of each trouble, and two of each deploy


@dataclass(frozen=True)
class Plan:
    """One run; the same seed gives the same dice (not the same moments: those are the machine's).

    store: sqlite or postgres. kills: of workers; None: until the time is over. minutes: at most; None: until the kills were made.
    workers: at once. under_way: orders on their way at once. a_second: kills, at most. settles_within_s: for so long at the end all
    may take to become quiet. keep: a folder for what the run wrote. only: the troubles beside the kills; where none is named, all.
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


def troubles(store: str) -> dict[str, int]:
    """What is done to a store and its workers beside the kills: to how many kills each comes once."""
    return ONE_IN | ONE_IN_POSTGRES if store == "postgres" else dict(ONE_IN)


def chunk(dice: Random, kills: int, store: str, only: Collection[str] = ()) -> list[str]:
    """What is done, one after the other: at least so many kills, and the troubles between them, all or some."""
    done = dice.choices(KILLS, (86, 8, 1.5, 3), k=kills)
    for trouble, one_in in troubles(store).items():
        if only and trouble not in only:
            continue
        count = max(round(kills / one_in * dice.uniform(0.7, 1.3)), 2 if trouble in FORWARD_AND_BACK and kills >= IN_A_RUN else 1)
        for place in [dice.randrange(len(done) + 1) for _ in range(count)]:
            done.insert(place, trouble)
    return done


def chunks(plan: Plan, dice: Random) -> Iterator[list[str]]:
    """All that is done in a run, without an end: who asks stops when the plan is fulfilled."""
    for size in repeat(min(plan.kills or CHUNK, CHUNK)):
        yield chunk(dice, size, plan.store, plan.only)
