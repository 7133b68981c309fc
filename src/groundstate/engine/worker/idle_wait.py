"""Lets threads wait until a worker is idle: until a whole sweep that began after the thread's request has found nothing to do."""

from __future__ import annotations

from collections.abc import Callable

from groundstate.engine.worker.components import WorkerComponents

LOOKS_S = 0.2  # seconds after which a waiting thread checks again whether the worker has ended or the time limit is over


class IdleWait:
    """The wait of other threads until one worker is idle. Several threads that wait share one request."""

    def __init__(self, components: WorkerComponents) -> None:
        self._components = components
        # The stage of the request: 'asked', then 'swept' once a sweep has begun after the request; None if nobody waits.
        self._stage: str | None = None
        # Whether the rows of new and changed reactions were counted; until then the worker does not count as idle.
        self.newcomers_counted = False

    @property
    def is_requested(self) -> bool:
        """Return whether another thread waits until the worker is idle."""
        return self._stage is not None

    def wait_until_idle(self, timeout_s: float | None, raise_if_ended: Callable[[], None]) -> bool:
        """Wait until a whole sweep that began after this call finds nothing to do. Return False if `timeout_s` seconds pass before that.
        Any thread may call this.

        raise_if_ended: called now and then; raises an error if the worker's thread has ended.
        """
        clock, signals = self._components.worker_state.clock, self._components.signals
        signals.idle.clear()
        self._stage = "asked"
        self._components.sweeps.next = 0.0
        signals.wake.set()
        try:
            end = None if timeout_s is None else clock.monotonic() + timeout_s
            while not signals.idle.wait(LOOKS_S):
                raise_if_ended()
                if end is not None and clock.monotonic() > end:
                    return False
                self._stage = self._stage or "asked"  # another thread that waited may have cleared the common request
            return True
        finally:
            self._stage = None

    def note_newcomers_counted(self) -> None:
        """Note that the rows of new and changed reactions were counted."""
        self.newcomers_counted = True

    def note_sweep_began(self) -> None:
        """Note that a sweep began. This sweep can answer a request that was made before it."""
        if self._stage == "asked":
            self._stage = "swept"

    def signal_if_idle(self) -> None:
        """Answer the request, if there is one and the worker is idle. The worker's thread calls this in each loop iteration."""
        components, worker_state = self._components, self._components.worker_state
        if (
            self._stage != "swept"
            or not self.newcomers_counted
            or not components.call_turns.is_idle
            or components.ticks.has_due_tick
            or worker_state.incarnation.rings.has_waiting_records
            or worker_state.handler_locks.has_waiting_records
            or worker_state.alone is not None
            or any(queue.has_work or (queue.is_enabled and queue.rows.backlog) for queue in worker_state.all_queues)
        ):
            return
        if worker_state.progress.done_since_sweep:
            self._stage = "asked"  # work was done since the last sweep began, so wait for one more sweep, which must find no work
            components.sweeps.next = 0.0
            return
        self._stage = None
        components.signals.idle.set()
