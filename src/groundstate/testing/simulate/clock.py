"""The clock of a lab: when each run begins, how its clock leaps, and how a test moves it by hand."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from groundstate.testing.simulate.fake_environment import EPOCH, Stuck, Time
from groundstate.values.errors import DeclarationError


@dataclass(frozen=True)
class Moves:
    """What the user declared about clocks. The schedule places each leap and each suspension at a crossing."""

    begins: datetime = EPOCH
    ends: datetime | None = None
    leaps: tuple[timedelta, ...] = ()
    suspends: tuple[timedelta, ...] = ()


class Showing(Protocol):
    """The interface of a run to its `Clock`: the time, and how to move it."""

    time: Time

    def leap(self, by: timedelta) -> None:
        """Move the time of day ahead or back; no other clock changes."""

    def suspend(self, how_long: timedelta) -> None:
        """Suspend the host of all processes for this time."""


class Still:
    """A run in which no time passes, used to try out a transaction: it shows the time of the current run and records whether a clock was
    moved.
    """

    def __init__(self, time: Time) -> None:
        self.time = copy(time)
        self._began = (time.now_s, time.suspended_s)
        self._moved = False

    @property
    def moved(self) -> bool:
        """Return whether a clock was moved."""
        return self._moved or (self.time.now_s, self.time.suspended_s) != self._began

    def leap(self, _by: timedelta) -> None:
        """Record an attempt to leap; the clock does not change."""
        self._moved = True

    def suspend(self, _how_long: timedelta) -> None:
        """Record an attempt to suspend; the clock does not change."""
        self._moved = True


class Clock:
    """The database's clock in a run, which `ReactionContext.now` reads; on SQLite it is the host's clock. The lab moves it to the next due
    time.

    `starts`, `ends`, `leaps` and `suspends` declare before `crash_everywhere` what is tried; `forward`, `leap` and `suspend` move it by
    hand, in a function given to `lab.meanwhile`.
    """

    def __init__(self) -> None:
        self.moves = Moves()
        self._run: Showing | None = None

    @property
    def now(self) -> datetime:
        """The time of the current run, in the time zone of `starts`; outside of a run, the time at which each run begins."""
        begins = self.moves.begins
        return begins if self._run is None else self._run.time.now().astimezone(begins.tzinfo)

    @property
    def passed(self) -> timedelta:
        """The real duration of the current run so far, whatever its clock shows; in `at_the_end`, its whole duration."""
        return timedelta() if self._run is None else timedelta(seconds=self._run.time.now_s)

    # ---- before a run ------------------------------------------------------------------------------------------------------------
    def starts(self, at: datetime) -> None:
        """Let each run begin at this time, so that a test may begin just before a clock change; `now` and the story use its time zone.

        Raises:
            DeclarationError: `at` is a naive datetime.
        """
        if at.utcoffset() is None:
            raise DeclarationError(f"lab.clock.starts({at!r}): give an aware datetime, with a tzinfo such as ZoneInfo('Europe/Berlin')")
        self.moves = replace(self.moves, begins=at)

    def ends(self, at: datetime) -> None:
        """Do not wait for records that become due after this time; without it, a run with a timer that sets itself again would never end.

        Raises:
            DeclarationError: `at` is a naive datetime.
        """
        if at.utcoffset() is None:
            raise DeclarationError(f"lab.clock.ends({at!r}): give an aware datetime, such as datetime(2030, 4, 1, tzinfo=UTC)")
        self.moves = replace(self.moves, ends=at)

    def leaps(self, *by: timedelta) -> None:
        """Try leaps of the time of day by these amounts, as when NTP or a person sets the clock; a negative one leaps back.

        No other clock changes. Each leap is placed at every crossing in turn, once a run, and beside kills in mixtures. On SQLite it is the
        host's clock, which workers read too; on PostgreSQL it is the clock of the server's host, and workers have another.

        Raises:
            DeclarationError: a leap is zero.
        """
        for one in by:
            if not one:
                raise DeclarationError(f"lab.clock.leaps({one!r}): give how far, as in timedelta(hours=3), or timedelta(hours=-1) for back")
        self.moves = replace(self.moves, leaps=(*self.moves.leaps, *by))

    def suspends(self, *how_long: timedelta) -> None:
        """Try suspensions of the host with all its processes for these times, as when a laptop is shut.

        The host's monotonic clock stops; the time of day goes on, and so do external services and requests that are in flight. Each
        suspension is placed at every crossing in turn, as in `leaps`.

        Raises:
            DeclarationError: a suspension is not positive.
        """
        for one in how_long:
            if one <= timedelta():
                raise DeclarationError(f"lab.clock.suspends({one!r}): give for how long, as in timedelta(hours=8)")
        self.moves = replace(self.moves, suspends=(*self.moves.suspends, *how_long))

    # ---- by hand -------------------------------------------------------------------------------------------------------------------
    def forward(self, by: timedelta) -> None:
        """Let time pass: all clocks go ahead, for all processes of the run.

        Raises:
            Stuck: no run is under way.
            DeclarationError: `by` is negative.
        """
        _not_back("forward", by)
        self._under_way().time.forward(by.total_seconds())

    def leap(self, by: timedelta) -> None:
        """Let the time of day leap now, as `leaps` describes.

        Raises:
            Stuck: no run is under way.
        """
        self._under_way().leap(by)

    def suspend(self, how_long: timedelta) -> None:
        """Suspend the host now, as `suspends` describes.

        Raises:
            Stuck: no run is under way.
            DeclarationError: `how_long` is negative.
        """
        _not_back("suspend", how_long)
        self._under_way().suspend(how_long)

    def _under_way(self) -> Showing:
        if self._run is None:
            raise Stuck("the clock stands still: no run is under way. Move it in a function given to lab.meanwhile")
        return self._run

    def shows(self, run: Showing | None) -> None:
        """Set the current run, or None after it; only the lab calls this."""
        self._run = run


def _not_back(name: str, by: timedelta) -> None:
    if by < timedelta():
        raise DeclarationError(f"lab.clock.{name}({by!r}): it goes forward alone; give a time that is not negative, or let the clock leap")
