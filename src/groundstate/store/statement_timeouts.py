"""Ends statements that exceed a time limit. Another thread does so, since a thread that waits in a statement cannot check a clock itself.

One thread per process checks all limits. It uses the system's clock even in tests with a simulated clock, since a database server runs by
real time. A forked child starts without limits.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from groundstate.clock import SYSTEM_CLOCK

LOOKS_S = 0.2  # seconds between one check of all limits and the next


class PeriodicallyChecked(Protocol):
    """Interface of the objects given to `check_periodically`: the checking thread calls `do_due_check` every LOOKS_S seconds."""

    def do_due_check(self, now: float) -> None:
        """Do what is due at `now`, the monotonic time in seconds. It must not wait for anything."""


@dataclass(eq=False)
class Limit:
    """A Limit is one time limit for statements.

    until_s: the monotonic time in seconds at which the time is up; 0 ends the statement at the next check. cut: the function that ends the
    running statement once the time is up; it may be called repeatedly.
    """

    until_s: float
    cut: Callable[[], None]

    def do_due_check(self, now: float) -> None:
        if now >= self.until_s:
            self.cut()


@contextmanager
def time_limited(seconds: float, cut: Callable[[], None]) -> Iterator[Limit]:
    """Limit the block to `seconds` seconds; yield the Limit. After that time another thread calls `cut` repeatedly until the block ends."""
    limit = Limit(SYSTEM_CLOCK.monotonic() + seconds, cut)
    with _changing:
        _limits[limit] = None
    _start_checking_thread()
    try:
        yield limit
    finally:
        with _changing:
            _limits.pop(limit, None)


def check_periodically(one: PeriodicallyChecked) -> None:
    """Let the checking thread call the object's `do_due_check` every LOOKS_S seconds, until no other code refers to the object."""
    with _changing:
        _others.add(one)
    _start_checking_thread()


_limits: dict[Limit, None] = {}
_others: weakref.WeakSet[PeriodicallyChecked] = weakref.WeakSet()
_changing = threading.RLock()  # protects the two collections, since any thread may add a limit while the checking thread iterates
_thread: list[threading.Thread] = []


def _start_checking_thread() -> None:
    # Two callers at the same time may both find no thread and both start one. A second checking thread does no harm.
    if not (_thread and _thread[0].is_alive()):
        _thread[:] = [threading.Thread(target=_check_forever, name="groundstate-limits", daemon=True)]
        _thread[0].start()


def _check_forever() -> None:
    while True:
        SYSTEM_CLOCK.sleep(LOOKS_S)
        now = SYSTEM_CLOCK.monotonic()
        for one in _all_checked():
            with suppress(Exception):  # `do_due_check` may raise if the statement or its connection has ended meanwhile
                one.do_due_check(now)


def _all_checked() -> list[PeriodicallyChecked]:
    while True:
        with suppress(RuntimeError), _changing:  # RuntimeError: a finaliser in this thread added a limit during the iteration
            return [*_limits, *_others]


def _start_without_limits() -> None:
    global _changing  # noqa: PLW0603  # a new lock, since another thread may have held the old lock when this process was forked
    _changing = threading.RLock()
    _limits.clear()
    _thread.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_without_limits)
