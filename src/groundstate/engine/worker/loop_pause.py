"""Decides how long a worker's loop may sleep between two iterations."""

from __future__ import annotations

from groundstate.engine.watch import raising_conditions
from groundstate.engine.watch.sweeps import SWEEP_S
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.worker.components import WorkerComponents
from groundstate.engine.worker.handler_phase import HandlerPhase


class LoopPause:
    """The pause between two loop iterations of one worker. Only the worker's own thread calls it."""

    def __init__(self, components: WorkerComponents, handler_phase: HandlerPhase) -> None:
        self._components = components
        self._handler_phase = handler_phase

    def seconds_to_wait(self) -> float:
        """Return how many seconds the loop may sleep if no hint wakes it; 0 if there is work now."""
        components, worker_state = self._components, self._components.worker_state
        now = worker_state.clock.monotonic()
        if now < components.trouble.ends_at:
            return components.trouble.ends_at - now
        if worker_state.alone is not None and not components.call_turns.number_of_calls_in_flight:
            return 0.0  # in careful mode with no call in flight, the next suspected attempt can run at once
        if worker_state.stopping is None and any(self._can_take_work(queue, now) for queue in worker_state.all_queues):
            return 0.0
        if worker_state.stopping is None and any(
            raising_conditions.has_search_step(queue) and queue.postponement.not_before <= now for queue in worker_state.queues
        ):
            return 0.0
        next_wake = min(self._wake_times(now))
        call_turns = components.call_turns.seconds_to_wait(now)
        return max(min(next_wake - now, SWEEP_S if call_turns is None else call_turns), 0.0)

    def _wake_times(self, now: float) -> list[float]:
        """Return the times, in monotonic seconds, at which the loop has something to do next. Calls are not considered."""
        components, worker_state = self._components, self._components.worker_state
        times = [components.sweeps.next_wake_time(), now + SWEEP_S, components.remote_hints.next_wake_time()]
        if self._handler_phase.may_run_ticks:
            times.append(components.ticks.time_of_next_work())
        known = (
            worker_state.next_due,
            components.timers.next_wake_time(),
            components.separate_queries.next_wake_time(),
            components.sharing.next_wake_time(),
            *(
                (worker_state.incarnation.rings.end_of_next_pause(), worker_state.handler_locks.end_of_next_pause())
                if self._handler_phase.may_run_handlers
                else ()
            ),  # while a suspected call runs, no handler may run; the end of that call wakes this thread
        )
        times += [at for at in known if at is not None]
        times += [at for queue in worker_state.all_queues for at in queue.wake_times(now)]
        return times

    def _can_take_work(self, queue: WorkQueue, now: float) -> bool:
        if not queue.has_work or queue.postponement.not_before > now:
            return False
        if queue.query.spec.call is not None:
            return self._components.call_turns.has_room_for_call(queue, now)
        return self._handler_phase.may_run_handlers and self._components.batches.can_try_record(queue, now)
