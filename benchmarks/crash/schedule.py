"""When the worker is killed: by the gateway's count of requests, and not by a clock, so that the quick and the slow meet the same. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

LONGEST_WAIT_S = 0.3  # about what the gateway takes: the kill falls before, in and after the answers
SHARE = 0.8  # of the orders: a contender that loses work sends fewer requests than there are orders, and shall meet every kill


@dataclass(frozen=True)
class Kill:
    """SIGKILL to the whole worker, so long after the gateway saw its so-manyth charge request."""

    after: int
    wait_s: float


def schedule(seed: int, kills: int, orders: int) -> list[Kill]:
    """The kills of a run, in order. The same for every contender.

    Raises:
        ValueError: more kills than requests that surely come.
    """
    last = int(orders * SHARE)
    if kills > last:
        raise ValueError(f"{kills} kills need at least {int(kills / SHARE) + 1} orders, and there are {orders}")
    dice = Random(f"kills {seed}")
    return [Kill(after, dice.uniform(0, LONGEST_WAIT_S)) for after in sorted(dice.sample(range(1, last + 1), kills))]
