"""Begins the incarnations of one worker. An incarnation is the worker from taking its lock to losing it. At its beginning, an incarnation
checks whether the database was restored, and takes over the attempts of dead incarnations.

An incarnation that lost its lock makes no further call. When it has its lock again, it goes on. But if another worker took over its
attempts meanwhile, the next incarnation begins (hazard 30).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from groundstate.engine.recover import adopt, clamp_future, restore
from groundstate.engine.rows import corrupt_rows, data_restore_check
from groundstate.engine.rows.incarnation import RECONNECT, Incarnation
from groundstate.engine.sql import db_errors
from groundstate.engine.sql.db_errors import LockNotFree, LockSessionEnded, OtherServer
from groundstate.engine.watch import idle_probe
from groundstate.engine.watch.idle_probe import IdleProbe
from groundstate.engine.watch.log_backoff import RepeatedTrouble
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.values.errors import LifeTakenError, StoppedError, StoreRefusedError

log = logging.getLogger("groundstate")
CHECK_S = 1.0  # seconds between two checks that the lock is still held
LOCKED_OUT_S = 60.0  # seconds that a start waits for locks of other transactions, or for a server that takes no connection
PAUSE_S = 0.2  # seconds: the first pause before a step of a start is tried again
PAUSE_LONGEST_S = 3.0  # seconds: the longest pause before a step of a start is tried again
LOOKS_S = 0.1  # seconds between two checks for a stop of the worker, during a pause of a start
WHILE_IT_CAME_UP = "told to stop while it started: nothing was carried out"


class Succession:
    """Begins the incarnations of one worker, one after the other. Only the worker's own thread calls the methods.

    make: returns a new incarnation that has not begun. forget_enrolment: makes the worker insert missing rows of its
    schedules. after_restore: whether a person said that the database was restored from a backup.
    """

    def __init__(self, make: Callable[[], Incarnation], forget_enrolment: Callable[[], None], *, after_restore: bool) -> None:
        self._make = make
        self._forget_enrolment = forget_enrolment
        # why the database seems to have been restored from a backup, as a text; None if there is no sign of a restore, or once the calls
        # that were lost with the restore are in doubt
        self._went_back: str | None = None
        self._resumed: Incarnation | None = None  # an incarnation that has its lock again, and has yet to check for a restore; else None
        self.after_restore = after_restore
        self.next_check = 0.0

    def create_successor(self, old: Incarnation | None = None) -> Incarnation:
        """Return a new incarnation that has not begun. If `old` is given, the new incarnation gets what `old` had in memory."""
        fresh = self._make()
        if old is not None:
            fresh.key_names, fresh.suspects, fresh.care = old.key_names, old.suspects, old.care
            fresh.waiting = old.waiting
            fresh.past = {*old.past, old.id}
            fresh.met, fresh.cut = old.met, old.cut
            fresh.air, fresh.rings, fresh.lines = old.air, old.rings, old.lines
        return fresh

    def begin_first(self, worker_state: WorkerState) -> None:
        """Begin the first incarnation. If a lock of another transaction is in the way, wait; raise StoreRefusedError if the wait is too
        long or the database refuses the worker.
        """

        def begin_and_take_over() -> None:
            try:
                worker_state.incarnation.take_lock_and_insert_row()
                corrupt_rows.retry_after_mending(worker_state.incarnation, lambda: self._check_for_restore(worker_state))
                corrupt_rows.retry_after_mending(worker_state.incarnation, lambda: take_over_from_dead_workers(worker_state))
            except (DBAPIError, OtherServer):
                if worker_state.stopping is not None:
                    raise  # the caller then calls `abandon_start`, which ends the incarnation
                worker_state.incarnation.liveness.release()
                worker_state.replace_incarnation(self.create_successor(worker_state.incarnation))
                raise

        retry_start_step(worker_state, begin_and_take_over)
        self._log_begun(worker_state)

    def abandon_start(self, worker_state: WorkerState) -> None:
        """End the incarnation of a worker that was told to stop during its start: record a clean end, since nothing was carried out."""
        incarnation = worker_state.incarnation
        if incarnation.sound or incarnation.past:
            incarnation.delete_row_and_free_lock(with_past=True)
        else:
            incarnation.liveness.release()

    def check_lock(self, worker_state: WorkerState) -> None:
        """Check, at most once a second, that this worker still has its lock. If the lock is lost, take it again and go on, or begin the
        next incarnation.
        """
        now = worker_state.clock.monotonic()
        if now < self.next_check:
            return
        self.next_check = now + CHECK_S
        if worker_state.incarnation.sound and worker_state.incarnation.liveness.has_lock():
            return
        if worker_state.incarnation.sound:
            worker_state.incarnation.log_lock_lost("the connection that had it is gone")
        old, old.sound = worker_state.incarnation, False
        if self._try_to_take_lock_again(old):
            self._resume_incarnation(worker_state)
            return
        self._went_back = self._went_back or restore.describe_forgotten_calls(old)
        fresh = self.create_successor(old)
        fresh.take_lock_and_insert_row()
        worker_state.replace_incarnation(fresh)
        worker_state.tally.count_incarnation()
        try:
            self._check_for_restore(worker_state)
        except BaseException:
            fresh.sound = False  # no call may be made before the check for a restore has succeeded
            raise
        self._log_begun(worker_state)
        take_over_from_dead_workers(worker_state)

    def _try_to_take_lock_again(self, incarnation: Incarnation) -> bool:
        """Try to take again the lock that this incarnation lost. Return whether it has the lock and no other worker took over its attempts.

        If another session has the lock, raise LockNotFree during the first seconds: this may be the worker's own former session, since a
        server may notice late that a client is gone. After these seconds, return False.
        """
        if self._resumed is incarnation and incarnation.liveness.has_lock():
            return True  # an earlier call took the lock, but the check for a restore afterwards was interrupted
        self._resumed = None
        with contextlib.suppress(Exception):
            incarnation.liveness.release()
        since = incarnation.lost_at = incarnation.lost_at or incarnation.clock.monotonic()
        try:
            if self._went_back is None and incarnation.retake_lost_lock():
                self._resumed, incarnation.lost_at = incarnation, None
        except LifeTakenError as error:
            if incarnation.clock.monotonic() < since + RECONNECT.total_seconds():
                raise LockNotFree("the lock of this worker is not free yet: its last session has not ended, or it is adopted") from error
        return self._resumed is not None

    def _resume_incarnation(self, worker_state: WorkerState) -> None:
        """Check that the database was not restored. Then let the incarnation, which has regained its lock, go on with its calls in
        flight.
        """
        incarnation = worker_state.incarnation
        self._check_for_restore(worker_state)
        self._resumed, incarnation.sound = None, True
        # a commit that began attempts may have succeeded although its confirmation was lost
        worker_state.note_begun_attempts_left(left=True)
        log.info(
            "%s: this worker has its lock again, no other worker adopted its attempts, and it goes on with them",
            worker_state.store,
            extra={"event": "worker_resumed", "worker": f"{incarnation.id:x}", "store": worker_state.store},
        )
        take_over_from_dead_workers(worker_state)

    def _log_begun(self, worker_state: WorkerState) -> None:
        incarnation = worker_state.incarnation
        words = "a worker has begun on %s: its lock is taken, and calls may be made"
        log.info(words, worker_state.store, extra={"event": "worker_began", "worker": f"{incarnation.id:x}", "store": worker_state.store})

    def note_restore(self, worker_state: WorkerState, why: str) -> None:
        """Note that the database went back in time while the worker ran, and why that is known. The next incarnation puts the lost calls in
        doubt before it does anything else.
        """
        self._went_back = why
        worker_state.incarnation.sound = False
        self.next_check = 0.0

    def note_row_rewritten(self, worker_state: WorkerState, why: str) -> None:
        """Note that somebody else changed this incarnation's own row. The next incarnation checks for a restore before it does anything
        else.
        """
        log.error(
            "this worker makes no call until its next incarnation has begun: %s",
            why,
            extra={"event": "row_rewritten", "worker": f"{worker_state.incarnation.id:x}"},
        )
        worker_state.incarnation.sound, worker_state.incarnation.over = False, True
        self.next_check = 0.0

    def _check_for_restore(self, worker_state: WorkerState) -> None:
        said = "a person said so (--after-restore)" if self.after_restore else None
        why = said or self._went_back or restore.find_sign_of_restore(worker_state.incarnation)
        if why:
            self._went_back = why
            restore.put_lost_calls_in_doubt(worker_state.incarnation, [queue.query for queue in worker_state.queues], why)
            self._forget_enrolment()  # the rows of schedules may have been lost
            self.after_restore, self._went_back = False, None  # reset last, so that an interrupted check is repeated as a whole
            worker_state.hold_back_reactions(frozenset())
            return
        waiting = data_restore_check.mark_and_list_waiting_reactions(
            worker_state.incarnation, [queue.query.spec for queue in worker_state.queues]
        )
        if waiting - worker_state.incarnation.waiting:
            data_restore_check.log_waiting_reactions(waiting)
        worker_state.hold_back_reactions(waiting)
        restore.record_identity_if_changed(worker_state.incarnation)


def retry_start_step(worker_state: WorkerState, step: Callable[[], object]) -> None:
    """Run a step of a start.

    The step is tried again for a while if another transaction has a lock that the step needs, or if the server is full, was restarted, or
    cut the connection. If no server can be reached, raise at once, unless the server said before that it shuts down or starts up.

    Raises:
        StoreRefusedError: the obstacle lasted too long, or the connection goes through a pooler in statement mode. The text has the cure.
        StoppedError: the worker was told to stop meanwhile.
        DBAPIError: any other error of the database.
    """
    began, pause = worker_state.clock.monotonic(), PAUSE_S
    troubled = restarts = False
    says = RepeatedTrouble()
    while True:
        if worker_state.stopping is not None:
            raise StoppedError(WHILE_IT_CAME_UP)
        try:
            step()
        except (DBAPIError, OtherServer) as error:
            if db_errors.is_statement_pooling(error):
                raise StoreRefusedError(f"{worker_state.store}: {db_errors.BY_STATEMENT}") from error
            restarts = restarts or db_errors.is_server_starting(error)
            refused = _describe_obstacle(worker_state, error, restarts=restarts)
            if refused is None or worker_state.stopping is not None:
                raise
            if worker_state.clock.monotonic() - began > LOCKED_OUT_S:
                raise StoreRefusedError(refused) from error
            troubled = True
            wait = 0.0 if db_errors.is_lock_timeout(error) else pause  # the statement has already waited for the lock
            _log_trouble(worker_state, says, db_errors.error_in_one_line(error), wait)
            if wait:
                _sleep_unless_stopping(worker_state, wait)
                pause = min(pause * 1.5, PAUSE_LONGEST_S)
        else:
            if troubled:
                log_trouble_over(worker_state, worker_state.clock.monotonic() - began)
            return


def _log_trouble(worker_state: WorkerState, says: RepeatedTrouble, words: str, wait_s: float) -> None:
    if says.is_due_to_be_logged(words, worker_state.clock.monotonic()):
        log.warning(
            "the database is in trouble, tried again in %.1f s: %s",
            wait_s,
            words,
            extra={"event": "database_trouble", "wait_s": round(wait_s, 3)},
        )


def log_trouble_over(worker_state: WorkerState, took_s: float) -> None:
    """Log that the database works again. The trouble was logged before. took_s: the number of seconds that the trouble lasted."""
    words = "%s: the database works again, after %.1f s of trouble"
    log.info(words, worker_state.store, took_s, extra={"event": "database_back", "store": worker_state.store, "took_s": round(took_s, 3)})


def _sleep_unless_stopping(worker_state: WorkerState, seconds: float) -> None:
    """Sleep for some seconds, but wake up if the worker is told to stop."""
    end = worker_state.clock.monotonic() + seconds
    while worker_state.stopping is None and (left := end - worker_state.clock.monotonic()) > 0:
        worker_state.clock.sleep(min(left, LOOKS_S))


def _describe_obstacle(worker_state: WorkerState, error: DBAPIError | OtherServer, *, restarts: bool) -> str | None:
    """Return the message to raise if the cause of this error lasts too long; None if waiting does not help.

    restarts: whether the server has said that it shuts down or starts up.
    """
    if isinstance(error, LockSessionEnded):
        return f"the session that has the lock was ended again and again for {LOCKED_OUT_S:g} s: see the server's log, and start again"
    if isinstance(error, OtherServer):
        return f"the server was started anew again and again for {LOCKED_OUT_S:g} s: see its log, and start again"
    if error.connection_invalidated:
        words = f"the connection to the server was cut again and again for {LOCKED_OUT_S:g} s: see its log, and start again"
        return f"{words} ({db_errors.error_in_one_line(error)})"
    if db_errors.is_server_full(error):
        return db_errors.FULL
    if restarts and db_errors.is_no_fault_of_record(error) and not db_errors.is_lock_timeout(error):
        return f"the server has not come up within {LOCKED_OUT_S:g} s: see its log, and start again ({db_errors.error_in_one_line(error)})"
    if not (db_errors.is_no_fault_of_record(error) if worker_state.is_embedded else db_errors.is_lock_timeout(error)):
        return None
    if db_errors.is_disk_full(error):
        return f"nothing can be written where {worker_state.store} lies ({db_errors.error_in_one_line(error)})"
    what = "the write lock" if worker_state.is_embedded else "a lock on rows or tables that the start needs"
    return (
        f"another transaction has held {what} of {worker_state.store} for "
        f"{LOCKED_OUT_S:g} s: end that transaction (a stopped process, a shell that has not committed), and start again"
    )


def take_over_from_dead_workers(worker_state: WorkerState, seen: IdleProbe | None = None) -> None:
    """Take over the attempts of dead workers, switch careful mode on or off, and shorten waits that a wrong clock made too long.

    seen: a probe of groundstate's tables; None to make one.
    """
    incarnation = worker_state.incarnation
    seen = idle_probe.run_idle_probe(worker_state) if seen is None else seen
    adopted = adopt.adopt_all(incarnation) if seen.strangers else 0
    adopt.delete_rows_of_past_incarnations(incarnation)
    adopt.update_careful_mode(incarnation, idle_probe.run_idle_probe(worker_state) if adopted else seen)
    shorten_waits_of_wrong_clock(worker_state, adopted=bool(adopted))


def shorten_waits_of_wrong_clock(worker_state: WorkerState, *, adopted: bool = False) -> None:
    """Shorten the waits of attempts that were written while the clock was ahead.

    This is needed only in three cases: the incarnation is new, it has just taken over attempts (`adopted`), or it saw the clock go back
    since the last call of this function. In all other cases, do nothing.
    """
    incarnation = worker_state.incarnation
    back, before = incarnation.steps_back, worker_state.waits_shortened_for
    if adopted or before != (incarnation.id, back):
        terms = {queue.name: queue.query.spec.terms for queue in worker_state.queues}
        if clamp_future.shorten_future_waits(incarnation, terms, went_back=before[0] == incarnation.id and before[1] < back):
            worker_state.request_due_query()
        worker_state.note_waits_shortened()
