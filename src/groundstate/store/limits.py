"""How long statements may take, as this end of the connection has it: whoever waits in one cannot look at a clock himself.

One thread of a process looks at all of them. A forked child begins with none.
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

LOOKS_S = 0.2


class LookedAt(Protocol):
    """What is to be looked at now and then, by the thread for that."""

    def look(self, now: float) -> None:
        """It is so late, by the monotonic clock. Must not wait for anything."""


@dataclass(eq=False)
class Limit:
    """cut: ends what runs just then; it may be called again. until_s: by the monotonic clock; set to 0 by who is to wait no longer."""

    until_s: float
    cut: Callable[[], None]

    def look(self, now: float) -> None:
        if now >= self.until_s:
            self.cut()


@contextmanager
def limited(seconds: float, cut: Callable[[], None]) -> Iterator[Limit]:
    """While the block lasts longer than that, `cut` is called again and again, by another thread."""
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
    """From now on it is looked at, for as long as somebody else knows it."""
    with _changing:
        _others.add(one)
    _begin()


_limits: dict[Limit, None] = {}
_others: weakref.WeakSet[LookedAt] = weakref.WeakSet()
_changing = threading.RLock()  # they cannot be gone through while one is added, which many threads do
_thread: list[threading.Thread] = []


def _begin() -> None:
    if not (_thread and _thread[0].is_alive()):  # two that begin at once do no harm
        _thread[:] = [threading.Thread(target=_look, name="groundstate-limits", daemon=True)]
        _thread[0].start()


def _look() -> None:
    while True:
        time.sleep(LOOKS_S)
        now = time.monotonic()
        for one in _all():
            with suppress(Exception):  # it is over, or its connection is
                one.look(now)


def _all() -> list[LookedAt]:
    while True:
        with suppress(RuntimeError), _changing:  # what is finalised here, in this very thread, may add one
            return [*_limits, *_others]


def _begin_with_none() -> None:
    global _changing  # noqa: PLW0603  # another thread may have held it when this process was forked
    _changing = threading.RLock()
    _limits.clear()
    _thread.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_with_none)
