"""Measures how long the handlers of a transaction run, and for which record the handler ran longest, for messages about slow
transactions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from groundstate.clock import SYSTEM_CLOCK


@dataclass(slots=True)
class HandlerTimes:
    """The times that the handlers of one transaction took. Measuring costs two clock reads per record; texts are made only when they are
    needed.
    """

    monotonic: Callable[[], float] = SYSTEM_CLOCK.monotonic  # the clock, in seconds
    total_s: float = 0.0
    longest_s: float = 0.0
    _longest: tuple[Any, ...] | None = None
    _now: tuple[Any, ...] | None = None
    _since: float = 0.0

    def note_handler_start(self, key: tuple[Any, ...]) -> None:
        """Note that the handler starts on the record with this key."""
        self._now, self._since = key, self.monotonic()

    def note_handler_end(self) -> None:
        """Note that the handler that started last has ended."""
        took_s = self.monotonic() - self._since
        self.total_s += took_s
        if took_s >= self.longest_s:
            self.longest_s, self._longest = took_s, self._now
        self._now = None

    @property
    def any_ran(self) -> bool:
        """Whether any handler has run in this transaction."""
        return self._longest is not None

    @property
    def current_record(self) -> str | None:
        """The key, as text, of the record on which a handler runs now; None if no handler runs."""
        return _key_text(self._now)

    @property
    def longest_record(self) -> str | None:
        """The key, as text, of the record on which a handler ran longest; None before the first handler has run."""
        return _key_text(self._longest)

    def describe_slow_transaction(self, took_s: float) -> str:
        """Return a phrase that says where the time of a slow transaction went: into its handlers, or into statements that waited. took_s:
        The duration of the transaction in seconds.
        """
        if self.total_s * 2 < took_s:
            waits = "the rest waited, as for a row that another transaction had locked, or for the disk"
            return f"{self.total_s:.1f} s of it in handlers: {waits}"
        on = f"{self.longest_s:.1f} s of them on record {self.longest_record}"
        return f"{self.total_s:.1f} s of it in handlers, {on}: a handler that waits for something blocks others: move the wait into a call"


def _key_text(key: tuple[Any, ...] | None) -> str | None:
    return None if key is None else ",".join(map(str, key))
