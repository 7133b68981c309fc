"""What becomes of an attempt's times when somebody sets the clock that they are told by. Pure: how far it leapt is an argument."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from groundstate.rules.attempt import Attempt

NOTICED = timedelta(seconds=1)  # less than this may be the time that reading two clocks takes


def moved(attempt: Attempt, by: timedelta, now: datetime) -> Attempt:
    """The attempt with its times where they stand by the clock as it is now: what is left of each wait stays what it was.

    The deadline is not before now: what has ended is settled as if it had ended just now, whoever measured badly. Nothing becomes younger
    than it may be: what looks like a leap ahead may be a machine that was paused, with a clock that did not notice.
    """
    back = min(by, timedelta())
    return replace(
        attempt,
        since=attempt.since + back,
        first_at=attempt.first_at + back,
        next_at=None if attempt.next_at is None else attempt.next_at + by,
        deadline=max(attempt.deadline + by + NOTICED, now),
    )
