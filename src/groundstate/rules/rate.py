"""Counts the calls begun in a span of time, in slices of it, and decides how many more may begin. Pure: the time is an argument, in
microseconds since the epoch.

A count says how many calls were begun before a moment, which stays true whatever happens afterwards: it does not claim that anything runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

SLICES = 20  # slices of a span: a call counts from the end of its slice, so at most one slice of the span is lost
AHEAD = 1_000_000  # microseconds by which another worker's reading of the database's clock may be ahead of ours
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Rate:
    """A Rate allows at most `times` calls in any span of time of length `each`.

    Args:
        times: the number of calls, at least 1.
        each: the span, such as `timedelta(seconds=1)`.
    """

    times: int
    each: timedelta


@dataclass(frozen=True)
class Counted:
    """Counted holds the numbers of calls begun in the last span, by the end of their slice in microseconds since the epoch."""

    by_end: Mapping[int, int]

    @property
    def calls(self) -> int:
        return sum(self.by_end.values())


def microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def datetime_from_microseconds(microsecond: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microsecond)


def read_call_count(written: str | None, rate: Rate, now: int) -> Counted:
    """Return the calls that still count at `now`, from the stored text; None means that nothing was counted yet.

    An entry more than a second in the future dates from before the clock was set back: it counts as begun just now, so that the rate is
    never exceeded, and no call waits for longer than one span and that second. A text that cannot be read counts as a full span of calls.
    """
    end = _end_of_slice(rate, now)
    try:
        before = {} if written is None else {int(one): int(count) for one, count in json.loads(written).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        before = {end: rate.times}
    still: dict[int, int] = {}
    for written_end, count in before.items():
        one = written_end if written_end <= end + AHEAD else end
        if one + _span(rate) > now and count > 0:
            still[one] = still.get(one, 0) + count
    return Counted(still)


def calls_left(found: Counted, rate: Rate) -> int:
    """Return how many calls may be begun now."""
    return max(rate.times - found.calls, 0)


def count_with_more_calls(found: Counted, rate: Rate, now: int, calls: int) -> Counted:
    """Return the count with so many more `calls`, begun at `now`."""
    if not calls:
        return found
    end = _end_of_slice(rate, now)
    return Counted({**found.by_end, end: found.by_end.get(end, 0) + calls})


def free_at(found: Counted, rate: Rate) -> int | None:
    """Return when the next call may be begun, in microseconds since the epoch; None where one may be begun now."""
    over = found.calls - rate.times
    if over < 0:
        return None
    for end in sorted(found.by_end):
        over -= found.by_end[end]
        if over < 0:
            return end + _span(rate)
    return None


def all_expired_at(found: Counted, rate: Rate) -> int:
    """Return the time, in microseconds since the epoch, from which none of these calls counts any more."""
    return max(found.by_end, default=0) + _span(rate)


def count_as_json(found: Counted) -> str:
    """Return the count as the JSON text that is stored."""
    return json.dumps({str(end): count for end, count in sorted(found.by_end.items())}, separators=(",", ":"))


def _span(rate: Rate) -> int:
    return rate.each // _MICROSECOND


def _end_of_slice(rate: Rate, now: int) -> int:
    width = max(_span(rate) // SLICES, 1)
    return (now // width + 1) * width
