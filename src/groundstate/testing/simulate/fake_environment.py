"""The clocks, threads and random numbers that a run gives its workers in place of the system's.

So modules for production need no hooks for tests. Time passes only as the lab decides, and random numbers are seeded. While one thread
waits for an event, another thread may run.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from groundstate.clock import SeededDice
from groundstate.testing.simulate import cooperative_threads
from groundstate.testing.simulate.cooperative_threads import Actor

EPOCH = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)  # the time at which a run begins, unless `lab.clock.starts` declares another
TICK_S = 1e-6  # seconds by which the clocks move at each reading of a clock
LOOKS_MOST = 200_000  # after this many readings of a clock without progress, the program counts as stuck in a loop


class Stuck(AssertionError):
    """Raised if the program runs for ever, or waits for an event that never comes; also if a clock is moved outside of a run."""


class Time:
    """The clocks of the run's host (`groundstate.clock.Clock`), and the database's clock. The director moves them, and each reading moves
    them a little.

    now_s: seconds since the run began, host suspensions included; the simulated external services use this clock. The monotonic clock
        shows `now_s` minus the time for which the host was suspended. The time of day is `begins` plus `now_s` plus all leaps.
    own_clock: whether the database server has a clock of its own. If so, only that clock leaps, and the host's does not.
    """

    def __init__(self, begins: datetime = EPOCH, *, own_clock: bool = False) -> None:
        self.begins = begins.astimezone(UTC)  # in UTC, since adding hours to a time in another zone would follow the wall clock
        self.now_s = 0.0
        self.suspended_s = 0.0
        self.told = 0  # number of readings of clocks that can leap, or that run on while the host is suspended
        self._own_clock = own_clock
        self._leapt = timedelta()
        self._looks = 0

    def forward(self, seconds: float) -> None:
        """Move all clocks ahead by this many seconds."""
        self.now_s += max(seconds, 0.0)
        self._looks = 0

    def suspend(self, seconds: float) -> None:
        """Move all clocks ahead by this many seconds, except the host's monotonic clock."""
        self.forward(seconds)
        self.suspended_s += max(seconds, 0.0)

    def leap(self, by: timedelta) -> None:
        """Set the clocks that show the time of day ahead, or back if `by` is negative. No other clock changes."""
        self._leapt += by

    @property
    def clock_differences(self) -> object:
        """Return the differences between the clocks, as a pair: the sum of all leaps, and the seconds of all suspensions."""
        return self._leapt, self.suspended_s

    @property
    def monotonic_s(self) -> float:
        """Return the seconds that the host's monotonic clock shows: the time since the run began, without suspensions."""
        return self.now_s - self.suspended_s

    def run_time_of_monotonic_s(self, monotonic_s: float) -> float:
        """Return when the monotonic clock will show `monotonic_s`, in seconds since the run began, if no suspension happens until then."""
        return monotonic_s + self.suspended_s

    def monotonic(self) -> float:
        self._looks += 1
        if self._looks > LOOKS_MOST:
            raise Stuck(f"the program read the clock {LOOKS_MOST} times without doing anything else: it waits in an endless loop")
        self.now_s += TICK_S
        return self.monotonic_s

    def wall(self) -> float:
        leapt_s = 0.0 if self._own_clock else self._leapt.total_seconds()
        return self.begins.timestamp() + self.uptime_s() + leapt_s

    def uptime_s(self) -> float:
        self.told += 1
        self.monotonic()
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.forward(seconds)

    def now(self) -> datetime:
        """Return the time that the database's clock shows."""
        self.told += 1
        return self.begins + timedelta(seconds=round(self.now_s, 3)) + self._leapt


class Director(Protocol):
    """The director of a run, which decides which thread runs next."""

    time: Time

    def spawn_actor(self, name: str, run: Callable[[], object]) -> Actor:
        """Create an actor (a cooperative thread) that runs `run`, for the process that is being built."""

    def run_until(self, true: Callable[[], bool], seconds: float | None) -> bool:
        """Let threads run until `true()` is true, `seconds` have passed, or a process has died. Return what `true()` returns then."""


class Event:
    """Stands in for `threading.Event`; a thread that waits for it is paused, so that the director can let another thread run."""

    def __init__(self, director: Director) -> None:
        self._director = director
        self._set = False

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        me = cooperative_threads.current_actor()
        if me is None:
            return self._director.run_until(self.is_set, timeout)
        end = None if timeout is None else self._director.time.monotonic_s + timeout
        if not self._set:
            me.park(self.is_set, end)
        return self._set


class ThreadStandIn:
    """Stands in for `threading.Thread`; its target runs in a cooperative thread of the lab (an actor)."""

    ident = None

    def __init__(self, director: Director, target: Callable[..., object], name: str, args: tuple[Any, ...] = ()) -> None:
        self._director = director
        self.actor = director.spawn_actor(name, lambda: target(*args))
        self._started = False

    def start(self) -> None:
        self._started = True
        self.actor.start()

    def is_alive(self) -> bool:
        return self._started and not (self.actor.done or self.actor.dead)

    def join(self, timeout: float | None = None) -> None:
        self._director.run_until(lambda: self.actor.done, timeout)


class Threading:
    """Stands in for the module `threading`, with which a worker starts its thread and waits for events."""

    def __init__(self, director: Director) -> None:
        self._director = director
        self._of: dict[Actor, ThreadStandIn] = {}

    def Event(self) -> Event:  # noqa: N802  # named as in the module `threading`
        return Event(self._director)

    def Thread(self, *, target: Callable[..., object], name: str, daemon: bool, args: tuple[Any, ...] = ()) -> ThreadStandIn:  # noqa: N802, ARG002  # named as in the module `threading`
        made = ThreadStandIn(self._director, target, name, args)
        self._of[made.actor] = made
        return made

    def current_thread(self) -> ThreadStandIn | None:
        me = cooperative_threads.current_actor()
        return None if me is None else self._of[me]


class Dice(SeededDice):
    """The random numbers of a run (`groundstate.clock.Dice`): the same numbers each time that the run is repeated."""

    @property
    def state(self) -> object:
        """Return the state of the generator. It determines all random numbers to come."""
        return self.getstate(), tuple(self.drawn)
