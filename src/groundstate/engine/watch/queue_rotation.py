"""Decides which work queue comes first, so that a queue with much work does not keep the others waiting."""

from __future__ import annotations

from groundstate.engine.watch.work_queue import WorkQueue


class QueueRotation:
    """The rotation of one worker's queues. The turns that run handlers and the turns that begin calls share one rotation."""

    def __init__(self) -> None:
        self.turn = 0  # number of calls of `rotate_queues`

    def rotate_queues(self, queues: list[WorkQueue]) -> list[WorkQueue]:
        """Return these queues in a new order. The first is the queue whose last turn as the first is the longest time ago."""
        self.turn += 1
        ordered = sorted(queues, key=lambda queue: queue.first_at)
        if ordered:
            ordered[0].note_first(self.turn)
        return ordered
