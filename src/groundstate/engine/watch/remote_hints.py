"""Hints of other processes that wait until this worker looks at them: each has its time, and their number is limited.

Nothing is taken as true because a hint says it. The transport's thread adds hints, and the worker's own thread takes them over.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.hint_codec import EVERYBODY, ROWS_EACH, Hint

GAP_S = 0.01  # seconds between two takeovers of hints, which limits the queries that a flood of forged hints costs
WAITING_MOST = 1_000  # the most hints kept; further ones are dropped, since so many already make the worker look


class RemoteHints:
    """The hints of other processes that wait in one worker."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, Hint]] = []
        self._lock = threading.Lock()
        self._not_before = 0.0

    def hear(self, hint: Hint, at: float) -> None:
        """Keep a hint until the monotonic time `at`. Any thread may call this."""
        with self._lock:
            if len(self._waiting) < WAITING_MOST:
                self._waiting.append((at, hint))

    def wait_until(self) -> float:
        """Return the monotonic time at which a hint can be taken over; infinity if there is none."""
        with self._lock:
            first = min((at for at, _ in self._waiting), default=float("inf"))
        return max(first, self._not_before) if first != float("inf") else first

    def take_over(self, worker_state: WorkerState, now: float) -> None:
        """Pass the hints whose time has come to the work queues they concern."""
        if not self._waiting or now < self._not_before:
            return
        with self._lock:
            ready = [hint for at, hint in self._waiting if at <= now]
            self._waiting = [(at, hint) for at, hint in self._waiting if at > now]
        if ready:
            self._not_before = now + GAP_S
            _tell(worker_state.parts, ready)


def _tell(queues: Sequence[WorkQueue], ready: Sequence[Hint]) -> None:
    for queue in queues:
        for hint in ready:
            if hint.table in queue.query.tables_named if hint.table else queue.name in hint.reactions:
                _tell_one(queue, hint)


def _tell_one(queue: WorkQueue, hint: Hint) -> None:
    texts = hint.keys.get(queue.name, ())
    keys = [key for text in texts if (key := queue.query.key_of_text(text)) is not None]
    if keys:
        queue.hear_keys(keys)
    if len(keys) < max(len(texts), 1) and not (queue.left_to_others and hint.rows > ROWS_EACH):
        queue.hear_whole(spread=hint.rows >= EVERYBODY)
