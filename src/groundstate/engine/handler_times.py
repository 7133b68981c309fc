"""How long the handlers of a transaction run, and on which record longest: what a person looks for where one takes long."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class HandlerTimes:
    """Of one transaction. Two clocks are read for each record, and nothing is put in words but for a person."""

    total_s: float = 0.0
    longest_s: float = 0.0
    _longest: tuple[Any, ...] | None = None
    _now: tuple[Any, ...] | None = None
    _since: float = 0.0

    def began(self, key: tuple[Any, ...]) -> None:
        """A handler runs on the record with this key."""
        self._now, self._since = key, time.monotonic()

    def ended(self) -> None:
        """It runs no more."""
        took_s = time.monotonic() - self._since
        self.total_s += took_s
        if took_s >= self.longest_s:
            self.longest_s, self._longest = took_s, self._now
        self._now = None

    @property
    def record(self) -> str | None:
        """On which a handler runs just now."""
        return _text(self._now)

    @property
    def longest(self) -> str | None:
        """On which one ran longest."""
        return _text(self._longest)

    def in_words(self, took_s: float) -> str:
        """Where the time of a transaction went that took so long: into its handlers, or into statements that waited."""
        if self.total_s * 2 < took_s:
            return f"{self.total_s:.1f} s of it in handlers: the rest waited, as for a row that somebody else had locked, or for the disk"
        on = f"{self.longest_s:.1f} s of them on record {self.longest}"
        return f"{self.total_s:.1f} s of it in handlers, {on}: what waits for something keeps others out, and belongs into a call"


def _text(key: tuple[Any, ...] | None) -> str | None:
    return None if key is None else ",".join(map(str, key))
