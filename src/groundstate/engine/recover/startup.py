"""The incarnations of one worker, one after another: each takes its lock, checks for a restore, and adopts what dead ones left. Carries
nothing out.

An incarnation that lost its lock makes no further call. It goes on once it has its lock again, if no other worker adopted it meanwhile;
otherwise the next one begins (hazard 30).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from groundstate.engine.recover import adopt, clamp_future, restore
from groundstate.engine.rows import corrupt_rows, data_restore_check
from groundstate.engine.rows.incarnation import RECONNECT, Incarnation
from groundstate.engine.sql import db_errors
from groundstate.engine.sql.db_errors import LockNotFree, LockSessionEnded, OtherServer
from groundstate.engine.watch import idle_probe
from groundstate.engine.watch.idle_probe import IdleProbe
from groundstate.engine.watch.log_backoff import Repeated
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.values.errors import LifeTakenError, StoppedError, StoreRefusedError

log = logging.getLogger("groundstate")
CHECK_S = 1.0  # seconds between two checks that the lock is still held
LOCKED_OUT_S = 60.0  # seconds that a start waits for locks of other transactions, or for a server that takes no connection now
PAUSE_S = 0.2
PAUSE_LONGEST_S = 3.0
LOOKS_S = 0.1  # seconds between two checks, while it sleeps, whether the worker has to stop
WHILE_IT_CAME_UP = "told to stop while it came up: nothing was carried out"


class Succession:
    """The incarnations of one worker. make: creates an incarnation that has not begun. Only the worker's own thread calls the methods."""

    def __init__(self, make: Callable[[], Incarnation], *, after_restore: bool) -> None:
        self._make = make
        self._went_back: str | None = None  # why the database went back, until the calls of the lost time are in doubt
        self._resumed: Incarnation | None = None  # an incarnation that has its lock again, until the check for a restore is done
        self.after_restore = after_restore
        self.next_check = 0.0

    def next_life(self, old: Incarnation | None = None) -> Incarnation:
        """Create an incarnation that has not begun, with what the old one knew."""
        fresh = self._make()
        if old is not None:
            fresh.key_names, fresh.suspects, fresh.care = old.key_names, old.suspects, old.care
            fresh.waiting = old.waiting
            fresh.past = {*old.past, old.id}
            fresh.met, fresh.cut = old.met, old.cut
            fresh.air, fresh.rings, fresh.lines = old.air, old.rings, old.lines
        return fresh

    def begin(self, worker_state: WorkerState) -> None:
        """Begin the first incarnation, and wait while other transactions hold locks that this needs. Raises StoreRefusedError if it cannot
        begin.
        """

        def come_alive() -> None:
            try:
                worker_state.incarnation.begin()
                corrupt_rows.retry_after_mending(worker_state.incarnation, lambda: self._look_back(worker_state))
                corrupt_rows.retry_after_mending(worker_state.incarnation, lambda: take_over(worker_state))
            except (DBAPIError, OtherServer):
                if worker_state.stopping is not None:
                    raise  # `give_up` ends the incarnation
                worker_state.incarnation.liveness.release()
                worker_state.incarnation = self.next_life(worker_state.incarnation)
                raise

        retry_start_step(worker_state, come_alive)
        self._say_begun(worker_state)

    def give_up(self, worker_state: WorkerState) -> None:
        """End an incarnation whose worker is told to stop during its start: nothing was carried out, so no row may show an unclean end."""
        incarnation = worker_state.incarnation
        if incarnation.sound or incarnation.past:
            incarnation.end(with_past=True)
        else:
            incarnation.liveness.release()

    def check(self, worker_state: WorkerState) -> None:
        """Check each second that this worker still has its lock. If not, resume its incarnation, or begin the next one."""
        now = time.monotonic()
        if now < self.next_check:
            return
        self.next_check = now + CHECK_S
        if worker_state.incarnation.sound and worker_state.incarnation.liveness.held():
            return
        if worker_state.incarnation.sound:
            worker_state.incarnation.say_lock_lost("the connection that had it is gone")
        old, old.sound = worker_state.incarnation, False
        if self._goes_on(old):
            self._resume(worker_state)
            return
        self._went_back = self._went_back or restore.forgotten(old)
        fresh = self.next_life(old)
        fresh.begin()
        worker_state.incarnation = fresh
        worker_state.tally.workers += 1
        try:
            self._look_back(worker_state)
        except BaseException:
            fresh.sound = False  # no call goes out before it is known that the database did not go back
            raise
        self._say_begun(worker_state)
        take_over(worker_state)

    def _goes_on(self, incarnation: Incarnation) -> bool:
        """Return whether an incarnation that lost its lock has it again, and no other worker adopted it meanwhile.

        Raises LockNotFree for some seconds while another session has that lock: a server ends a session some time after its client was cut
        off.
        """
        if self._resumed is incarnation and incarnation.liveness.held():
            return True  # the check for a restore was interrupted
        self._resumed = None
        with contextlib.suppress(Exception):
            incarnation.liveness.release()
        since = incarnation.lost_at = incarnation.lost_at or time.monotonic()
        try:
            if self._went_back is None and incarnation.resume():
                self._resumed, incarnation.lost_at = incarnation, None
        except LifeTakenError as error:
            if time.monotonic() < since + RECONNECT.total_seconds():
                raise LockNotFree("the lock of this worker is not free yet: its last session has not ended, or it is adopted") from error
        return self._resumed is not None

    def _resume(self, worker_state: WorkerState) -> None:
        """Let the same incarnation go on, with its calls in flight. Before that, check that the database did not go back."""
        incarnation = worker_state.incarnation
        self._look_back(worker_state)
        self._resumed, incarnation.sound = None, True
        worker_state.left_begun = True  # attempts may be begun by a commit that brought no answer, and landed
        log.info(
            "%s: this worker has its lock again, nobody had adopted it, and it goes on with what it began",
            worker_state.store,
            extra={"event": "worker_resumed", "worker": f"{incarnation.id:x}", "store": worker_state.store},
        )
        take_over(worker_state)

    def _say_begun(self, worker_state: WorkerState) -> None:
        incarnation = worker_state.incarnation
        words = "a worker has begun on %s: its lock is taken, and calls may go out"
        log.info(words, worker_state.store, extra={"event": "worker_began", "worker": f"{incarnation.id:x}", "store": worker_state.store})

    def went_back(self, worker_state: WorkerState, why: str) -> None:
        """Note that the database went back under a running worker. The next incarnation deals with that before anything else."""
        self._went_back = why
        worker_state.incarnation.sound = False
        self.next_check = 0.0

    def begin_another(self, worker_state: WorkerState, why: str) -> None:
        """Note that this incarnation's own row was rewritten. The next incarnation checks for a restore before anything else."""
        log.error(
            "no call goes out until it has begun anew: %s",
            why,
            extra={"event": "row_rewritten", "worker": f"{worker_state.incarnation.id:x}"},
        )
        worker_state.incarnation.sound, worker_state.incarnation.over = False, True
        self.next_check = 0.0

    def _look_back(self, worker_state: WorkerState) -> None:
        said = "a person said so (--after-restore)" if self.after_restore else None
        why = said or self._went_back or restore.sign(worker_state.incarnation)
        if why:
            self._went_back = why
            restore.went_back(worker_state.incarnation, [queue.query for queue in worker_state.queues], why)
            worker_state.enrolled = False
            self.after_restore, self._went_back = False, None  # reset only now, so that it is all repeated if it is interrupted
            worker_state.hold_back(frozenset())
            return
        waiting = data_restore_check.mark_and_list_waiting_reactions(
            worker_state.incarnation, [queue.query.spec for queue in worker_state.queues]
        )
        if waiting - worker_state.incarnation.waiting:
            data_restore_check.log_waiting_reactions(waiting)
        worker_state.hold_back(waiting)
        restore.keep_identity(worker_state.incarnation)


