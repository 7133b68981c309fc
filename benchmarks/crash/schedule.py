"""The schedule of kills. It goes by the gateway's count of requests instead of a clock, so that quick and slow contenders meet the same.

The functions are pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

LONGEST_WAIT_S = 0.3  # seconds, about the gateway's time for a request, so that kills fall before, during and after answers
SHARE = 0.8  # share of the orders: a contender that loses work sends fewer requests than orders, and must get all kills


@dataclass(frozen=True)
class Kill:
    """A SIGKILL to the whole worker, some time after the gateway received the charge request with this number."""

    after: int
    wait_s: float


def draw_kills(seed: int, kills: int, orders: int) -> list[Kill]:
    """Return the kills of a run in order; they are the same for every contender.

    Raises:
        ValueError: there are more kills than requests that surely arrive.
    """
    last = int(orders * SHARE)
    if kills > last:
        raise ValueError(f"{kills} kills need at least {int(kills / SHARE) + 1} orders, and there are {orders}")
    dice = Random(f"kills {seed}")
    return [Kill(after, dice.uniform(0, LONGEST_WAIT_S)) for after in sorted(dice.sample(range(1, last + 1), kills))]
