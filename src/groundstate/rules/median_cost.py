"""Keeps what an activity usually costs, so that one stall does not count as its cost. Pure."""

from __future__ import annotations

from collections import deque
from statistics import median

OF = 3  # times of which the median is taken


class Usual:
    """Usual keeps how long an activity usually takes, in seconds: the median of its last three times, with 0 for times before the first.

    Pauses are computed from such a cost. A disk or a machine that stood still for a second must not stretch a pause to a multiple of that.
    """

    def __init__(self) -> None:
        self._last = deque([0.0] * OF, maxlen=OF)

    @property
    def seconds(self) -> float:
        """Return how long the activity usually takes, in seconds."""
        return median(self._last)

    def took(self, seconds: float) -> float:
        """Record how many seconds the activity took this time, and return how many it usually takes."""
        self._last.append(seconds)
        return self.seconds
