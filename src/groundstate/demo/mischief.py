"""How the payment gateway treats a request. The functions are pure: the same seed, order and try give the same treatment in each run."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from random import Random


class Trick(enum.Enum):
    """A way to treat the POST of a charge."""

    PROMPT = "charges, and answers"
    SLOW = "takes its time, charges, and answers"
    BUSY = "does nothing, and says so: 503"
    LATE_ANSWER = "charges at once, and answers when the client has given up"
    LATE_CHARGE = "charges when the client has given up"
    DROP = "charges, and drops the connection instead of answering"


@dataclass(frozen=True)
class Treatment:
    """The treatment of one POST.

    before, after: seconds of waiting before and after the charge.
    hidden: seconds for which a lookup does not show the charge.
    """

    trick: Trick
    before: float
    after: float
    hidden: float


CLIENT_GIVES_UP = 2.0  # seconds: the shop's timeout for a charge
LONGEST_HIDDEN = 1.0  # seconds for which a lookup can miss a charge at most
_WEIGHTS = {Trick.PROMPT: 72, Trick.SLOW: 14, Trick.BUSY: 2, Trick.LATE_ANSWER: 4, Trick.LATE_CHARGE: 4, Trick.DROP: 4}


def treatment(seed: int, order: int, number: int) -> Treatment:
    """Return the treatment of the `number`th POST (from 1) for an order."""
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


def declines(seed: int, order: int) -> bool:
    """Return whether the card of this order is declined; the answer for an order is always the same."""
    return Random(f"{seed} card {order}").random() < 0.06


def mail_takes(seed: int, order: str) -> float:
    """Return the seconds that the mail server waits before and after it records a mail; a few mails are slow."""
    dice = Random(f"{seed} mail {order}")
    return dice.uniform(0.5, 1.2) if dice.random() < 0.05 else dice.uniform(0.01, 0.08)
