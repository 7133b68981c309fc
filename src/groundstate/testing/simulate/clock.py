"""The clock of a lab. With it, a test declares when each run begins and which leaps of the clock are tried, and moves the time."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from groundstate.testing.simulate.fake_environment import EPOCH, Stuck, Time
from groundstate.values.errors import DeclarationError


@dataclass(frozen=True)
class ClockMoves:
    """What the user declares about clocks. At which crossing of a run a leap or suspension happens is up to the schedule of the run."""

    begins: datetime = EPOCH
    ends: datetime | None = None
    leaps: tuple[timedelta, ...] = ()
    suspends: tuple[timedelta, ...] = ()


class ClockedRun(Protocol):
    """What a `Clock` needs of a run: the time of the run, and how to move it."""

    time: Time

    def leap(self, by: timedelta) -> None:
        """Set the time of day ahead, or back if `by` is negative. No other clock changes."""

    def suspend(self, how_long: timedelta) -> None:
        """Suspend the host, with all processes of the run, for this time."""


class FrozenRun:
    """Stands in for the current run while a transaction is tried out. The time stands still. The object only records whether the
    transaction tried to move a clock.
    """

    def __init__(self, time: Time) -> None:
        self.time = copy(time)
        self._began = (time.now_s, time.suspended_s)
        self._moved = False

    @property
    def moved(self) -> bool:
        """Return whether the transaction tried to move a clock."""
        return self._moved or (self.time.now_s, self.time.suspended_s) != self._began

    def leap(self, _by: timedelta) -> None:
        """Record that the transaction tried to let the clock leap. The clock does not change."""
        self._moved = True

    def suspend(self, _how_long: timedelta) -> None:
        """Record that the transaction tried to suspend the host. The clock does not change."""
        self._moved = True


class Clock:
    """The database's clock in a run, which `ReactionContext.now` reads; on SQLite it is the host's clock. The lab moves it to the next due
    time.

    Call `starts`, `ends`, `leaps` and `suspends` before `crash_everywhere`, to declare what is tried. Call `forward`, `leap` and `suspend`
    in a function given to `lab.meanwhile`, to move the clock by hand.
    """

    def __init__(self) -> None:
        self.moves = ClockMoves()
        self._run: ClockedRun | None = None

    @property
    def now(self) -> datetime:
        """The time now in the current run, in the time zone of `starts`; outside of a run, the time at which each run begins."""
        begins = self.moves.begins
        return begins if self._run is None else self._run.time.now().astimezone(begins.tzinfo)

    @property
    def passed(self) -> timedelta:
        """How long the current run has lasted so far, in real time: leaps of the clock do not count."""
        return timedelta() if self._run is None else timedelta(seconds=self._run.time.now_s)

    # ---- before a run ------------------------------------------------------------------------------------------------------------
    def starts(self, at: datetime) -> None:
        """Let each run begin at this time, for example just before a change to summer time. `now` and the printed log use its time zone.

        Raises:
            DeclarationError: `at` is a naive datetime.
        """
        if at.utcoffset() is None:
            raise DeclarationError(f"lab.clock.starts({at!r}): give an aware datetime, with a tzinfo such as ZoneInfo('Europe/Berlin')")
        self.moves = replace(self.moves, begins=at)

    def ends(self, at: datetime) -> None:
        """Do not wait for records that become due after this time. Call this method if the app has a timer that sets itself again for ever.

        Raises:
            DeclarationError: `at` is a naive datetime.
        """
        if at.utcoffset() is None:
            raise DeclarationError(f"lab.clock.ends({at!r}): give an aware datetime, such as datetime(2030, 4, 1, tzinfo=UTC)")
        self.moves = replace(self.moves, ends=at)

    def leaps(self, *by: timedelta) -> None:
        """Try leaps of the time of day by these amounts, as when NTP or a person sets the clock; a negative amount leaps back.

        No other clock changes. Each leap is tried at every crossing, in a run of its own, and together with kills in mixtures. On SQLite
        the host's clock leaps, which workers read too. On PostgreSQL only the server's clock leaps.

        Raises:
            DeclarationError: a leap is zero.
        """
        for one in by:
            if not one:
                raise DeclarationError(f"lab.clock.leaps({one!r}): give how far, as in timedelta(hours=3), or timedelta(hours=-1) for back")
        self.moves = replace(self.moves, leaps=(*self.moves.leaps, *by))

    def suspends(self, *how_long: timedelta) -> None:
        """Try suspensions of the host with all its processes for these times, as when a laptop is shut.

        The host's monotonic clock stops. The time of day, external services and requests in flight go on. Each suspension is tried at every
        crossing, in a run of its own.

        Raises:
            DeclarationError: a suspension is not positive.
        """
        for one in how_long:
            if one <= timedelta():
                raise DeclarationError(f"lab.clock.suspends({one!r}): give for how long, as in timedelta(hours=8)")
        self.moves = replace(self.moves, suspends=(*self.moves.suspends, *how_long))

    # ---- by hand -------------------------------------------------------------------------------------------------------------------
    def forward(self, by: timedelta) -> None:
        """Let time pass: move all clocks of all processes of the run ahead.

        Raises:
            Stuck: no run is under way.
            DeclarationError: `by` is negative.
        """
        _check_not_negative("forward", by)
        self._current_run().time.forward(by.total_seconds())

    def leap(self, by: timedelta) -> None:
        """Let the time of day leap now, as `leaps` describes.

        Raises:
            Stuck: no run is under way.
        """
        self._current_run().leap(by)

    def suspend(self, how_long: timedelta) -> None:
        """Suspend the host now, as `suspends` describes.

        Raises:
            Stuck: no run is under way.
            DeclarationError: `how_long` is negative.
        """
        _check_not_negative("suspend", how_long)
        self._current_run().suspend(how_long)

    def _current_run(self) -> ClockedRun:
        if self._run is None:
            raise Stuck("no run is under way, so the clock cannot be moved: move it in a function given to lab.meanwhile")
        return self._run

    def set_run(self, run: ClockedRun | None) -> None:
        """Set the current run, or None after a run. Only the lab calls this."""
        self._run = run


def _check_not_negative(name: str, by: timedelta) -> None:
    if by < timedelta():
        raise DeclarationError(f"lab.clock.{name}({by!r}): time only goes forward: give a time that is not negative, or use lab.clock.leap")
