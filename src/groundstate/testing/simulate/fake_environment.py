"""Stand-ins for clocks, threads and random numbers, which replace those in the engine's modules for one run.

So production code carries no hook for tests. Time moves only where the lab moves it, and random numbers are seeded; where a thread waits
for an event, another thread may run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any, Protocol
from unittest import mock

from groundstate.engine import handler_turn, publish_report, worker
from groundstate.engine.call import call_turn, dispatch, executor, limiter, rate_limit
from groundstate.engine.operate import action
from groundstate.engine.recover import startup
from groundstate.engine.rows import attempt_log, attempts, clock_jumps, in_flight, incarnation
from groundstate.engine.schedule import run_ticks  # fmt: skip
from groundstate.engine.sql import commit_hooks, raising_rows, record_cycles
from groundstate.engine.watch import due_attempts, due_timers, peek, raising_conditions, sweep_leader, sweeps, worker_state
from groundstate.testing.simulate import cooperative_threads
from groundstate.testing.simulate.cooperative_threads import Actor

EPOCH = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)  # when a run begins, unless `lab.clock.starts` says otherwise
TICK_S = 1e-6  # seconds that each read of the clock takes
LOOKS_MOST = 200_000  # limit on reads of the clock with no progress between them: beyond it some code waits in a loop
_WITH_TIME = (
    action, attempt_log, call_turn, clock_jumps, dispatch, due_attempts, due_timers, handler_turn, in_flight, limiter, peek,
    publish_report, raising_conditions, raising_rows, rate_limit, record_cycles, run_ticks, startup, sweep_leader, sweeps, worker,
    worker_state, incarnation,
)  # fmt: skip


class Stuck(AssertionError):
    """Raised where the program runs for ever, or waits for an event that never comes."""


class Time:
    """Stands in for the module `time`, and is the database's clock. The director moves it, and so does all that takes time, such as a read
    of the clock.

    `now_s` is the real duration of the run in seconds, which external services see. The other clocks derive from it: the monotonic clock
    does not count suspensions of its host, and the time of day may leap.
    own_clock: whether the database server has a clock of its own, which leaps independently of the host's.
    """

    CLOCK_BOOTTIME = 7

    def __init__(self, begins: datetime = EPOCH, *, own_clock: bool = False) -> None:
        self.begins = begins.astimezone(UTC)  # in a zone, adding hours would follow the wall clock
        self.now_s = 0.0
        self.suspended_s = 0.0
        self.told = 0  # how often a clock was read that can leap, or that runs on while the host is suspended
        self._own_clock = own_clock
        self._leapt = timedelta()
        self._looks = 0

    def forward(self, seconds: float) -> None:
        """Move all clocks ahead."""
        self.now_s += max(seconds, 0.0)
        self._looks = 0

    def suspend(self, seconds: float) -> None:
        """Move all clocks ahead except the host's monotonic clock."""
        self.forward(seconds)
        self.suspended_s += max(seconds, 0.0)

    def leap(self, by: timedelta) -> None:
        """Move the clocks that show the time of day ahead or back, and no other."""
        self._leapt += by

    @property
    def apart(self) -> object:
        """Return by how much the clocks differ from each other."""
        return self._leapt, self.suspended_s

    @property
    def awake_s(self) -> float:
        """Return what the host's monotonic clock shows, in seconds."""
        return self.now_s - self.suspended_s

    def real_s(self, awake_s: float) -> float:
        """Return the `now_s` at which the monotonic clock will show `awake_s`, if the host is not suspended before."""
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
        """Return the time that the database's clock shows."""
        self.told += 1
        return self.begins + timedelta(seconds=round(self.now_s, 3)) + self._leapt


class Directing(Protocol):
    """The director of a run, which decides which thread goes on."""

    time: Time

    def spawn(self, name: str, run: Callable[[], object]) -> Actor:
        """Create an actor for the process that is being built."""

    def run_until(self, true: Callable[[], bool], seconds: float | None) -> bool:
        """Let threads run until `true()` holds, the seconds have passed, or a process has died; return `true()`."""

    def tell(self, touched: commit_hooks.Touched) -> None:
        """Pass on the hint of a commit."""


class Event:
    """Stands in for `threading.Event`; a waiting thread parks, so that the director can let another one run."""

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
        me = cooperative_threads.current()
        if me is None:
            return self._director.run_until(self.is_set, timeout)
        end = None if timeout is None else self._director.time.awake_s + timeout
        if not self._set:
            me.park(self.is_set, end)
        return self._set


class StandIn:
    """Stands in for `threading.Thread`; its target runs as an actor of the lab."""

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
    """Stands in for the module `threading` where the engine starts its worker's thread."""

    def __init__(self, director: Directing) -> None:
        self._director = director
        self._of: dict[Actor, StandIn] = {}

    def Event(self) -> Event:  # noqa: N802  # named as in the module
        return Event(self._director)

    def Thread(self, *, target: Callable[..., object], name: str, daemon: bool, args: tuple[Any, ...] = ()) -> StandIn:  # noqa: N802, ARG002  # named as in the module
        made = StandIn(self._director, target, name, args)
        self._of[made.actor] = made
        return made

    def current_thread(self) -> StandIn | None:
        me = cooperative_threads.current()
        return None if me is None else self._of[me]


class Dice:
    """Stands in for the modules `secrets` and `os` as a seeded source of random numbers."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311  # the random numbers must be repeatable
        self.drawn: list[int] = []  # fences of calls that were drawn ahead

    @property
    def state(self) -> object:
        """Return the state of the generator, which determines all random numbers to come."""
        return self._random.getstate(), tuple(self.drawn)

    def randbits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def urandom(self, count: int) -> bytes:
        return self._random.randbytes(count)


@contextmanager
def installed(
    director: Directing, caller: Callable[..., executor.CallExecutor], query: Callable[..., object], dice: Dice
) -> Iterator[None]:
    """Within the block, the engine's modules use the director's clock, threads, random numbers, hints, caller and condition queries."""
    stands_in: list[tuple[ModuleType, str, object]] = [(module, "time", director.time) for module in _WITH_TIME]
    stands_in += [
        (worker, "threading", Threading(director)),
        (call_turn, "CallExecutor", caller),
        (worker, "ConditionQuery", query),
        (commit_hooks, "publish_hint", director.tell),
        (incarnation, "secrets", dice),
        (attempts, "os", dice),
        (attempts, "_drawn", dice.drawn),
    ]
    with ExitStack() as stack:
        for module, name, value in stands_in:
            stack.enter_context(mock.patch.object(module, name, value))
        yield
