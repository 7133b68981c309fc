"""The worker of one database: one thread runs all transactions and liveness checks, and alternates between the reactions.

In each loop iteration, the worker checks that it still has its lock; in one commit, it concludes the calls that returned and begins new
calls in the slots that became free; then it runs the handlers of reactions without a call, on fresh rows before old ones. Each second, and
when something is due, a sweep (a query of every condition) finds rows whose hint was lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from groundstate.engine import health
from groundstate.engine.call.thread_pool import stack_of
from groundstate.engine.health import WorkerHealth
from groundstate.engine.recover.startup import WHILE_IT_CAME_UP
from groundstate.engine.rows import data_restore_check
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.rows.reaction_registry import UnacceptedReaction
from groundstate.engine.sql import call_write_guard, commit_hooks
from groundstate.engine.sql.commit_hooks import TouchedRecords
from groundstate.engine.watch.hint_publisher import HintPublisher
from groundstate.engine.watch.shard_routing import DatabasePart
from groundstate.engine.watch.trace_hooks import Watch
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.worker import remaining_counts
from groundstate.engine.worker.components import WorkerComponents
from groundstate.engine.worker.hint_sender import HintSender
from groundstate.engine.worker.idle_wait import IdleWait
from groundstate.engine.worker.loop import WorkerLoop
from groundstate.engine.worker.options import Options, WorkerSettings
from groundstate.engine.worker.remaining_counts import RemainingCounts
from groundstate.engine.worker.runtime import PRODUCTION, Runtime
from groundstate.engine.worker.shut_down import ShutDown, StopResult
from groundstate.engine.worker.start_up import start_up
from groundstate.rules.hint_codec import Hint
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Opened
from groundstate.store.safe_name import label_of_url
from groundstate.values import log_store
from groundstate.values.errors import StoppedError

log = logging.getLogger("groundstate")
LEAVES_S = 15.0  # seconds that `stop` waits, after its time limit, for the worker to record which calls are in doubt
GIVES_UP_S = 0.7  # seconds that `stop` waits for a start to end: the start may be waiting for an answer of the server


class Worker:
    """A Worker carries out the reactions of one database. Call `start`, and `stop` at the end. `wait_until_idle` waits until no work can be
    done now.
    """

    def __init__(  # noqa: PLR0913  # each comes from another part of the app
        self,
        app: str,
        specs: Sequence[ReactionSpec],
        opened: Opened,
        *,
        schedules: Sequence[ScheduleSpec] = (),
        options: Options,
        redact: Callable[[str], str] | None = None,
        publisher: HintPublisher | None = None,
        watch: Watch | None = None,
        part: DatabasePart | None = None,
        runtime: Runtime = PRODUCTION,
    ) -> None:
        self.part = part or DatabasePart()
        self.database, _, self.witness = opened
        self.database.clock, self.database.dice = runtime.clock, runtime.dice
        store = self.part.name or label_of_url(self.database.settings.url)
        self._settings = WorkerSettings(app, store, specs, schedules, options, redact, watch, runtime)
        self._place = call_write_guard.guard_store(
            app, self.database.settings.url, self.database
        )  # while the worker keeps this object, call functions may not write to this database
        self.failure: BaseException | None = None
        # The function that the worker's thread calls last if an error ended it after the start.
        self.when_ended: Callable[[Worker], None] = _ignore_end
        self._up = False  # whether the start has succeeded
        sender = HintSender(publisher, self.part.name)
        self.components = WorkerComponents(self._settings, opened, sender)
        self._worker_state, self._signals = self.components.worker_state, self.components.signals
        self.idle_wait = IdleWait(self.components)
        self.loop = WorkerLoop(self.components, sender, self.idle_wait)
        self._shut_down = ShutDown(self.components, runtime.threads)
        self.thread = runtime.threads.Thread(target=self._run, name=f"groundstate-{app}", daemon=True)

    @property
    def incarnation(self) -> Incarnation:
        """Return the current incarnation of the worker. When an incarnation loses its lock, a new one replaces it."""
        return self._worker_state.incarnation

    @property
    def refused_reactions(self) -> list[UnacceptedReaction]:
        """Return the new and changed reactions that do not start until a person accepts them."""
        return self.components.admission.refused

    @property
    def reasons_of_waiting_reactions(self) -> dict[str, str]:
        """Return a mapping from the name of each reaction that this worker does not carry out now to a text that says why."""
        found = {
            queue.name: queue.postponement.lacks or "it is not known yet which rows it would begin with"
            for queue in self.queues
            if queue.postponement.lacks or not queue.is_enabled
        }
        found |= dict.fromkeys(
            self.incarnation.waiting, f"the database may have been put back, and a person must say what it was: {data_restore_check.CURE}"
        )
        found |= {newcomer.name: newcomer.message for newcomer in self.refused_reactions}
        found |= {
            part.name: by
            for part in self._worker_state.all_queues
            if (by := part.postponement.barred) is not None and part.name not in found
        }
        if self.current_trouble is not None:
            found |= {queue.name: f"its database is in trouble: {self.current_trouble}" for queue in self.queues if queue.name not in found}
        return found

    @property
    def counts_of_expired(self) -> Mapping[str, int]:
        """Return how many records expired since the worker was started, by reaction."""
        return self._worker_state.tally.expired

    @property
    def current_trouble(self) -> str | None:
        """Return what went wrong with the database in the last loop iteration or while schedules were read; None if nothing did."""
        if self.components.trouble.errors_in_a_row:
            return self.components.trouble.description
        return (
            self.components.ticks.last_error_text if self.components.leader.has_to_sweep else None
        )  # only a worker that sweeps reads schedules

    def worker_health(self) -> WorkerHealth:
        """Return a snapshot of this worker's health. Any thread may call this."""
        return health.build_worker_health(
            self._worker_state,
            self.components.call_turns,
            thread=self.thread.ident,
            turned_s=max(self._worker_state.clock.monotonic() - self.loop.turned_at, 0.0),
            trouble=self.current_trouble,
            ended=self.failure,
            waits_for_go=self._signals.is_waiting_for_go,
            refused=[one.name for one in self.refused_reactions],
            waiting=self.reasons_of_waiting_reactions,
        )

    @property
    def reasons_not_idle(self) -> list[str]:
        """Return the reasons why this worker is not idle, as texts. Any thread may call this."""
        return health.reasons_not_idle(
            self._worker_state,
            self.components.call_turns,
            self.reasons_of_waiting_reactions,
            ticks=self.components.ticks.has_due_tick,
        )

    @property
    def queues(self) -> list[WorkQueue]:
        """Return the work queues, one for each reaction."""
        return self._worker_state.queues

    # ---- methods that other threads call -------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start the worker's thread, and return once it has its lock, its row in groundstate_worker, and the attempts of dead workers.

        Raises:
            StoppedError: `stop` was called meanwhile.
            Exception: the error that kept the worker from starting; its message names the cure.
        """
        if self._worker_state.stopping is None:
            self.thread.start()
            self._signals.started.wait()
        if self._worker_state.stopping is not None and not self._up:
            raise StoppedError(WHILE_IT_CAME_UP) from self.failure
        if self.failure is not None and not self._up:
            raise self.failure

    def wait_until_registered(self, timeout_s: float) -> None:
        """Wait, at most `timeout_s` seconds, until the worker has decided which reactions it carries out. The other reactions act on no
        row, old or new, until a person accepts them.
        """
        self._signals.registered.wait(timeout_s)

    def stop(self, limit_s: float) -> StopResult:
        """Begin nothing new, wait at most `limit_s` seconds for running calls, and end the worker. A call that still runs then is left in
        doubt. If the worker is still starting, the start is cancelled.
        """
        self._worker_state.begin_stop(self._worker_state.clock.monotonic() + limit_s)
        self.components.call_turns.caller.draining = True
        self._signals.go.set()
        self._signals.wake.set()
        self._signals.registered.set()
        up = self._up
        if not up:
            self._signals.started.set()
        if self.thread.is_alive():
            self.thread.join(limit_s + LEAVES_S if up else GIVES_UP_S)
        hangs = self.thread.is_alive() and (
            up or self._worker_state.incarnation.sound
        )  # a worker that is still starting and has no lock is not counted as hanging: it waits for a server, and has begun nothing
        if hangs:
            stack = stack_of(self.thread.ident)
            log.error(
                "the worker of %s has not ended %.0f s after its limit, and is left behind: what it does is rolled back, or in doubt."
                " It stands at:\n%s",
                self._settings.store,
                LEAVES_S,
                stack,
                extra={"event": "worker_left_behind", "store": self._settings.store, "stack": stack},
            )
        return StopResult(
            len(self.components.call_turns.left_in_doubt), clean=not hangs and (self._shut_down.end_recorded if up else True), hangs=hangs
        )

    def begin_work(self) -> None:
        """Let a worker that was started with `wait_for_go` carry out its reactions from now on."""
        self._signals.go.set()
        self._signals.wake.set()

    def note_commit(self, touched: TouchedRecords) -> None:
        """Receive a note of the rows that one commit of this process touched, and wake the worker if they concern a reaction."""
        if not self.part.is_concerned_by(self.part.name_of_database(touched)):
            return
        if self._settings.runtime.threads.current_thread() is not self.thread:
            self.components.sweeps.heard_here = True
        # This is a list because each queue has to note the rows: any() over a generator would stop at the first queue that they concern.
        heard = [queue.note_commit(touched, shared=self.components.leader.has_other_workers) for queue in self._worker_state.all_queues]
        if any(heard):
            self._signals.wake.set()

    def wait_until_idle(self, timeout_s: float | None) -> bool:
        """Wait until a whole sweep that began after this call finds nothing to do. Return False if `timeout_s` seconds pass before that."""
        return self.idle_wait.wait_until_idle(timeout_s, self._raise_if_ended)

    def _raise_if_ended(self) -> None:
        if self.failure is not None or not self.thread.is_alive():
            raise self.failure or StoppedError("the worker has stopped")

    def receive_remote_hint(self, hint: Hint) -> None:
        """Receive a hint from another process. Any thread may call this. A random number in the hint decides which workers query the
        database for the rows.
        """
        if hint.leads and self.part.is_concerned_by(hint.store):
            self.components.leader.note_leader_message(hint)
            return
        if (
            self.failure is not None
            or hint.in_hand
            or not self.part.is_concerned_by(hint.store)
            or not self.components.sharing.receive_message(hint)
        ):
            return
        if hint.let_in is None:
            wait_s = self.components.leader.seconds_until_wake(hint.dice, hint.rows)
            if wait_s is None:
                return
            self.components.remote_hints.keep_hint(hint, self._worker_state.clock.monotonic() + wait_s)
        self._signals.wake.set()

    def resign_if_stuck(self) -> None:
        """If this worker hangs, end its leadership of the sweeps, so that another worker sweeps for all. Any thread may call this."""
        self.components.leader.resign_if_stuck()

    def count_remaining(self) -> RemainingCounts:
        """Count the attempts of this app by state, and the records that become due later."""
        return remaining_counts.count_remaining(self._worker_state)

    # ---- the worker's thread -----------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        log_store.label_log_lines(self._settings.store, of_several=self.part.several)
        try:
            start_up(self.components, self._settings)
            self._up = True
        except BaseException as error:  # `start` raises this error in the thread that called it
            self.failure = error
            self._shut_down.abandon_start()
            return
        finally:
            self._signals.started.set()
        self._settings.runtime.listen(self)
        try:
            self.loop.run_until_stopped()
        except BaseException as error:
            log.exception(
                "the worker of %s ended by an error in its own; what was under way is settled by the next start",
                self._settings.store,
                extra={"event": "worker_ended", "app": self._settings.app, "store": self._settings.store},
            )
            self.failure = error
            self._worker_state.incarnation.sound = False
        finally:
            self._signals.registered.set()
            commit_hooks.remove_listener(self)
            try:
                self._shut_down.shut_down()
            finally:
                if self.failure is not None:
                    self.when_ended(self)


def _ignore_end(_worker: Worker) -> None:
    """Do nothing: the default of `Worker.when_ended`."""
