"""Hints that came from other processes and are still to be looked into: each at its moment, and not too many of them.

Nothing here is right because it came. Told by the transport's thread, taken over by the worker's.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from groundstate.engine.lane import Lane
from groundstate.engine.shift import Shift
from groundstate.rules.hint import EVERYBODY, ROWS_EACH, Hint

GAP_S = 0.01  # between two times at which hints are taken over: a flood of forged ones costs so many looks and no more
WAITING_MOST = 1_000  # beyond this they are dropped: what they say has been said


class Afar:
    """Of one worker."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, Hint]] = []
        self._lock = threading.Lock()
        self._not_before = 0.0

    def hear(self, hint: Hint, at: float) -> None:
        """To be looked into from then on, by the monotonic clock. From any thread."""
        with self._lock:
            if len(self._waiting) < WAITING_MOST:
                self._waiting.append((at, hint))

    def wait_until(self) -> float:
        """When there is something to take over."""
        with self._lock:
            first = min((at for at, _ in self._waiting), default=float("inf"))
        return max(first, self._not_before) if first != float("inf") else first

    def take_over(self, shift: Shift, now: float) -> None:
        """Tells the lanes what is ready."""
        if not self._waiting or now < self._not_before:
            return
        with self._lock:
            ready = [hint for at, hint in self._waiting if at <= now]
            self._waiting = [(at, hint) for at, hint in self._waiting if at > now]
        if ready:
            self._not_before = now + GAP_S
            _tell(shift.parts, ready)


def _tell(lanes: Sequence[Lane], ready: Sequence[Hint]) -> None:
    for lane in lanes:
        for hint in ready:
            if hint.table in lane.question.tables_named if hint.table else lane.name in hint.reactions:
                _tell_one(lane, hint)


def _tell_one(lane: Lane, hint: Hint) -> None:
    texts = hint.keys.get(lane.name, ())
    keys = [key for text in texts if (key := lane.question.key_of_text(text)) is not None]
    if keys:
        lane.hear_keys(keys)
    if len(keys) < max(len(texts), 1) and not (lane.left_to_others and hint.rows > ROWS_EACH):
        lane.hear_whole(spread=hint.rows >= EVERYBODY)
