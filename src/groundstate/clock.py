"""The clocks and random numbers of the host. Only this module reads the time and draws random numbers.

Each worker gets a `Clock` and a `Dice` as arguments, and passes them on with its database. The crash lab passes simulated clocks and dice,
so that a run has the same result however fast the real machine is.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Declares the clocks of a host. All of them count in seconds. Any thread may read them."""

    @property
    def monotonic(self) -> Callable[[], float]:
        """A function that returns the seconds of a clock which never goes back, and may stand still while the host is suspended. Only the
        difference between two readings means anything. The property returns a function, so that a reading for each row costs only one call
        of a built-in function.
        """
        ...

    def uptime_s(self) -> float:
        """Return the seconds of a clock that cannot be set. The clock also counts while the host is suspended, if the system has a clock
        that does so.
        """
        ...

    def wall(self) -> float:
        """Return the time of day as seconds since 1970 in UTC. A person or NTP may set it forward or back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let the calling thread rest for this many seconds."""


class SystemClock:
    """The clocks of the operating system; implements `Clock`."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
    sleep = staticmethod(time.sleep)

    @staticmethod
    def uptime_s() -> float:
        """Return what CLOCK_BOOTTIME shows, or the monotonic clock on a system without it."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Dice(Protocol):
    """Declares a source of random numbers, with the methods of `random.Random` that are used. Any thread may draw.

    drawn: a stock of random call numbers (`engine/rows/attempts.py`). Many are drawn together, since each draw is a system call that
        releases the GIL.
    """

    drawn: list[int]

    def random(self) -> float:
        """Return a number that is at least 0 and less than 1."""
        ...

    def randrange(self, stop: int, /) -> int:
        """Return a whole number that is at least 0 and less than `stop`."""
        ...

    def getrandbits(self, count: int, /) -> int:
        """Return a whole number made of `count` random bits."""
        ...

    def randbytes(self, count: int, /) -> bytes:
        """Return `count` random bytes."""
        ...


class SystemDice(random.SystemRandom):
    """Random numbers of the operating system, which nobody can guess; implements `Dice`."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[int] = []


class SeededDice(random.Random):
    """Random numbers that are the same for the same seed; implements `Dice`. They serve to spread actions over time, not as secrets: they
    can be guessed.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.drawn: list[int] = []


SYSTEM_CLOCK: Clock = SystemClock()
SYSTEM_DICE = SystemDice()
if hasattr(os, "register_at_fork"):
    # Without this a forked child would use the same call numbers that its parent has drawn in advance.
    os.register_at_fork(after_in_child=SYSTEM_DICE.drawn.clear)
