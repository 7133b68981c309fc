"""Restarts that were carried out: where all is dead, what goes on is told by what is left, and one that was left before is not tried again.

What is left is the database and what lies beside it, byte for byte; what the outside has done; what the user's own functions were run for;
and the dice that the next life throws. Only the clock differs, by the milliseconds that the lab's crossings cost.
"""

from __future__ import annotations

import hashlib

NEARLY_S = 0.1  # a host that is so much slower is no other state, where nothing became due meanwhile


class Joined(Exception):
    """What is left was left before, and what came of it is known."""


class Restarts:
    """Of one `crash_everywhere`."""

    def __init__(self) -> None:
        self._begun: dict[bytes, list[float]] = {}

    def was_tried(self, left: object, now_s: float) -> bool:
        """Whether a restart on this began at nearly this time. Else this one is remembered.

        left: of values whose repr tells them apart, and is the same for equal ones.
        """
        begun = self._begun.setdefault(hashlib.sha256(repr(left).encode()).digest(), [])
        if any(abs(now_s - earlier_s) < NEARLY_S for earlier_s in begun):
            return True
        begun.append(now_s)
        return False
