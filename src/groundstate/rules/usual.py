"""What something costs as a rule, where one stall is not its cost. Pure."""

from __future__ import annotations

from collections import deque
from statistics import median

OF = 3


class Usual:
    """What something takes, in seconds: the median of the last three times, where it took nothing before the first.

    What follows from a cost is a pause. A disk or a machine that stood still for a second must not stretch it to a multiple of that.
    """

    def __init__(self) -> None:
        self._last = deque([0.0] * OF, maxlen=OF)

    @property
    def seconds(self) -> float:
        """What it takes as a rule."""
        return median(self._last)

    def took(self, seconds: float) -> float:
        """It took so long this time; what it takes as a rule."""
        self._last.append(seconds)
        return self.seconds
