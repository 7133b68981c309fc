"""Adjusts the times of an attempt after somebody set the clock that the times come from. Pure: the size of the jump is an argument."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from groundstate.rules.attempt import Attempt

NOTICED = timedelta(seconds=1)  # the smallest jump that counts: a smaller one may just be the time that reading two clocks takes


def with_times_adjusted(attempt: Attempt, by: timedelta, now: datetime) -> Attempt:
    """Return the attempt with its times moved as far as the clock jumped, so that each remaining wait stays as long as it was.

    The new deadline is never before `now`, since nobody knows whether the clock was right before the jump or after it. `since` and
    `first_at` never move forward: if the machine was paused while another clock ran on, the clock only seems to have jumped forward.

    by: the jump of the clock, negative if the clock was set back.
    """
    back = min(by, timedelta())
    return replace(
        attempt,
        since=attempt.since + back,
        first_at=attempt.first_at + back,
        next_at=None if attempt.next_at is None else attempt.next_at + by,
        deadline=max(attempt.deadline + by + NOTICED, now),
    )
