"""The part of a loop iteration that runs handlers: ticks of schedules, and reactions without a call."""

from __future__ import annotations

from groundstate.engine.worker.components import WorkerComponents
from groundstate.engine.worker.idle_wait import IdleWait


class HandlerPhase:
    """Runs the ticks and the handlers of one worker. Only the worker's own thread calls it."""

    def __init__(self, components: WorkerComponents, idle_wait: IdleWait) -> None:
        self._components = components
        self._idle_wait = idle_wait

    def run_handlers(self) -> None:
        """Run ticks of schedules and the handlers of reactions without a call. In careful mode (after workers died), a record suspected of
        having ended its worker goes first, once no call is in flight.
        """
        components, worker_state = self._components, self._components.worker_state
        alone = None if components.call_turns.number_of_calls_in_flight else worker_state.alone
        if self.may_run_ticks:
            components.ticks.run_due_ticks()
        if alone is not None:
            if alone.reaction not in worker_state.schedules:
                components.batches.carry_out_suspect(alone)
            components.suspects.postpone_chosen()
        components.batches.run_batches()

    @property
    def may_run_handlers(self) -> bool:
        """Return whether handlers may run. They may not while a suspected call (one that may have ended its worker) is in flight."""
        return not self._components.call_turns.is_suspect_in_flight

    @property
    def may_run_ticks(self) -> bool:
        """Return whether ticks of schedules may run now. They may only if this worker has to run them, and never while a suspected attempt
        runs or waits until the calls in flight have ended.
        """
        components = self._components
        return (
            self._has_to_run_ticks
            and self.may_run_handlers
            and (components.worker_state.alone is None or not components.call_turns.number_of_calls_in_flight)
        )

    @property
    def _has_to_run_ticks(self) -> bool:
        """Return whether this worker has to run the schedules. It has to if it sweeps, or if a thread in `wait_until_idle` waits for it."""
        return self._components.leader.has_to_sweep or self._idle_wait.is_requested
