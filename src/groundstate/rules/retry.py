"""Computes when an attempt that failed or is in doubt is processed again. Pure: the time, the count and the random number are arguments."""

from __future__ import annotations

from datetime import datetime, timedelta

from groundstate.rules.policy import Retry

UNKNOWN_HELD_AFTER = timedelta(days=1)  # a lookup that answers Unknown for this long leads to a held attempt, unless give_up_after is set


def backoff(retry: Retry, failures: int, dice: float) -> timedelta:
    """Return the wait after this many failures. It doubles from `first` to `longest`, and is multiplied by 0.5 to 1 by `dice` in [0, 1)."""
    doubled = min(retry.first.total_seconds() * 2.0 ** min(max(failures - 1, 0), 62), retry.longest.total_seconds())
    return timedelta(seconds=doubled * (0.5 + dice / 2))


def next_try(retry: Retry, failures: int, now: datetime, dice: float, retry_after: timedelta | None = None) -> datetime:
    """Return when an attempt is tried again. The wait that the service asked for (`retry_after`) counts where it is longer than the
    backoff.
    """
    wait = backoff(retry, failures, dice)
    return now + max(wait, retry_after or timedelta())


def last_try_used(retry: Retry, failures: int, since: datetime, now: datetime) -> bool:
    """Return whether no further try is made, because of the number of failures or of the time since the first begin."""
    if retry.times is not None and failures >= retry.times:
        return True
    return retry.give_up_after is not None and now - since >= retry.give_up_after


def next_question(  # noqa: PLR0913  # all of it is an argument, since these functions read no state
    retry: Retry,
    deadline: datetime,
    settle_after: timedelta,
    since: datetime,
    now: datetime,
    dice: float,
    *,
    absent_to: datetime | None = None,
) -> datetime:
    """Return when a lookup is asked again: by the age of the doubt, so that no count is stored, and not later than Absent can first be
    believed.

    absent_to: when a question was asked to which Absent came. If it was asked too early for Absent to be believed, and a question asked now
    is not, the lookup is asked again at once.
    """
    if absent_to is not None and absent_to <= deadline + settle_after < now:
        return now
    age = max(now - since, retry.first)
    wait = min(max(age / 4, retry.first), retry.longest) * (0.5 + dice / 2)
    believable = deadline + settle_after + timedelta(milliseconds=1)
    return min(now + wait, believable) if believable > now else now + wait
