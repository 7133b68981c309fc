"""Clocks that a test gives to its workers in place of the system's."""

from __future__ import annotations

from groundstate.clock import SYSTEM_CLOCK


class Turned:
    """The system's clocks, of which the monotonic one is ahead by what a test says.

    still: it moves by nothing else but a microsecond each time it is looked at, so that one look can be told from the next.
    """

    def __init__(self, *, still: bool = False) -> None:
        self.ahead = 0.0  # seconds
        self._stands_at = SYSTEM_CLOCK.monotonic() if still else None

    def monotonic(self) -> float:
        if self._stands_at is None:
            return SYSTEM_CLOCK.monotonic() + self.ahead
        self._stands_at += 1e-6
        return self._stands_at + self.ahead

    def uptime_s(self) -> float:
        return SYSTEM_CLOCK.uptime_s()

    def wall(self) -> float:
        return SYSTEM_CLOCK.wall()

    def sleep(self, seconds: float) -> None:
        SYSTEM_CLOCK.sleep(seconds)
