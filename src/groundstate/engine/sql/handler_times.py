"""Measures how long the handlers of a transaction run, and on which record longest, for the person who looks into a slow one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class HandlerTimes:
    """The handler times of one transaction. Cheap for each record: two reads of a clock, and no text before a person needs it."""

    total_s: float = 0.0
    longest_s: float = 0.0
    _longest: tuple[Any, ...] | None = None
    _now: tuple[Any, ...] | None = None
    _since: float = 0.0

    def began(self, key: tuple[Any, ...]) -> None:
        """Note that a handler starts on the record with this key."""
        self._now, self._since = key, time.monotonic()

    def ended(self) -> None:
        """Note that the handler has ended."""
        took_s = time.monotonic() - self._since
        self.total_s += took_s
        if took_s >= self.longest_s:
            self.longest_s, self._longest = took_s, self._now
        self._now = None

    @property
    def any_ran(self) -> bool:
        """Whether any handler ran in this transaction."""
        return self._longest is not None

    @property
    def record(self) -> str | None:
        """Return the key of the record that a handler runs on now; None between handlers."""
        return _text(self._now)

    @property
    def longest(self) -> str | None:
        """Return the key of the record on which a handler ran longest; None before the first one."""
        return _text(self._longest)

    def in_words(self, took_s: float) -> str:
        """Say where the time of a slow transaction went: into its handlers, or into statements that waited. took_s: how long it took, in
        seconds.
        """
        if self.total_s * 2 < took_s:
            return f"{self.total_s:.1f} s of it in handlers: the rest waited, as for a row that somebody else had locked, or for the disk"
        on = f"{self.longest_s:.1f} s of them on record {self.longest}"
        return f"{self.total_s:.1f} s of it in handlers, {on}: what waits for something keeps others out, and belongs into a call"


def _text(key: tuple[Any, ...] | None) -> str | None:
    return None if key is None else ",".join(map(str, key))
