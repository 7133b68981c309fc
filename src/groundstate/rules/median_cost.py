"""Computes the usual duration of an activity as a median, so that one stall does not change it. It reads no clock."""

from __future__ import annotations

from collections import deque
from statistics import median

MEDIAN_OF = 3  # number of durations of which the median is taken


class UsualDuration:
    """UsualDuration is the median of an activity's last three durations, in seconds; a duration not yet recorded counts as 0.

    Pauses are computed as a multiple of the median, so that one stall of the disk or the machine does not lengthen the pauses.
    """

    def __init__(self) -> None:
        self._last = deque([0.0] * MEDIAN_OF, maxlen=MEDIAN_OF)

    @property
    def seconds(self) -> float:
        """Return how long the activity usually takes, in seconds."""
        return median(self._last)

    def record(self, seconds: float) -> float:
        """Record how many seconds the activity took this time, and return the usual duration in seconds."""
        self._last.append(seconds)
        return self.seconds
