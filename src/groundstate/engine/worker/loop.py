"""The loop of a worker: one iteration after the other until the worker stops, with pauses after errors and while there is nothing to do."""

from __future__ import annotations

from groundstate.engine.rows import corrupt_rows
from groundstate.engine.sql.db_errors import Illegible, RowRewritten
from groundstate.engine.watch.sweeps import SWEEP_S
from groundstate.engine.worker.components import WorkerComponents
from groundstate.engine.worker.handler_phase import HandlerPhase
from groundstate.engine.worker.hint_sender import HintSender
from groundstate.engine.worker.idle_wait import IdleWait
from groundstate.engine.worker.loop_iteration import LoopIteration
from groundstate.engine.worker.loop_pause import LoopPause
from groundstate.values.errors import WentBackError

MENDED_S = 0.1  # seconds: pause after corrupt rows of groundstate's tables were repaired


class WorkerLoop:
    """The loop of one worker. Only the worker's own thread calls it."""

    def __init__(self, components: WorkerComponents, sender: HintSender, idle_wait: IdleWait) -> None:
        self._components = components
        self._idle_wait = idle_wait
        handler_phase = HandlerPhase(components, idle_wait)
        self.iteration = LoopIteration(components, sender, handler_phase, idle_wait)
        self.pause = LoopPause(components, handler_phase)
        # Monotonic time at which the last iteration ended, plus the wait that follows it. Any thread may read it.
        self.turned_at = components.worker_state.clock.monotonic()

    def run_until_stopped(self) -> None:
        """Run iterations until the worker has to stop, and its running calls have ended or the time limit for them is over."""
        worker_state, signals, succession = self._components.worker_state, self._components.signals, self._components.succession
        if signals.wait_for_go:
            self._wait_for_go()
        warned = False
        busy_until = worker_state.clock.monotonic() + SWEEP_S
        while worker_state.stopping is None or not self._components.call_turns.finish_drain():
            try:
                self.iteration.run_iteration()
                if not self._idle_wait.newcomers_counted:
                    self._count_newcomers()  # after the first iteration, so that counting rows does not delay known reactions
            except RowRewritten as error:
                succession.note_row_rewritten(worker_state, str(error))
            except WentBackError as error:
                succession.note_restore(worker_state, str(error))
            except Illegible as error:
                self._hold_unreadable_attempts(error)
            except Exception as error:
                self._pause_after_error(error)
            wait = self.pause.seconds_to_wait()
            if not warned and (wait > 0 or worker_state.clock.monotonic() > busy_until):
                self._log_start_warnings()  # only now, so that the checks behind these warnings do not delay work that was waiting
                warned, wait = True, self.pause.seconds_to_wait()
            self.turned_at = worker_state.clock.monotonic() + max(wait, 0.0)
            if wait > 0:
                signals.wake.wait(wait)
            signals.wake.clear()

    def _wait_for_go(self) -> None:
        """Decide which reactions start, then carry out nothing until `begin_work` is called."""
        worker_state = self._components.worker_state
        self.turned_at = worker_state.clock.monotonic() + SWEEP_S
        try:
            self._count_newcomers()
        except Exception as error:
            self._pause_after_error(error)  # the loop tries again after its first iteration
        while not self._components.signals.go.wait(SWEEP_S) and worker_state.stopping is None:
            worker_state.incarnation.liveness.has_lock()
            self._components.report_publisher.write_if_changed()
            self.turned_at = worker_state.clock.monotonic() + SWEEP_S

    def _count_newcomers(self) -> None:
        self._components.admission.count_newcomers()
        self._idle_wait.note_newcomers_counted()
        self._components.signals.registered.set()

    def _log_start_warnings(self) -> None:
        """Log the warnings of the start. An error in a check only makes the worker pause."""
        try:
            self._components.admission.log_start_warnings()
        except Exception as error:
            self._pause_after_error(error)

    def _hold_unreadable_attempts(self, met: Illegible) -> None:
        """Hold the attempts whose rows cannot be read because a person edited them. All other attempts can then go on."""
        try:
            if corrupt_rows.mend_unreadable_rows(self._components.worker_state.incarnation):
                self._components.trouble.pause_for(MENDED_S)
            else:
                self._pause_after_error(met)
        except Exception as error:
            self._pause_after_error(error)

    def _pause_after_error(self, error: Exception) -> None:
        """Pause after any error in a loop iteration, then check the lock and sweep. Results of calls stay in memory, and no new call begins
        before these results are concluded.
        """
        self._components.trouble.pause_after_error(error)
        self._components.signals.registered.set()
        self._components.sweeps.sweep_independently(self._components.trouble.ends_at)
        self._components.succession.next_check = 0.0
