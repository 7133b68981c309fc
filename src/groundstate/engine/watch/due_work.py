"""Keeps what becomes due for one reaction, and when: attempts (retries, calls in doubt), records with a due time, and the next sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class DueWork:
    """Keeps what is due in one work queue. Only its own methods change its fields; ARCHITECTURE.md has a table of the states that the
    fields can reach. Times are seconds of the monotonic clock.
    """

    def __init__(self) -> None:
        self._has_due_attempts = False
        self._cursor: tuple[Any, ...] | None = None
        self._seen_full = False
        self._timers: list[float] = []
        self._next_sweep = 0.0

    @property
    def has_due_attempts(self) -> bool:
        """Return whether attempts may be due, so that they have to be queried."""
        return self._has_due_attempts

    @property
    def cursor(self) -> tuple[Any, ...] | None:
        """Return the attempt after which the query for due attempts goes on; None at the start."""
        return self._cursor

    @property
    def seen_full(self) -> bool:
        """Return whether some attempt found no free slot (place under a limit) for its call since the query for due attempts began."""
        return self._seen_full

    @property
    def timers(self) -> Sequence[float]:
        """Return the times at which the next records become due, the soonest first."""
        return tuple(self._timers)

    @property
    def next_sweep(self) -> float:
        """Return the earliest time at which a sweep includes this queue again."""
        return self._next_sweep

    def request_attempts(self) -> None:
        """Request a query for due attempts, even if no slot is free."""
        self._has_due_attempts, self._seen_full = True, False

    def request_attempts_from_start(self) -> None:
        """Request a query for due attempts that begins at the first attempt, even if no slot is free."""
        self.request_attempts()
        self._cursor = None

    def wait_for_slot(self, cursor: tuple[Any, ...] | None) -> None:
        """Request a query for the due attempts after `cursor`. The query is sent once a slot is free.

        If `cursor` is None, the query begins at the first attempt.
        """
        self._has_due_attempts, self._cursor, self._seen_full = True, cursor, True

    def advance(self, cursor: tuple[Any, ...]) -> None:
        """Let the query for due attempts go on after this attempt, the last one that was read."""
        if self._has_due_attempts:
            self._cursor = cursor

    def note_no_more_attempts(self) -> None:
        """Note that no attempt is due any more: the last one was read, or there is none at all."""
        self._has_due_attempts, self._cursor, self._seen_full = False, None, False

    def set_timers(self, times: Sequence[float]) -> None:
        """Set the times at which the next records become due. times: the soonest first."""
        self._timers = list(times)

    def drop_timers_until(self, now: float) -> None:
        """Drop the timers up to the time `now`, since their records are looked for now."""
        self._timers = [at for at in self._timers if at > now]

    def schedule_sweep(self, at: float) -> None:
        """Include this queue in the sweeps that begin at the time `at` or later."""
        self._next_sweep = at

    def sweep_no_later_than(self, at: float) -> None:
        """Include this queue in the sweeps that begin at the time `at` or later, unless an earlier time is set."""
        self._next_sweep = min(self._next_sweep, at)
