"""Remembers the restarts that were tried. When every process is dead, the state left behind determines the rest of the run.

That state consists of the database with the files beside it, byte for byte; the effects at external services; the runs of the user's own
functions; and the state of the random number generator. The clock is part of it too, but times that differ by less than NEARLY_S count as
equal.
"""

from __future__ import annotations

import hashlib

NEARLY_S = 0.1  # seconds: times of two restarts that differ by less than this count as equal


class RestartAlreadyTried(Exception):
    """Raised to end a run early: an earlier run restarted from an equal state, so the rest of this run is known."""


class Restarts:
    """The restarts of one `crash_everywhere`."""

    def __init__(self) -> None:
        self._begun: dict[bytes, list[float]] = {}

    def was_tried(self, left: object, now_s: float) -> bool:
        """Return whether a restart from this state was tried at nearly the same time of a run. If not, remember this restart.

        left: the state left behind by the dead processes. Two states are equal if their reprs are equal.
        now_s: the time of this restart, in seconds since its run began.
        """
        begun = self._begun.setdefault(hashlib.sha256(repr(left).encode()).digest(), [])
        if any(abs(now_s - earlier_s) < NEARLY_S for earlier_s in begun):
            return True
        begun.append(now_s)
        return False
