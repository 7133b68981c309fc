"""Remembers restarts that were carried out: where every process is dead, the state left behind determines how the run goes on.

That state is the database with the files beside it, byte for byte; the effects at external services; what the user's own functions were run
for; and the random numbers of the next worker incarnation. Only the clock differs, by the milliseconds that the lab's crossings cost.
"""

from __future__ import annotations

import hashlib

NEARLY_S = 0.1  # seconds: a host this much slower is in the same state, where nothing became due meanwhile


class Joined(Exception):
    """Raised to end a run early: an earlier run left the same state, so the rest of the run is known."""


class Restarts:
    """The restarts of one `crash_everywhere`."""

    def __init__(self) -> None:
        self._begun: dict[bytes, list[float]] = {}

    def was_tried(self, left: object, now_s: float) -> bool:
        """Return whether a restart from this state was tried at nearly this time; if not, remember it.

        left: the state, made of values that are equal exactly if their reprs are equal.
        """
        begun = self._begun.setdefault(hashlib.sha256(repr(left).encode()).digest(), [])
        if any(abs(now_s - earlier_s) < NEARLY_S for earlier_s in begun):
            return True
        begun.append(now_s)
        return False
