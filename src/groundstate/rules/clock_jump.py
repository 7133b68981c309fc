"""Adjusts the times of an attempt after the clock that they refer to was set. Pure: the size of the jump is an argument."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from groundstate.rules.attempt import Attempt

NOTICED = timedelta(seconds=1)  # a smaller jump may just be the time that reading two clocks takes


def with_times_adjusted(attempt: Attempt, by: timedelta, now: datetime) -> Attempt:
    """Return the attempt with its times adjusted to the clock as it is now: what is left of each wait stays what it was.

    The deadline is never before `now`: one that has passed is treated as if it had passed just now, whichever clock was wrong. `since` and
    `first_at` never move forward: what looks like a jump ahead may be a machine that was paused, with a clock that did not notice.
    """
    back = min(by, timedelta())
    return replace(
        attempt,
        since=attempt.since + back,
        first_at=attempt.first_at + back,
        next_at=None if attempt.next_at is None else attempt.next_at + by,
        deadline=max(attempt.deadline + by + NOTICED, now),
    )
