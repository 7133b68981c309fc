"""How many calls may be begun in a span of time, counted in slices of it. Pure: the time is an argument, in microseconds of the epoch.

A count says 'so many calls were begun before this moment', which stays true whatever happens afterwards: a fact about the past, and no
mark that anything runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

SLICES = 20  # of a span: so much of it is lost, at most, since what was begun in a slice counts from the slice's end
AHEAD = 1_000_000  # microseconds by which another worker's reading of the database's clock may be ahead of ours
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Rate:
    """At most so many calls in any span of time.

    Args:
        times: how many, at least 1.
        each: the span, such as `timedelta(seconds=1)`.
    """

    times: int
    each: timedelta


@dataclass(frozen=True)
class Counted:
    """Calls begun, by the end of the slice in which they were; those of the last span alone."""

    by_end: Mapping[int, int]

    @property
    def calls(self) -> int:
        return sum(self.by_end.values())


def microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def moment_of(microsecond: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microsecond)


def counted(written: str | None, rate: Rate, now: int) -> Counted:
    """What still counts now. None: nothing was counted yet.

    What lies more than a second in the future is from before the clock was set back: it counts as begun just now, so that there are never
    more than the rate, and nobody waits for longer than one span and that second. What cannot be read counts in full.
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


def left(found: Counted, rate: Rate) -> int:
    """How many calls may be begun now."""
    return max(rate.times - found.calls, 0)


def taken(found: Counted, rate: Rate, now: int, calls: int) -> Counted:
    """With so many more, begun now."""
    if not calls:
        return found
    end = _end_of_slice(rate, now)
    return Counted({**found.by_end, end: found.by_end.get(end, 0) + calls})


def free_at(found: Counted, rate: Rate) -> int | None:
    """When the next call may be begun, where none may now."""
    over = found.calls - rate.times
    if over < 0:
        return None
    for end in sorted(found.by_end):
        over -= found.by_end[end]
        if over < 0:
            return end + _span(rate)
    return None


def until(found: Counted, rate: Rate) -> int:
    """From when on nothing of it counts any more."""
    return max(found.by_end, default=0) + _span(rate)


def said(found: Counted) -> str:
    """As it is written down."""
    return json.dumps({str(end): count for end, count in sorted(found.by_end.items())}, separators=(",", ":"))


def _span(rate: Rate) -> int:
    return rate.each // _MICROSECOND


def _end_of_slice(rate: Rate, now: int) -> int:
    width = max(_span(rate) // SLICES, 1)
    return (now // width + 1) * width
