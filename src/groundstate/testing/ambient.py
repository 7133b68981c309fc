"""What stands in for clocks, threads and dice while the lab directs: put into the engine's modules for one run, and taken out again.

So no production code carries a hook. Time stands still but where the lab moves it; the dice are seeded; an event that is waited for is a
place where another may go on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any, Protocol
from unittest import mock

from groundstate.engine import (
    attempt_log,
    attempts,
    batches,
    calling,
    deeds,
    departures,
    due,
    fleet,
    flight,
    hints,
    leaps,
    life,
    limits,
    looks,
    own_words,
    raising,
    rings,
    set_apart,
    shift,
    succession,
    sweeps,
    ticks,
    timers,
    tokens,
    traffic,
    worker,
)  # fmt: skip
from groundstate.testing import actors
from groundstate.testing.actors import Actor

EPOCH = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
TICK_S = 1e-6
LOOKS_MOST = 200_000  # at the clock, with nothing else done: somebody waits in a circle
_WITH_TIME = (
    attempt_log, batches, deeds, departures, due, fleet, flight, leaps, life, limits, looks, own_words, raising, rings, set_apart,
    shift, succession, sweeps, ticks, timers, tokens, traffic, worker,
)  # fmt: skip


class Stuck(AssertionError):
    """The program goes on for ever, or waits for what never comes."""


class Time:
    """Stands in for the module `time`, and is the database's clock. What costs time moves it, and whoever directs.

    `now_s`: how long the run has really gone on, in seconds, as the outside has it. The clocks are made of it: the monotonic one does not
    count what its host was suspended, and those that tell the time of day may leap. own_clock: the database's clock is its server's own,
    and leaps alone; else it is that of the host.
    """

    CLOCK_BOOTTIME = 7

    def __init__(self, begins: datetime = EPOCH, *, own_clock: bool = False) -> None:
        self.begins = begins.astimezone(UTC)  # in a zone, adding hours would go by its wall
        self.now_s = 0.0
        self.suspended_s = 0.0
        self.told = 0  # how often a clock was looked at that can leap, or that goes on while the host is suspended
        self._own_clock = own_clock
        self._leapt = timedelta()
        self._looks = 0

    def forward(self, seconds: float) -> None:
        """Moves all clocks ahead."""
        self.now_s += max(seconds, 0.0)
        self._looks = 0

    def suspend(self, seconds: float) -> None:
        """The same, and the host's monotonic clock stands still."""
        self.forward(seconds)
        self.suspended_s += max(seconds, 0.0)

    def leap(self, by: timedelta) -> None:
        """Moves the clocks that tell the time of day, ahead or back, and no other."""
        self._leapt += by

    @property
    def apart(self) -> object:
        """By how much the clocks show different times."""
        return self._leapt, self.suspended_s

    @property
    def awake_s(self) -> float:
        """What the monotonic clock shows."""
        return self.now_s - self.suspended_s

    def real_s(self, awake_s: float) -> float:
        """When, by `now_s`, the monotonic clock will show this, if the host is not suspended before."""
        return awake_s + self.suspended_s

    def monotonic(self) -> float:
        self._looks += 1
        if self._looks > LOOKS_MOST:
            raise Stuck(f"it looks at the clock for ever and does nothing ({LOOKS_MOST} times)")
        self.now_s += TICK_S
        return self.awake_s

    def time(self) -> float:
        leapt_s = 0.0 if self._own_clock else self._leapt.total_seconds()
        return self.begins.timestamp() + self.clock_gettime(self.CLOCK_BOOTTIME) + leapt_s

    def clock_gettime(self, _which: int) -> float:
        self.told += 1
        self.monotonic()
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.forward(seconds)

    def now(self) -> datetime:
        """The moment that the database tells."""
        self.told += 1
        return self.begins + timedelta(seconds=round(self.now_s, 3)) + self._leapt


class Directing(Protocol):
    """Who says which thread goes on."""

    time: Time

    def spawn(self, name: str, run: Callable[[], object]) -> Actor:
        """A new actor of the process that is being built or runs."""

    def run_until(self, true: Callable[[], bool], seconds: float | None) -> bool:
        """Directs until it is true, the seconds are over, or the process that is waited for is dead."""

    def tell(self, touched: hints.Touched) -> None:
        """A hint after a commit."""


class Event:
    """Stands in for `threading.Event`."""

    def __init__(self, director: Directing) -> None:
        self._director = director
        self._set = False

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        me = actors.current()
        if me is None:
            return self._director.run_until(self.is_set, timeout)
        end = None if timeout is None else self._director.time.awake_s + timeout
        if not self._set:
            me.park(self.is_set, end)
        return self._set


class StandIn:
    """Stands in for `threading.Thread`."""

    ident = None

    def __init__(self, director: Directing, target: Callable[..., object], name: str, args: tuple[Any, ...] = ()) -> None:
        self._director = director
        self.actor = director.spawn(name, lambda: target(*args))
        self._started = False

    def start(self) -> None:
        self._started = True
        self.actor.start()

    def is_alive(self) -> bool:
        return self._started and not (self.actor.done or self.actor.dead)

    def join(self, timeout: float | None = None) -> None:
        self._director.run_until(lambda: self.actor.done, timeout)


class Threading:
    """Stands in for the module `threading`, where the engine uses it for its worker's thread."""

    def __init__(self, director: Directing) -> None:
        self._director = director
        self._of: dict[Actor, StandIn] = {}

    def Event(self) -> Event:  # noqa: N802  # the module's name for it
        return Event(self._director)

    def Thread(self, *, target: Callable[..., object], name: str, daemon: bool, args: tuple[Any, ...] = ()) -> StandIn:  # noqa: N802, ARG002  # the same
        made = StandIn(self._director, target, name, args)
        self._of[made.actor] = made
        return made

    def current_thread(self) -> StandIn | None:
        me = actors.current()
        return None if me is None else self._of[me]


class Dice:
    """Stands in for `secrets` and for what `os` gives at random."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311  # to be repeated is what it is for
        self.drawn: list[int] = []  # fences of calls that were drawn ahead

    @property
    def state(self) -> object:
        """What tells all that will be thrown."""
        return self._random.getstate(), tuple(self.drawn)

    def randbits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def urandom(self, count: int) -> bytes:
        return self._random.randbytes(count)


@contextmanager
def installed(director: Directing, caller: Callable[..., calling.Caller], question: Callable[..., object], dice: Dice) -> Iterator[None]:
    """While the block runs, the engine's modules have the director's clock, threads, dice, hints, caller and questions."""
    stands_in: list[tuple[ModuleType, str, object]] = [(module, "time", director.time) for module in _WITH_TIME]
    stands_in += [
        (worker, "threading", Threading(director)),
        (traffic, "Caller", caller),
        (worker, "Question", question),
        (hints, "tell", director.tell),
        (life, "secrets", dice),
        (attempts, "os", dice),
        (attempts, "_drawn", dice.drawn),
    ]
    with ExitStack() as stack:
        for module, name, value in stands_in:
            stack.enter_context(mock.patch.object(module, name, value))
        yield