def retry_start_step(worker_state: WorkerState, step: Callable[[], object]) -> None:
    """Run a step of a start, and retry it for a while if a lock is in its way, or if the server takes no connection, was restarted since
    the step began, or cut its connection. A server that cannot be reached is reported at once, unless it said before that it goes down or
    comes up.

    Raises:
        StoreRefusedError: the obstacle lasted too long, or a pooler in statement mode is in between; with the cure.
        StoppedError: the worker was told to stop meanwhile.
        DBAPIError: any other error of the database.
    """
    began, pause = time.monotonic(), PAUSE_S
    troubled = restarts = False
    says = Repeated()
    while True:
        if worker_state.stopping is not None:
            raise StoppedError(WHILE_IT_CAME_UP)
        try:
            step()
        except (DBAPIError, OtherServer) as error:
            if db_errors.by_statement(error):
                raise StoreRefusedError(f"{worker_state.store}: {db_errors.BY_STATEMENT}") from error
            restarts = restarts or db_errors.coming_up(error)
            refused = _in_the_way(worker_state, error, restarts=restarts)
            if refused is None or worker_state.stopping is not None:
                raise
            if time.monotonic() - began > LOCKED_OUT_S:
                raise StoreRefusedError(refused) from error
            troubled = True
            wait = 0.0 if db_errors.locked(error) else pause  # the statement has already waited for the lock
            _say_trouble(says, db_errors.error_in_one_line(error), wait)
            if wait:
                _rest(worker_state, wait)
                pause = min(pause * 1.5, PAUSE_LONGEST_S)
        else:
            if troubled:
                say_back(worker_state, time.monotonic() - began)
            return


