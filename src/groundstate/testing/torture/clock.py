"""Time as this machine gives it to us: seconds in which it let us run, and when it stood still. On a loaded machine wall time says nothing.

A thread that wants to run every TICK_S, and counts what it was given.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Self

TICK_S = 0.05
STILL_S = 0.3  # a tick that came so much too late: the machine, or our share of it, stood still
KEPT_S = 120.0  # for so long a standstill is remembered


class Clock:
    """Runs in a `with`; before and after that it stands."""

    def __init__(self) -> None:
        self.awake_s = 0.0  # the seconds that we were let run
        self._still: deque[tuple[float, float]] = deque()  # from, to: as time.time() has it
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def ticked(self, took_s: float, now: float) -> None:
        """A tick that took so long, and ended at `now` (Unix time)."""
        self.awake_s += min(took_s, 2 * TICK_S)
        if took_s > TICK_S + STILL_S:
            self._still.append((now - took_s, now))
        while self._still and self._still[0][1] < now - KEPT_S:
            self._still.popleft()

    def stood_still(self, since: float, until: float) -> bool:
        """Whether the machine stood still at some time between the two (Unix time)."""
        return any(begun < until and ended > since for begun, ended in tuple(self._still))

    def standstills(self) -> tuple[tuple[float, float], ...]:
        """When it stood still, of late: from and to (Unix time)."""
        return tuple(self._still)

    def _run(self) -> None:
        before = time.monotonic()
        while not self._end.wait(TICK_S):
            now = time.monotonic()
            self.ticked(now - before, time.time())
            before = now
