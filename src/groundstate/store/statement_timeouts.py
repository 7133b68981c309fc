"""Limits how long statements may take, from this end of the connection: a thread that waits in a statement cannot check a clock itself.

One thread of a process checks all limits. A forked child begins with none.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

LOOKS_S = 0.2  # seconds between two checks


class LookedAt(Protocol):
    """Declares an object that the checking thread calls every LOOKS_S seconds."""

    def look(self, now: float) -> None:
        """Check whether something is to be done. now: the monotonic time. It must not wait for anything."""


@dataclass(eq=False)
class Limit:
    """Holds one time limit. cut: ends the statement that is running, and may be called again. until_s: monotonic time of the limit; set it
    to 0 to end the statement now.
    """

    until_s: float
    cut: Callable[[], None]

    def look(self, now: float) -> None:
        if now >= self.until_s:
            self.cut()


@contextmanager
def limited(seconds: float, cut: Callable[[], None]) -> Iterator[Limit]:
    """Limit the block to `seconds`: once they are over, another thread calls `cut` again and again until the block ends."""
    limit = Limit(time.monotonic() + seconds, cut)
    with _changing:
        _limits[limit] = None
    _begin()
    try:
        yield limit
    finally:
        with _changing:
            _limits.pop(limit, None)


def look_at(one: LookedAt) -> None:
    """Have this object checked from now on, for as long as other code refers to it."""
    with _changing:
        _others.add(one)
    _begin()


_limits: dict[Limit, None] = {}
_others: weakref.WeakSet[LookedAt] = weakref.WeakSet()
_changing = threading.RLock()  # many threads add limits, and a collection cannot be iterated meanwhile
_thread: list[threading.Thread] = []


def _begin() -> None:
    if not (_thread and _thread[0].is_alive()):  # two threads that begin at once do no harm
        _thread[:] = [threading.Thread(target=_look, name="groundstate-limits", daemon=True)]
        _thread[0].start()


def _look() -> None:
    while True:
        time.sleep(LOOKS_S)
        now = time.monotonic()
        for one in _all():
            with suppress(Exception):  # the statement or its connection may have ended meanwhile
                one.look(now)


def _all() -> list[LookedAt]:
    while True:
        with suppress(RuntimeError), _changing:  # a finaliser that runs in this thread may add one while we iterate
            return [*_limits, *_others]


def _begin_with_none() -> None:
    global _changing  # noqa: PLW0603  # another thread may have held the old lock when this process was forked
    _changing = threading.RLock()
    _limits.clear()
    _thread.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_with_none)