def _say_trouble(says: Repeated, words: str, wait_s: float) -> None:
    if says.may_say(words, time.monotonic()):
        log.warning(
            "the database is in trouble, tried again in %.1f s: %s",
            wait_s,
            words,
            extra={"event": "database_trouble", "wait_s": round(wait_s, 3)},
        )


def say_back(worker_state: WorkerState, took_s: float) -> None:
    """Log that a trouble is over which was logged before."""
    words = "%s: well again, after %.1f s of trouble"
    log.info(words, worker_state.store, took_s, extra={"event": "database_back", "store": worker_state.store, "took_s": round(took_s, 3)})


def _rest(worker_state: WorkerState, seconds: float) -> None:
    """Sleep between two tries, until the time has passed or the worker is told to stop."""
    end = time.monotonic() + seconds
    while worker_state.stopping is None and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, LOOKS_S))


def _in_the_way(worker_state: WorkerState, error: DBAPIError | OtherServer, *, restarts: bool) -> str | None:
    """Return what to report if this obstacle lasts, or None if nothing shows that it will pass. restarts: the server has said that it goes
    down or comes up.
    """
    if isinstance(error, LockSessionEnded):
        return f"the session that has the lock was ended again and again for {LOCKED_OUT_S:g} s: see the server's log, and start again"
    if isinstance(error, OtherServer):
        return f"the server was started anew again and again for {LOCKED_OUT_S:g} s: see its log, and start again"
    if error.connection_invalidated:
        words = f"the connection to the server was cut again and again for {LOCKED_OUT_S:g} s: see its log, and start again"
        return f"{words} ({db_errors.error_in_one_line(error)})"
    if db_errors.server_is_full(error):
        return db_errors.FULL
    if restarts and db_errors.transient(error) and not db_errors.locked(error):
        return f"the server has not come up within {LOCKED_OUT_S:g} s: see its log, and start again ({db_errors.error_in_one_line(error)})"
    if not (db_errors.transient(error) if worker_state.embedded else db_errors.locked(error)):
        return None
    if db_errors.no_space(error):
        return f"nothing can be written where {worker_state.store} lies ({db_errors.error_in_one_line(error)})"
    what = "the write lock" if worker_state.embedded else "rows or tables that must be looked at first"
    return (
        f"somebody has held {what} of {worker_state.store} for "
        f"{LOCKED_OUT_S:g} s: end that transaction (a stopped process, a shell that has not committed), and start again"
    )


def take_over(worker_state: WorkerState, seen: IdleProbe | None = None) -> None:
    """Adopt what dead incarnations left, shorten waits that a wrong clock made too long, and set whether this worker is in careful mode."""
    incarnation = worker_state.incarnation
    seen = idle_probe.run_idle_probe(worker_state) if seen is None else seen
    adopted = adopt.adopt_all(incarnation) if seen.strangers else 0
    adopt.forget_past(incarnation)
    adopt.look_at_ends(incarnation, idle_probe.run_idle_probe(worker_state) if adopted else seen)
    follow_the_clock(worker_state, adopted=bool(adopted))


def follow_the_clock(worker_state: WorkerState, *, adopted: bool = False) -> None:
    """Shorten waits that were written while the clock was ahead: in a new incarnation, after it adopted attempts, and after the clock went
    back.
    """
    incarnation = worker_state.incarnation
    back, before = incarnation.steps_back, worker_state.bounded
    if adopted or before != (incarnation.id, back):
        terms = {queue.name: queue.query.spec.terms for queue in worker_state.queues}
        if clamp_future.shorten_future_waits(incarnation, terms, went_back=before[0] == incarnation.id and before[1] < back):
            worker_state.look_for_due()
        worker_state.bounded = (incarnation.id, back)
