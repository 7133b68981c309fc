"""Measures the time in which this machine lets our process run, and when it stood still; on a loaded machine, wall time is no measure.

It uses a thread that wakes every TICK_S and counts the time that it got.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Self

TICK_S = 0.05  # seconds between two ticks
STILL_S = 0.3  # seconds: a tick later than this means that the machine, or our share of it, stood still
KEPT_S = 120.0  # seconds for which a standstill is remembered


class Clock:
    """The clock of run time; it counts only within its `with` block."""

    def __init__(self) -> None:
        self.awake_s = 0.0  # seconds in which the process could run
        self._still: deque[tuple[float, float]] = deque()  # pairs of from and to (Unix time)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def count_tick(self, took_s: float, now: float) -> None:
        """Count a tick that took `took_s` seconds and ended at `now` (Unix time)."""
        self.awake_s += min(took_s, 2 * TICK_S)
        if took_s > TICK_S + STILL_S:
            self._still.append((now - took_s, now))
        while self._still and self._still[0][1] < now - KEPT_S:
            self._still.popleft()

    def did_stand_still(self, since: float, until: float) -> bool:
        """Return whether the machine stood still at any time between the two (Unix time)."""
        return any(begun < until and ended > since for begun, ended in tuple(self._still))

    def standstills(self) -> tuple[tuple[float, float], ...]:
        """Return the recent standstills as pairs of from and to (Unix time)."""
        return tuple(self._still)

    def _run(self) -> None:
        before = time.monotonic()
        while not self._end.wait(TICK_S):
            now = time.monotonic()
            self.count_tick(now - before, time.time())
            before = now
