"""Ends a worker: records its end, and frees its lock once no call runs any more."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from groundstate.engine.sql.safe_text import describe_exception
from groundstate.engine.worker.components import WorkerComponents
from groundstate.engine.worker.runtime import Threads
from groundstate.values import log_store

log = logging.getLogger("groundstate")
CALLS_END_S = 3.0  # seconds that cancelled async calls have to end; while a call still runs, the worker keeps its lock


@dataclass(frozen=True)
class StopResult:
    """What a worker left when it ended."""

    # Number of calls whose outcome is unknown: the stop ended them, they timed out during the stop, or they still run after their time
    # limit.
    in_doubt: int = 0
    # Whether the worker recorded its end in the database; if not, other workers detect the end when they find its lock free.
    clean: bool = True
    hangs: bool = False  # the worker's thread did not end in time and was abandoned


class ShutDown:
    """The end of one worker. Only the worker's own thread calls these methods. If a call still runs when that thread ends, another thread
    finishes the end of the worker.
    """

    def __init__(self, components: WorkerComponents, threads: Threads) -> None:
        self._components = components
        self._threads = threads
        self.end_recorded = False  # whether the last incarnation recorded its own end

    def abandon_start(self) -> None:
        """End a worker whose start failed or was cancelled. Errors are ignored, since the reason for the end is known already."""
        worker_state = self._components.worker_state
        with contextlib.suppress(Exception):
            if worker_state.stopping is None:
                worker_state.incarnation.liveness.release()
            else:
                self._components.succession.abandon_start(worker_state)
        with contextlib.suppress(Exception):
            self._components.database.close()

    def shut_down(self) -> None:
        """End a worker whose start had succeeded."""
        components, worker_state = self._components, self._components.worker_state
        caller = components.call_turns.caller
        worker_state.incarnation.lines.log_left_out_counts(worker_state.clock.monotonic(), over=True)
        with contextlib.suppress(Exception):
            components.leader.resign()  # resign first, since this worker may keep its other locks for long, until its last calls have ended
        components.separate_queries.stop()
        caller.stop(CALLS_END_S)
        if caller.number_running and worker_state.incarnation.sound:
            # If the lock were free, another worker would consider this incarnation dead and settle calls that may still take effect.
            log.warning(
                "%d calls still run: its lock is kept until they end",
                caller.number_running,
                extra={"event": "calls_still_running", "count": caller.number_running},
            )
            self._record_end(
                worker_state.incarnation.delete_row_keep_lock
            )  # these calls are in doubt already; recorded now, so that the end counts as clean even if the process exits while they run
            last = log_store.keep_log_label(self._end_after_last_calls)
            self._threads.Thread(target=last, name="groundstate-last-calls", daemon=True).start()
            return
        if worker_state.incarnation.sound:
            self._record_end(worker_state.incarnation.delete_row_and_free_lock)
        else:
            worker_state.incarnation.liveness.release()
        components.database.close()

    def _end_after_last_calls(self) -> None:
        self._components.call_turns.caller.wait_until_none_runs()
        self._components.worker_state.incarnation.liveness.release()
        self._components.database.close()

    def _record_end(self, end: Callable[[], None]) -> None:
        try:
            end()
            self.end_recorded = True
        except Exception as error:
            log.warning(
                "this worker could not write that it ended: the next one will see that by its lock (%s)",
                describe_exception(error),
                extra={"event": "worker_end_unsaid", "worker": f"{self._components.worker_state.incarnation.id:x}"},
            )
