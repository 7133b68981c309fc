"""Pauses a worker's loop after errors: longer after each error in a row, until an iteration succeeds."""

from __future__ import annotations

import logging

from groundstate.engine.recover.startup import log_trouble_over
from groundstate.engine.sql import db_errors, lock_waits
from groundstate.engine.sql.safe_text import describe_exception
from groundstate.engine.watch.log_backoff import RepeatedTrouble
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.values.errors import StoreRefusedError

log = logging.getLogger("groundstate")
# seconds: the longest pause of a worker that lost its lock. It is short, since other workers adopt its attempts 5 s after a server restart.
RETURNS_S = 0.8


class TroublePause:
    """The trouble that one worker has with its database, and the pause that follows. Only the worker's own thread writes its fields; other
    threads may read them. Times are seconds of the monotonic clock.
    """

    def __init__(self, worker_state: WorkerState) -> None:
        self._worker_state = worker_state
        self.ends_at = 0.0  # time before which no loop iteration runs
        self.errors_in_a_row = 0  # errors since the last iteration that succeeded, counted up to 6
        self.description = ""  # what went wrong last
        self._began_at = 0.0  # time at which the present trouble began
        self._logged = RepeatedTrouble()

    def pause_for(self, seconds: float) -> None:
        """Pause the loop for this time. No error is counted."""
        self.ends_at = self._worker_state.clock.monotonic() + seconds

    def pause_after_error(self, error: Exception) -> None:
        """Pause, and perhaps log, after any error in a loop iteration."""
        if not self.errors_in_a_row:
            self._began_at = self._worker_state.clock.monotonic()
        self.errors_in_a_row = min(self.errors_in_a_row + 1, 6)
        whose = lock_waits.describe_lock_against_our_writes(self._worker_state.database) if db_errors.is_lock_timeout(error) else None
        self.description = whose or describe_exception(error)
        wait = 0.1 * 2**self.errors_in_a_row
        if not self._worker_state.incarnation.sound:
            wait = min(wait, RETURNS_S)
        self.pause_for(wait)
        self._log_error(error, str(error) if isinstance(error, StoreRefusedError) else whose or db_errors.error_in_one_line(error), wait)

    def _log_error(self, error: Exception, words: str, wait: float) -> None:
        is_new = self._logged.is_new(words)
        if not self._logged.is_due_to_be_logged(words, self._worker_state.clock.monotonic()):
            return
        if db_errors.is_no_fault_of_record(error):
            log.warning(
                "the database is in trouble, tried again in %.1f s: %s",
                wait,
                words,
                extra={"event": "database_trouble", "wait_s": wait},
            )
        # For these errors the message is enough, without a traceback.
        elif isinstance(error, StoreRefusedError) or db_errors.is_schema_mismatch(error) or db_errors.is_permission_denied(error):
            log.error("tried again in %.1f s: %s", wait, words, extra={"event": "turn_failed", "wait_s": wait})
        else:
            trace = error if is_new else None
            log.error(
                "a turn failed, tried again in %.1f s: %s", wait, words, exc_info=trace, extra={"event": "turn_failed", "wait_s": wait}
            )

    def end_trouble(self) -> None:
        """Note that a loop iteration succeeded, and log it if there was trouble before."""
        if self.errors_in_a_row:
            self.errors_in_a_row = 0
            self._logged = RepeatedTrouble()
            log_trouble_over(self._worker_state, self._worker_state.clock.monotonic() - self._began_at)
