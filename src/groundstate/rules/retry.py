"""When a failed or doubtful attempt is looked at again. Pure: the time, the count and the dice are arguments."""

from __future__ import annotations

from datetime import datetime, timedelta

from groundstate.rules.policy import Retry

UNKNOWN_HELD_AFTER = timedelta(days=1)  # a find that answers Unknown for so long ends held, unless give_up_after says otherwise


def backoff(retry: Retry, failures: int, dice: float) -> timedelta:
    """The wait after so many failures: doubling from `first` to `longest`, times 0.5 to 1 by `dice` in [0, 1)."""
    doubled = min(retry.first.total_seconds() * 2.0 ** min(max(failures - 1, 0), 62), retry.longest.total_seconds())
    return timedelta(seconds=doubled * (0.5 + dice / 2))


def next_try(retry: Retry, failures: int, now: datetime, dice: float, retry_after: timedelta | None = None) -> datetime:
    """When it is tried again. What the endpoint asked for (`retry_after`) counts where it is later."""
    wait = backoff(retry, failures, dice)
    return now + max(wait, retry_after or timedelta())


def last_try_used(retry: Retry, failures: int, since: datetime, now: datetime) -> bool:
    """Whether no further try is made."""
    if retry.times is not None and failures >= retry.times:
        return True
    return retry.give_up_after is not None and now - since >= retry.give_up_after


def next_question(  # noqa: PLR0913  # all of it is an argument, as everywhere here
    retry: Retry,
    deadline: datetime,
    settle_after: timedelta,
    since: datetime,
    now: datetime,
    dice: float,
    *,
    absent_to: datetime | None = None,
) -> datetime:
    """When a find is asked again: by the doubt's age, so that no count is kept; not later than when Absent can first be believed.

    absent_to: when the question was asked to which Absent came: where it could be believed by the time it came, it is asked for at once.
    """
    if absent_to is not None and absent_to <= deadline + settle_after < now:
        return now
    age = max(now - since, retry.first)
    wait = min(max(age / 4, retry.first), retry.longest) * (0.5 + dice / 2)
    believable = deadline + settle_after + timedelta(milliseconds=1)
    return min(now + wait, believable) if believable > now else now + wait
