"""Keeps hints of other processes until this worker handles them. Each hint waits until a time of its own; the number of hints is bounded.

A hint only shows where to query. The transport's thread adds hints, and the worker's own thread passes the hints to the work queues.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.hint_codec import EVERYBODY, ROWS_EACH, Hint

GAP_S = 0.01  # seconds: hints are passed on at most once in this time, so that a flood of forged hints causes few queries
WAITING_MOST = 1_000  # the most hints that are kept; further hints are dropped, and a sweep finds their rows


class RemoteHints:
    """The hints of other processes that one worker has not handled yet."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, Hint]] = []
        self._lock = threading.Lock()
        self._not_before = 0.0

    def keep_hint(self, hint: Hint, at: float) -> None:
        """Keep a hint, which may be handled from the monotonic time `at` on. Any thread may call this."""
        with self._lock:
            if len(self._waiting) < WAITING_MOST:
                self._waiting.append((at, hint))

    def next_wake_time(self) -> float:
        """Return the monotonic time at which the next hint may be handled; infinity if no hint waits."""
        with self._lock:
            first = min((at for at, _ in self._waiting), default=float("inf"))
        return max(first, self._not_before) if first != float("inf") else first

    def pass_on_ready_hints(self, worker_state: WorkerState, now: float) -> None:
        """Pass each hint whose time has come to the work queues that it concerns."""
        if not self._waiting or now < self._not_before:
            return
        with self._lock:
            ready = [hint for at, hint in self._waiting if at <= now]
            self._waiting = [(at, hint) for at, hint in self._waiting if at > now]
        if ready:
            self._not_before = now + GAP_S
            _pass_hints_to_queues(worker_state.all_queues, ready)


def _pass_hints_to_queues(queues: Sequence[WorkQueue], ready: Sequence[Hint]) -> None:
    for queue in queues:
        for hint in ready:
            if hint.table in queue.query.tables.names_of_tables_read if hint.table else queue.name in hint.reactions:
                _note_keys_of_hint(queue, hint)


def _note_keys_of_hint(queue: WorkQueue, hint: Hint) -> None:
    texts = hint.keys.get(queue.name, ())
    keys = [key for text in texts if (key := queue.query.keys.key_from_text_or_none(text)) is not None]
    if keys:
        queue.rows.note_keys(keys)
    if len(keys) < max(len(texts), 1) and not (queue.rows.left_to_others and hint.rows > ROWS_EACH):
        queue.rows.note_unknown_keys(spread=hint.rows >= EVERYBODY)
