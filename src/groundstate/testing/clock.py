"""The clock of a lab: where each run begins, how it leaps meanwhile, and what moves it by hand. Knows no crossings."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from groundstate.testing.ambient import EPOCH, Stuck, Time
from groundstate.values.errors import DeclarationError


@dataclass(frozen=True)
class Moves:
    """What a run is told of clocks. Each leap and each suspension is put at a crossing by the schedule."""

    begins: datetime = EPOCH
    ends: datetime | None = None
    leaps: tuple[timedelta, ...] = ()
    suspends: tuple[timedelta, ...] = ()


class Showing(Protocol):
    """The run under way."""

    time: Time

    def leap(self, by: timedelta) -> None:
        """The time of day leaps, ahead or back; no other clock does."""

    def suspend(self, how_long: timedelta) -> None:
        """The host of all processes stands still for so long."""


class Still:
    """A run in which no time passes, for what is only looked at: it shows the time of the run under way, and tells where it was moved."""

    def __init__(self, time: Time) -> None:
        self.time = copy(time)
        self._began = (time.now_s, time.suspended_s)
        self._moved = False

    @property
    def moved(self) -> bool:
        """Whether somebody moved a clock."""
        return self._moved or (self.time.now_s, self.time.suspended_s) != self._began

    def leap(self, _by: timedelta) -> None:
        """No clock leaps."""
        self._moved = True

    def suspend(self, _how_long: timedelta) -> None:
        """Nothing stands still."""
        self._moved = True


class Clock:
    """The database's clock in a run, as `Moment.now` tells it; on SQLite it is the host's. The lab moves it to the next thing that is due.

    `starts`, `ends`, `leaps` and `suspends` say before `crash_everywhere` what is tried; `forward`, `leap` and `suspend` move it by hand,
    in a function given to `lab.meanwhile`.
    """

    def __init__(self) -> None:
        self.moves = Moves()
        self._run: Showing | None = None

    @property
    def now(self) -> datetime:
        """The time in the run under way, in the zone of `starts`; where none is, that at which each begins."""
        begins = self.moves.begins
        return begins if self._run is None else self._run.time.now().astimezone(begins.tzinfo)

    @property
    def passed(self) -> timedelta:
        """How long the run under way has really gone on, whatever its clock shows; in `at_the_end`, how long it took."""
        return timedelta() if self._run is None else timedelta(seconds=self._run.time.now_s)

    # ---- before a run ------------------------------------------------------------------------------------------------------------
    def starts(self, at: datetime) -> None:
        """Each run begins at this time, and `now` and the story speak in its zone: a test may begin just before a clock change.

        Raises DeclarationError where it is naive.
        """
        if at.utcoffset() is None:
            raise DeclarationError(f"lab.clock.starts({at!r}): give an aware datetime, with a tzinfo such as ZoneInfo('Europe/Berlin')")
        self.moves = replace(self.moves, begins=at)

    def ends(self, at: datetime) -> None:
        """Records that become due later than this are not waited for: else a run with a timer that sets itself anew would never end.

        Raises DeclarationError where it is naive.
        """
        if at.utcoffset() is None:
            raise DeclarationError(f"lab.clock.ends({at!r}): give an aware datetime, such as datetime(2030, 4, 1, tzinfo=UTC)")
        self.moves = replace(self.moves, ends=at)

    def leaps(self, *by: timedelta) -> None:
        """Somebody or NTP sets the clock: the time of day leaps ahead by so much, or back where it is negative. No other clock does.

        Each is put at every crossing in turn, once a run, and beside deaths in mixtures. On SQLite it is the host's clock, which workers
        look at as well; on PostgreSQL that of the server's host, and workers have another. Raises DeclarationError for one of no length.
        """
        for one in by:
            if not one:
                raise DeclarationError(f"lab.clock.leaps({one!r}): give how far, as in timedelta(hours=3), or timedelta(hours=-1) for back")
        self.moves = replace(self.moves, leaps=(*self.moves.leaps, *by))

    def suspends(self, *how_long: timedelta) -> None:
        """The host is suspended for so long, with all its processes, as a laptop that is shut: its monotonic clock stands still, the
        time of day goes on, and so do the outside and what is on its way there.

        Put at every crossing in turn, as `leaps` are. Raises DeclarationError for one that is not positive.
        """
        for one in how_long:
            if one <= timedelta():
                raise DeclarationError(f"lab.clock.suspends({one!r}): give for how long, as in timedelta(hours=8)")
        self.moves = replace(self.moves, suspends=(*self.moves.suspends, *how_long))

    # ---- by hand -------------------------------------------------------------------------------------------------------------------
    def forward(self, by: timedelta) -> None:
        """Time passes: all clocks go ahead, for all processes of the run.

        Raises Stuck where no run is under way, DeclarationError where it would go back.
        """
        _not_back("forward", by)
        self._under_way().time.forward(by.total_seconds())

    def leap(self, by: timedelta) -> None:
        """The time of day leaps now, as for `leaps`. Raises Stuck where no run is under way."""
        self._under_way().leap(by)

    def suspend(self, how_long: timedelta) -> None:
        """The host is suspended now, as for `suspends`. Raises Stuck where no run is under way, DeclarationError for less than no time."""
        _not_back("suspend", how_long)
        self._under_way().suspend(how_long)

    def _under_way(self) -> Showing:
        if self._run is None:
            raise Stuck("the clock stands still: no run is under way. Move it in a function given to lab.meanwhile")
        return self._run

    def shows(self, run: Showing | None) -> None:
        """For the lab alone: which run is under way."""
        self._run = run


def _not_back(name: str, by: timedelta) -> None:
    if by < timedelta():
        raise DeclarationError(f"lab.clock.{name}({by!r}): it goes forward alone; give a time that is not negative, or let the clock leap")
