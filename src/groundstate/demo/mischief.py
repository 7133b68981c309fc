"""How the payment gateway treats a request. The functions are pure: their results depend only on the seed, the order and the number of the
try.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from random import Random


class Trick(enum.Enum):
    """A way in which the gateway treats a POST of a charge."""

    PROMPT = "charges, and answers"
    SLOW = "takes its time, charges, and answers"
    BUSY = "does nothing, and answers 503"
    LATE_ANSWER = "charges at once, and answers when the client has given up"
    LATE_CHARGE = "charges when the client has given up"
    DROP = "charges, and drops the connection instead of answering"


@dataclass(frozen=True)
class Treatment:
    """How the gateway treats one POST of a charge.

    before, after: seconds for which the gateway waits before and after it charges the card.
    hidden: seconds after the charge during which a lookup does not show the charge.
    """

    trick: Trick
    before: float
    after: float
    hidden: float


CLIENT_GIVES_UP = 2.0  # seconds: the timeout of the shop's client for a charge
LONGEST_HIDDEN = 1.0  # seconds: the longest time after a charge during which a lookup does not show it
_WEIGHTS = {Trick.PROMPT: 72, Trick.SLOW: 14, Trick.BUSY: 2, Trick.LATE_ANSWER: 4, Trick.LATE_CHARGE: 4, Trick.DROP: 4}


def choose_treatment(seed: int, order: int, number: int) -> Treatment:
    """Return how the gateway treats a POST for this order. number: 1 for the first POST with the order's key, 2 for the second, ..."""
    dice = Random(f"{seed} {order} {number}")
    trick = dice.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    before = {
        Trick.PROMPT: dice.uniform(0.02, 0.3),
        Trick.SLOW: dice.uniform(0.4, 1.4),
        Trick.LATE_CHARGE: CLIENT_GIVES_UP + dice.uniform(0.1, 0.6),
    }.get(trick, 0.02)
    after = CLIENT_GIVES_UP + dice.uniform(0.3, 1.5) if trick is Trick.LATE_ANSWER else 0.0
    hidden = dice.choice([0.0, 0.0, dice.uniform(0.2, LONGEST_HIDDEN)])
    return Treatment(trick, before, after, hidden)


def is_card_declined(seed: int, order: int) -> bool:
    """Return whether the card of this order is declined. For a given seed and order, the result never changes."""
    return Random(f"{seed} card {order}").random() < 0.06


def mail_delay_s(seed: int, order: str) -> float:
    """Return the seconds that the mail server waits before it records a mail, and again after it has recorded the mail. A few mails have a
    long delay.
    """
    dice = Random(f"{seed} mail {order}")
    return dice.uniform(0.5, 1.2) if dice.random() < 0.05 else dice.uniform(0.01, 0.08)
