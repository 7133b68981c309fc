"""Computes when an attempt that failed or is in doubt is tried again. Pure: the time, the failures and a random number are arguments."""

from __future__ import annotations

from datetime import datetime, timedelta

from groundstate.rules.policy import Retry

UNKNOWN_HELD_AFTER = timedelta(days=1)  # how long lookups may answer Unknown before the attempt is held, if give_up_after is not set


def backoff(retry: Retry, failures: int, dice: float) -> timedelta:
    """Return the wait after this many failures: it doubles from `retry.first` up to `retry.longest`, and is then shortened at random.

    dice: a random number in [0, 1), which shortens the wait by up to a half.
    """
    doubled = min(retry.first.total_seconds() * 2.0 ** min(max(failures - 1, 0), 62), retry.longest.total_seconds())
    return timedelta(seconds=doubled * (0.5 + dice / 2))


def next_try_at(retry: Retry, failures: int, now: datetime, dice: float, retry_after: timedelta | None = None) -> datetime:
    """Return when an attempt is tried again: after the backoff or the wait that the service asked for, whichever is longer.

    retry_after: the wait that the service asked for, or None. dice: a random number in [0, 1).
    """
    wait = backoff(retry, failures, dice)
    return now + max(wait, retry_after or timedelta())


def is_last_try_used(retry: Retry, failures: int, since: datetime, now: datetime) -> bool:
    """Return whether no further try is allowed, because of the number of failures or of the time since `since`, the first try."""
    if retry.times is not None and failures >= retry.times:
        return True
    return retry.give_up_after is not None and now - since >= retry.give_up_after


def reason_of_last_try(retry: Retry, failures: int) -> str:
    """Return why no further try is allowed, as `is_last_try_used` has found: the number of tries, or else the time for them."""
    if retry.give_up_after is None or (retry.times is not None and failures >= retry.times):
        return "the last try was used"
    return f"give_up_after={retry.give_up_after.total_seconds():g} s had passed since its first try, so that no further one was made"


def next_lookup_at(  # noqa: PLR0913  # many arguments, since a pure function reads no state
    retry: Retry,
    deadline: datetime,
    settle_after: timedelta,
    since: datetime,
    now: datetime,
    dice: float,
    *,
    absent_to: datetime | None = None,
) -> datetime:
    """Return when a lookup is asked again. The wait grows with the time since `since`, but lasts at most until the answer Absent can be
    believed.

    absent_to: when the lookup was last asked, if it answered Absent; else None. If that answer came too early to be believed, and it is no
    longer too early, the lookup is asked again at once. dice: a random number in [0, 1).
    """
    if absent_to is not None and absent_to <= deadline + settle_after < now:
        return now
    age = max(now - since, retry.first)
    wait = min(max(age / 4, retry.first), retry.longest) * (0.5 + dice / 2)
    believable = deadline + settle_after + timedelta(milliseconds=1)
    return min(now + wait, believable) if believable > now else now + wait
