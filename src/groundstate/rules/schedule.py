"""Decides which ticks of a schedule since its cursor are carried out now, and which are left out. Pure.

The cursor (`mark`) is the time of the last tick that was carried out or left out. What is due follows from it and the time alone.
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

ON_TIME = timedelta(minutes=1)  # with missed="none" a tick is carried out if it is at most this late
COUNTED_MOST = 10_000  # missed ticks are counted up to this number


class Timing(Protocol):
    """A Timing computes when the ticks of a schedule are: it is a `Cron` or a `Period`."""

    @property
    def tzinfo(self) -> tzinfo: ...

    def following(self, mark: datetime) -> datetime:
        """Return the first tick later than `mark`. Raises OverflowError past the end of the calendar."""
        ...

    def since(self, mark: datetime, now: datetime) -> Iterator[datetime]:
        """Yield the ticks later than `mark` and not later than `now`, latest first."""
        ...


@dataclass(frozen=True)
class Period:
    """A Period is a timing whose ticks are `delta` apart, counted from the schedule's cursor."""

    delta: timedelta

    def __str__(self) -> str:
        return f"{self.delta.total_seconds():f}".rstrip("0").rstrip(".") + " s"

    @property
    def tzinfo(self) -> tzinfo:
        return UTC

    def following(self, mark: datetime) -> datetime:
        return mark + self.delta

    def since(self, mark: datetime, now: datetime) -> Iterator[datetime]:
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
    store: Any = None  # the app's Store whose session the handler receives

    @property
    def terms(self) -> Terms:
        """Return what the state transitions of a tick's attempt depend on. A tick makes no call, so there is no in-doubt policy."""
        return Terms(policy=None, retry=self.retry)

    @property
    def words(self) -> str:
        """Return the timing as text, as it is stored in our table: where this text changes, the schedule counts as another one."""
        return f"every {self.timing}"


# ---- which ticks are carried out ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LeftOut:
    """LeftOut counts the ticks that are not carried out because of the schedule's `missed`. at_least: there are more than were counted."""

    count: int
    first: datetime
    last: datetime
    at_least: bool = False

    @property
    def words(self) -> str:
        if self.count == 1:
            return f"1 tick is left out, of {_shown(self.last)}"
        many = f"at least {self.count:,}" if self.at_least else f"{self.count:,}"
        return f"{many} ticks are left out, from {_shown(self.first)} to {_shown(self.last)}"


@dataclass(frozen=True)
class Decision:
    """A Decision says what becomes of the ticks since the cursor: those in `run` are carried out, oldest first, and `left_out` are not.

    mark: where the cursor moves although no tick is carried out; None where it stays.
    """

    run: tuple[datetime, ...] = ()
    left_out: LeftOut | None = None
    mark: datetime | None = None


def decide(spec: ScheduleSpec, mark: datetime, now: datetime) -> Decision:
    """Decide which of the ticks later than `mark` and not later than `now` are carried out."""
    found = spec.timing.since(mark, now)
    run = tuple(reversed(list(islice(found, spec.max_missed if spec.missed == "all" else 1))))
    left_out = _left_out(found)
    if not run:
        return Decision()
    if spec.missed == "none" and now - run[-1] > ON_TIME:
        return Decision((), _with(left_out, run[-1]), run[-1])
    return Decision(run, left_out)


def _left_out(found: Iterator[datetime]) -> LeftOut | None:
    """Summarise these ticks, given latest first, as left out; return None where there are none."""
    some = list(islice(found, COUNTED_MOST))
    if not some:
        return None
    return LeftOut(len(some), some[-1], some[0], at_least=next(found, None) is not None)


def _with(left_out: LeftOut | None, last: datetime) -> LeftOut:
    if left_out is None:
        return LeftOut(1, last, last)
    return LeftOut(left_out.count + 1, left_out.first, last, left_out.at_least)


def _shown(tick: datetime) -> str:
    return tick.isoformat(sep=" ", timespec="seconds" if tick.second else "minutes")
