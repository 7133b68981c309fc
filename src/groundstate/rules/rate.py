"""Counts the calls begun in a span of time, in slices of that span, and decides how many more calls may begin.

Calls are counted when they begin, and count for one span, whether they still run or not. Pure: the time is an argument, in microseconds
since the epoch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

SLICES = 20  # number of slices of a span. A call counts as begun at the end of its slice, so it counts for at most one slice too long
AHEAD = 1_000_000  # microseconds by which the time that another worker wrote may be ahead of this worker's time
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Rate:
    """A Rate allows at most `times` calls in any span of time of length `each`.

    Args:
        times: the number of calls, at least 1.
        each: the length of the span, such as `timedelta(seconds=1)`.
    """

    times: int
    each: timedelta


@dataclass(frozen=True)
class Counted:
    """A Counted holds how many calls were begun in each slice of time.

    by_end: the number of calls, by the end of the slice in microseconds since the epoch.
    """

    by_end: Mapping[int, int]

    @property
    def total_calls(self) -> int:
        return sum(self.by_end.values())


def microseconds_since_epoch(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def datetime_from_microseconds(microsecond: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microsecond)


def read_call_count(written: str | None, rate: Rate, now: int) -> Counted:
    """Return the calls in the stored text that still count at `now`. written: the stored text; None if no call was counted yet.

    An entry more than a second in the future was written before the clock was set back. Its calls count as begun now, so that the rate is
    never exceeded, and the next call waits for one span and a second at most. A text that cannot be read counts as `rate.times` calls.
    """
    end = _end_of_slice(rate, now)
    try:
        before = {} if written is None else {int(one): int(count) for one, count in json.loads(written).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        before = {end: rate.times}
    still: dict[int, int] = {}
    for written_end, count in before.items():
        one = written_end if written_end <= end + AHEAD else end
        if one + _span_in_microseconds(rate) > now and count > 0:
            still[one] = still.get(one, 0) + count
    return Counted(still)


def calls_left(found: Counted, rate: Rate) -> int:
    """Return how many more calls the rate allows now, given the calls that still count."""
    return max(rate.times - found.total_calls, 0)


def count_with_more_calls(found: Counted, rate: Rate, now: int, calls: int) -> Counted:
    """Return the count after `calls` more calls were begun at `now`."""
    if not calls:
        return found
    end = _end_of_slice(rate, now)
    return Counted({**found.by_end, end: found.by_end.get(end, 0) + calls})


def next_call_allowed_at(found: Counted, rate: Rate) -> int | None:
    """Return when the next call may be begun, in microseconds since the epoch; None if a call may be begun now."""
    over = found.total_calls - rate.times
    if over < 0:
        return None
    for end in sorted(found.by_end):
        over -= found.by_end[end]
        if over < 0:
            return end + _span_in_microseconds(rate)
    return None


def all_expired_at(found: Counted, rate: Rate) -> int:
    """Return when the last of the counted calls ceases to count, in microseconds since the epoch."""
    return max(found.by_end, default=0) + _span_in_microseconds(rate)


def count_as_json(found: Counted) -> str:
    """Return the count as the JSON text that is stored, and that `read_call_count` reads."""
    return json.dumps({str(end): count for end, count in sorted(found.by_end.items())}, separators=(",", ":"))


def _span_in_microseconds(rate: Rate) -> int:
    return rate.each // _MICROSECOND


def _end_of_slice(rate: Rate, now: int) -> int:
    width = max(_span_in_microseconds(rate) // SLICES, 1)
    return (now // width + 1) * width
