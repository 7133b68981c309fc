"""A schedule and what is to be done of it at a moment: which ticks since its mark are carried out, and which are left out. Pure.

The mark is the instant of the last tick that was carried out, or left out. What is due is told from the mark and the time alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice
from typing import Any, Literal, Protocol

from groundstate.rules.attempt import Terms
from groundstate.rules.policy import Retry
from groundstate.rules.reaction import Function

Missed = Literal["none", "latest", "all"]

ON_TIME = timedelta(minutes=1)  # with missed="none" a tick is carried out if it is at most so late
COUNTED_MOST = 10_000  # ticks that were missed are counted up to this


class Timing(Protocol):
    """When the ticks of a schedule are: `Cron`, or `Period`."""

    @property
    def tzinfo(self) -> tzinfo: ...

    def following(self, mark: datetime) -> datetime:
        """The first tick later than the mark. Raises OverflowError past the end of the calendar."""
        ...

    def since(self, mark: datetime, now: datetime) -> Iterator[datetime]:
        """The ticks later than the mark and not later than now, latest first."""
        ...


@dataclass(frozen=True)
class Period:
    """Ticks that lie on the mark and so many times `delta` after it."""

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
    """A schedule, declared and checked."""

    app: str
    name: str
    timing: Timing
    handler: Function
    missed: Missed = "latest"
    most: int = 100
    retry: Retry = field(default_factory=Retry)
    store: Any = None  # the app's Store whose session the handler is given

    @property
    def terms(self) -> Terms:
        """What the transitions of a tick's attempt depend on."""
        return Terms(policy=None, retry=self.retry)

    @property
    def words(self) -> str:
        """As it is kept in our table: where this changes, the schedule is another one."""
        return f"every {self.timing}"


# ---- what is to be done ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LeftOut:
    """Ticks that are not carried out, by the policy. at_least: there are more than were counted."""

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
    """What becomes of the ticks since the mark: `run` are carried out, oldest first, and `left_out` are not.

    mark: where it goes without a tick that is carried out; None where it stays.
    """

    run: tuple[datetime, ...] = ()
    left_out: LeftOut | None = None
    mark: datetime | None = None


def decide(spec: ScheduleSpec, mark: datetime, now: datetime) -> Decision:
    """Which of the ticks later than the mark and not later than now are carried out."""
    found = spec.timing.since(mark, now)
    run = tuple(reversed(list(islice(found, spec.most if spec.missed == "all" else 1))))
    left_out = _left_out(found)
    if not run:
        return Decision()
    if spec.missed == "none" and now - run[-1] > ON_TIME:
        return Decision((), _with(left_out, run[-1]), run[-1])
    return Decision(run, left_out)


def _left_out(found: Iterator[datetime]) -> LeftOut | None:
    """Of ticks that come latest first."""
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
