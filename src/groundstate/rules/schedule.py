"""Decides which ticks of a schedule are carried out now, and which are left out.

A parameter `mark` is the schedule's cursor: the time of the last tick that was carried out or left out. The cursor and the current time
alone decide which ticks are due. The functions are pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice
from typing import Any, Literal, Protocol

from groundstate.rules.attempt import Terms
from groundstate.rules.policy import Retry
from groundstate.rules.specs import Function

Missed = Literal["none", "latest", "all"]

ON_TIME = timedelta(minutes=1)  # how late a tick may be carried out with missed="none"
COUNTED_MOST = 10_000  # ticks that are left out are counted up to this number


class Timing(Protocol):
    """A Timing computes the times of a schedule's ticks: it is a `Cron` or a `Period`."""

    @property
    def tzinfo(self) -> tzinfo: ...

    def first_tick_after(self, mark: datetime) -> datetime:
        """Return the first tick later than the time `mark`. Raises OverflowError if that is after the year 9999."""
        ...

    def ticks_between_latest_first(self, mark: datetime, now: datetime) -> Iterator[datetime]:
        """Yield the ticks later than the time `mark` and not later than `now`, latest first."""
        ...


@dataclass(frozen=True)
class Period:
    """A Period is a timing whose ticks are `delta` apart, counted from the schedule's cursor (the time of its last tick)."""

    delta: timedelta

    def __str__(self) -> str:
        return f"{self.delta.total_seconds():f}".rstrip("0").rstrip(".") + " s"

    @property
    def tzinfo(self) -> tzinfo:
        return UTC

    def first_tick_after(self, mark: datetime) -> datetime:
        return mark + self.delta

    def ticks_between_latest_first(self, mark: datetime, now: datetime) -> Iterator[datetime]:
        for number in range((now - mark) // self.delta, 0, -1):
            yield mark + number * self.delta


@dataclass(frozen=True, eq=False)
class ScheduleSpec:
    """A ScheduleSpec is a declared schedule whose arguments were checked."""

    app: str
    name: str
    timing: Timing
    handler: Function
    missed: Missed = "latest"
    max_missed: int = 100
    retry: Retry = field(default_factory=Retry)
    store: Any = None  # the Store (database) whose session the handler is given

    @property
    def terms(self) -> Terms:
        """Return the Terms (what state transitions depend on) for attempts of ticks. A tick makes no call, so `policy` is None."""
        return Terms(policy=None, retry=self.retry)

    @property
    def as_text(self) -> str:
        """Return the timing as the text that is stored in groundstate's table. If the text changes, the schedule counts as changed."""
        return f"every {self.timing}"


# ---- which ticks are carried out ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LeftOut:
    """LeftOut describes the ticks that are not carried out because of the schedule's `missed=`.

    count: how many ticks were counted. first, last: the times of the earliest counted tick and of the latest. at_least: whether there are
    more ticks than were counted.
    """

    count: int
    first: datetime
    last: datetime
    at_least: bool = False

    @property
    def as_text(self) -> str:
        if self.count == 1:
            return f"1 tick is left out, of {_format_tick(self.last)}"
        many = f"at least {self.count:,}" if self.at_least else f"{self.count:,}"
        return f"{many} ticks are left out, from {_format_tick(self.first)} to {_format_tick(self.last)}"


@dataclass(frozen=True)
class Decision:
    """A Decision says what becomes of the ticks since the schedule's cursor (the time of the last tick that was decided).

    run: the ticks to carry out, oldest first. left_out: the ticks not to carry out, or None. mark: the new cursor if it moves though no
    tick is carried out, else None.
    """

    run: tuple[datetime, ...] = ()
    left_out: LeftOut | None = None
    mark: datetime | None = None


def decide_ticks(spec: ScheduleSpec, mark: datetime, now: datetime) -> Decision:
    """Decide which of the ticks later than the cursor `mark` and not later than `now` are carried out, by the schedule's `missed=`."""
    found = spec.timing.ticks_between_latest_first(mark, now)
    run = tuple(reversed(list(islice(found, spec.max_missed if spec.missed == "all" else 1))))
    left_out = _summarise_left_out(found)
    if not run:
        return Decision()
    if spec.missed == "none" and now - run[-1] > ON_TIME:
        return Decision((), _add_to_left_out(left_out, run[-1]), run[-1])
    return Decision(run, left_out)


def _summarise_left_out(found: Iterator[datetime]) -> LeftOut | None:
    """Return a LeftOut that describes these ticks, which are given latest first; return None where there are none."""
    some = list(islice(found, COUNTED_MOST))
    if not some:
        return None
    return LeftOut(len(some), some[-1], some[0], at_least=next(found, None) is not None)


def _add_to_left_out(left_out: LeftOut | None, last: datetime) -> LeftOut:
    if left_out is None:
        return LeftOut(1, last, last)
    return LeftOut(left_out.count + 1, left_out.first, last, left_out.at_least)


def _format_tick(tick: datetime) -> str:
    return tick.isoformat(sep=" ", timespec="seconds" if tick.second else "minutes")
