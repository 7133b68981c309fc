"""The worker of one database: one thread runs all transactions and liveness checks, and alternates between the reactions.

In each loop iteration, the worker checks that it still has its lock; in one commit, it concludes the calls that returned and begins new
calls in the slots that became free; then it runs the handlers of reactions without a call, on fresh rows before old ones. Each second, and
when something is due, a sweep (a query of every condition) finds rows whose hint was lost.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sqlalchemy import func, select

from groundstate.clock import SYSTEM_CLOCK, SYSTEM_DICE, Clock, Dice
from groundstate.engine import health
from groundstate.engine.call import rate_limit
from groundstate.engine.call.call_turn import CallTurns, MakeCaller
from groundstate.engine.call.executor import CallExecutor
from groundstate.engine.call.thread_pool import stack_of
from groundstate.engine.handler_turn import Batches
from groundstate.engine.health import WorkerHealth
from groundstate.engine.operate import left_by_other_apps, moved_tables
from groundstate.engine.publish_report import ReportPublisher
from groundstate.engine.recover import adopt
from groundstate.engine.recover.admission import Admission
from groundstate.engine.recover.startup import (
    WHILE_IT_CAME_UP,
    Succession,
    log_trouble_over,
    retry_start_step,
    shorten_waits_of_wrong_clock,
    take_over_from_dead_workers,
)
from groundstate.engine.recover.suspects import Suspects
from groundstate.engine.rows import corrupt_rows, data_restore_check
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.rows.reaction_registry import UnacceptedReaction
from groundstate.engine.schedule import upcoming
from groundstate.engine.schedule.run_ticks import TickRunner
from groundstate.engine.sql import call_write_guard, commit_hooks, db_errors, lock_ids, lock_waits, schema, session_guards, transaction
from groundstate.engine.sql.commit_hooks import Listener, Touched
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.db_errors import Illegible, RowRewritten
from groundstate.engine.sql.safe_text import describe_exception
from groundstate.engine.watch import due_attempts, locked_tables, missing_columns, raising_conditions, unknown_states
from groundstate.engine.watch.backlog_sharing import BacklogSharing
from groundstate.engine.watch.due_timers import Timers
from groundstate.engine.watch.hint_publisher import HintPublisher
from groundstate.engine.watch.idle_probe import IdleProbe
from groundstate.engine.watch.log_backoff import RepeatedTrouble
from groundstate.engine.watch.peek import BacklogProbe
from groundstate.engine.watch.remote_hints import RemoteHints
from groundstate.engine.watch.routing import register_parent_wakeups
from groundstate.engine.watch.shard_routing import DatabasePart
from groundstate.engine.watch.slow_conditions import SeparateQueries
from groundstate.engine.watch.sweep_leader import SweepLeader
from groundstate.engine.watch.sweeps import SWEEP_S, Sweeps
from groundstate.engine.watch.trace_hooks import GuardedWatch, Watch, Where
from groundstate.engine.watch.work_queue import WorkQueue, build_work_queue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.acceptance import Accept, parse_acceptance
from groundstate.rules.hint_codec import Hint
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database, Opened
from groundstate.store.safe_name import label_of_url
from groundstate.store.tables import attempt as attempt_table
from groundstate.values import log_store
from groundstate.values.errors import StoppedError, StoreRefusedError, WentBackError

log = logging.getLogger("groundstate")
DEAD_EACH_S = 0.2  # seconds, times the number of other workers: the least time between two checks whether workers are dead
MENDED_S = 0.1  # seconds: pause after corrupt rows of groundstate's tables were repaired
RETURNS_S = 0.8  # seconds: longest pause of a worker that lost its lock; 5 s after a server restart, others adopt its attempts
LEAVES_S = 15.0  # seconds that `stop` waits, after its time limit, for the worker to record which calls are in doubt
CALLS_END_S = 3.0  # seconds that cancelled async calls have to end; while a call still runs, the worker keeps its lock
GIVES_UP_S = 0.7  # seconds that `stop` waits for a start to end: the start may be waiting for an answer of the server


@dataclass(frozen=True)
class Options:
    """The options with which a worker is started."""

    accept: Accept = False  # which new and changed reactions may start on existing rows, and whether calls were made for these rows
    after_restore: bool = False  # a person says that the database was restored from a backup
    wait_for_go: bool = False  # the worker carries out nothing until `begin_work` is called
    leave_undeclared: bool = False  # start even if there are attempts of reactions that this version of the application does not declare


@dataclass(frozen=True)
class RemainingCounts:
    """How many attempts and records of an idle worker wait for their time or for a person."""

    in_doubt: int  # attempts
    failed: int  # attempts
    held: int  # attempts that wait for a person
    timers: int = 0  # records that will become due later


@dataclass(frozen=True)
class StopResult:
    """What a worker left when it ended."""

    in_doubt: int = 0  # calls with unknown outcome: the stop cut them off, they timed out meanwhile, or they run past their time limit
    clean: bool = True  # the worker recorded its end in the database, so that no other worker has to detect the end by the free lock
    hangs: bool = False  # the worker's thread did not end in time and was abandoned


class Threads(Protocol):
    """The part of the module `threading` that a worker uses: it runs in a thread, and other threads wait for its events."""

    @property
    def Event(self) -> Callable[[], Any]: ...  # noqa: N802  # named as in the module

    @property
    def Thread(self) -> Callable[..., Any]: ...  # noqa: N802  # named as in the module

    @property
    def current_thread(self) -> Callable[[], object]: ...


@dataclass(frozen=True)
class Runtime:
    """What a worker runs on. The defaults are those of production; the crash lab (groundstate's test kit) gives stand-ins.

    caller: makes the object that runs the worker's calls. query: makes the condition query of a reaction on a database. listen: registers
    the worker as a listener to the commits of its process.
    """

    clock: Clock = SYSTEM_CLOCK
    dice: Dice = SYSTEM_DICE
    threads: Threads = threading
    caller: MakeCaller = CallExecutor
    query: Callable[[ReactionSpec, Database], ConditionQuery] = ConditionQuery
    listen: Callable[[Listener], None] = commit_hooks.add_listener


PRODUCTION = Runtime()


class Worker:
    """Carry out the reactions of one database. Call `start`, then `stop`; `wait_until_idle` waits until no work can be done now."""

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
        self.options = options
        self._runtime = runtime
        self._clock = runtime.clock
        self._part = part or DatabasePart()
        self.database, make_liveness, self._witness = opened
        self.database.clock, self.database.dice = runtime.clock, runtime.dice
        self._specs = specs
        self._schedules = schedules
        self._app = app
        self._store = self._part.name or label_of_url(self.database.settings.url)
        self._place = call_write_guard.guard_store(
            app, self.database.settings.url, self.database
        )  # while the worker keeps this object, call functions may not write to this database
        self.failure: BaseException | None = None
        # The function that the worker's thread calls last if an error ended it after the start.
        self.when_ended: Callable[[Worker], None] = _ignore_end
        self._up = False  # whether the start has succeeded
        self._end_recorded = False  # whether the last incarnation recorded its own end
        self._wake = self._runtime.threads.Event()
        self._started = self._runtime.threads.Event()
        self._go = self._runtime.threads.Event()
        self._quiet = self._runtime.threads.Event()
        # The stage of a `wait_until_idle`: 'asked', then 'swept' once a sweep has begun after the request; None if nobody waits.
        self._quiet_wanted: str | None = None
        declared = frozenset([*(spec.name for spec in specs), *(spec.name for spec in schedules)])
        tables_of = {spec.name: spec.table_name for spec in specs}
        self._succession = Succession(
            lambda: Incarnation(app, self.database, make_liveness(), self._witness, redact or str, declared=declared, tables_of=tables_of),
            after_restore=options.after_restore,
        )
        self._worker_state = WorkerState(app, self.database, self._succession.create_successor(), self._store)
        self._worker_state.watched = GuardedWatch(Where(app, self._store), watch)
        self._admission = Admission(
            self._worker_state, accept=parse_acceptance(options.accept, declared), leave_undeclared=options.leave_undeclared
        )
        self._call_turns = CallTurns(self._worker_state, self._wake.set, runtime.caller)
        self._timers = Timers(self._worker_state)
        self._ticks = TickRunner(self._worker_state, schedules)
        self._publisher = publisher
        self._leader = SweepLeader(self._worker_state, lambda: publisher is not None and publisher.is_up)
        self._remote_hints = RemoteHints()
        self._sharing = BacklogSharing(self._worker_state, self._leader, self._send_hint)
        self._words = ReportPublisher(self._worker_state, self._call_turns.limits, self._sharing, lambda: self._is_waiting_for_go)
        self._aside = SeparateQueries(self._worker_state, self._wake.set)
        self._batches = Batches(self._worker_state, self._sharing)
        self._suspects = Suspects(self._worker_state)
        self._looks = BacklogProbe(self._worker_state, self._leader, self._timers)
        self._sweeps = Sweeps(self._worker_state, self._leader, self._looks, self._timers)
        # Set once it is known which reactions run here, or an error or a stop prevents that.
        self._registered = self._runtime.threads.Event()
        self._counted = False  # whether the rows of new and changed reactions were counted; until then the worker does not count as idle
        self._next_watch = 0.0
        self._next_dead = 0.0
        self._turned_at = self._clock.monotonic()  # monotonic time at which the last loop iteration ended, plus the wait that follows it
        self._not_before = 0.0  # monotonic time before which no loop iteration runs, since the database is in trouble
        self._trouble = 0
        self._troubled_at = 0.0  # monotonic time at which the present trouble began
        self._troubled_by = ""
        self._says_trouble = RepeatedTrouble()
        self._thread = self._runtime.threads.Thread(target=self._run, name=f"groundstate-{app}", daemon=True)

    @property
    def incarnation(self) -> Incarnation:
        """Return the current worker incarnation; a new one replaces it if its lock was lost."""
        return self._worker_state.incarnation

    @property
    def refused_reactions(self) -> list[UnacceptedReaction]:
        """Return the new and changed reactions that do not start until a person accepts them."""
        return self._admission.refused

    @property
    def reasons_of_waiting_reactions(self) -> dict[str, str]:
        """Return why this worker does not carry out some reactions now, as a text by reaction name."""
        found = {
            queue.name: queue.lacks or "it is not known yet which rows it would begin with"
            for queue in self.queues
            if queue.lacks or not queue.is_enabled
        }
        found |= dict.fromkeys(
            self.incarnation.waiting, f"the database may have been put back, and a person must say what it was: {data_restore_check.CURE}"
        )
        found |= {newcomer.name: newcomer.message for newcomer in self.refused_reactions}
        found |= {part.name: part.barred for part in self._worker_state.all_queues if part.barred is not None and part.name not in found}
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
        if self._trouble:
            return self._troubled_by
        return self._ticks.trouble if self._leader.has_to_sweep else None  # only a worker that sweeps reads schedules

    def worker_health(self) -> WorkerHealth:
        """Return a snapshot of this worker's health. Any thread may call this."""
        return health.build_worker_health(
            self._worker_state,
            self._call_turns,
            thread=self._thread.ident,
            turned_s=max(self._clock.monotonic() - self._turned_at, 0.0),
            trouble=self.current_trouble,
            ended=self.failure,
            waits_for_go=self._is_waiting_for_go,
            refused=[one.name for one in self.refused_reactions],
            waiting=self.reasons_of_waiting_reactions,
        )

    @property
    def reasons_not_idle(self) -> list[str]:
        """Return the reasons why this worker is not idle, as texts. Any thread may call this."""
        return health.reasons_not_idle(
            self._worker_state, self._call_turns, self.reasons_of_waiting_reactions, ticks=self._ticks.has_due_tick
        )

    @property
    def _is_waiting_for_go(self) -> bool:
        return self.options.wait_for_go and not self._go.is_set()

    @property
    def queues(self) -> list[WorkQueue]:
        """Return the work queues, one for each reaction."""
        return self._worker_state.queues

    # ---- methods that other threads call -------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start the worker's thread, and return once it has its lock, its row in groundstate_worker, and the attempts of dead workers.

        Raises:
            StoppedError: `stop` was called meanwhile.
            Exception: the error that kept the worker from starting; its text has the cure.
        """
        if self._worker_state.stopping is None:
            self._thread.start()
            self._started.wait()
        if self._worker_state.stopping is not None and not self._up:
            raise StoppedError(WHILE_IT_CAME_UP) from self.failure
        if self.failure is not None and not self._up:
            raise self.failure

    def wait_until_registered(self, timeout_s: float) -> None:
        """Wait, at most `timeout_s` seconds, until the worker has decided which reactions it carries out. Rows of the other reactions, old
        and new, wait until a person accepts the reaction.
        """
        self._registered.wait(timeout_s)

    def stop(self, limit_s: float) -> StopResult:
        """Begin nothing new, wait at most `limit_s` seconds for running calls, leave those that still run in doubt, and end the worker. A
        start that is still under way is cancelled.
        """
        self._worker_state.stopping = self._clock.monotonic() + limit_s
        self._call_turns.caller.draining = True
        self._go.set()
        self._wake.set()
        self._registered.set()
        up = self._up
        if not up:
            self._started.set()
        if self._thread.is_alive():
            self._thread.join(limit_s + LEAVES_S if up else GIVES_UP_S)
        hangs = self._thread.is_alive() and (
            up or self._worker_state.incarnation.sound
        )  # a start without the lock does not count: it waits for a server, and has begun nothing
        if hangs:
            stack = stack_of(self._thread.ident)
            log.error(
                "the worker of %s has not ended %.0f s after its limit, and is left behind: what it does is rolled back, or in doubt."
                " It stands at:\n%s",
                self._store,
                LEAVES_S,
                stack,
                extra={"event": "worker_left_behind", "store": self._store, "stack": stack},
            )
        return StopResult(len(self._call_turns.left_in_doubt), clean=not hangs and (self._end_recorded if up else True), hangs=hangs)

    def begin_work(self) -> None:
        """Let a worker that was started with `wait_for_go` carry out its reactions from now on."""
        self._go.set()
        self._wake.set()

    def hear(self, touched: Touched) -> None:
        """Receive a note of the rows that one commit of this process touched, and wake the worker if they concern a reaction."""
        if not self._part.is_concerned_by(self._part.name_of_database(touched)):
            return
        if self._runtime.threads.current_thread() is not self._thread:
            self._sweeps.heard_here = True
        # A list, since each queue has to take note: any() over a generator would stop at the first queue that is concerned.
        heard = [queue.note_commit(touched, shared=self._worker_state.others) for queue in self._worker_state.all_queues]
        if any(heard):
            self._wake.set()

    def wait_until_idle(self, timeout_s: float | None) -> bool:
        """Wait until a whole sweep that began after this call finds nothing to do. Return False if `timeout_s` seconds pass before."""
        self._quiet.clear()
        self._quiet_wanted = "asked"
        self._sweeps.next = 0.0
        self._wake.set()
        try:
            end = None if timeout_s is None else self._clock.monotonic() + timeout_s
            while not self._quiet.wait(0.2):
                if self.failure is not None or not self._thread.is_alive():
                    raise self.failure or StoppedError("the worker has stopped")
                if end is not None and self._clock.monotonic() > end:
                    return False
                self._quiet_wanted = self._quiet_wanted or "asked"  # another thread that waited may have cleared the common request
            return True
        finally:
            self._quiet_wanted = None

    # ---- from the start of the worker thread to its loop -----------------------------------------------------------------------
    def _run(self) -> None:
        log_store.label_log_lines(self._store, of_several=self._part.several)
        try:
            self._start_up()
            self._up = True
        except BaseException as error:  # `start` raises this error in the thread that called it
            self.failure = error
            with contextlib.suppress(Exception):
                if self._worker_state.stopping is None:
                    self._worker_state.incarnation.liveness.release()
                else:
                    self._succession.abandon_start(self._worker_state)
            with contextlib.suppress(Exception):
                self.database.close()
            return
        finally:
            self._started.set()
        self._runtime.listen(self)
        try:
            self._run_loop()
        except BaseException as error:
            log.exception(
                "the worker of %s ended by an error in its own; what was under way is settled by the next start",
                self._store,
                extra={"event": "worker_ended", "app": self._app, "store": self._store},
            )
            self.failure = error
            self._worker_state.incarnation.sound = False
        finally:
            self._registered.set()
            commit_hooks.remove_listener(self)
            try:
                self._shut_down()
            finally:
                if self.failure is not None:
                    self.when_ended(self)

    def _start_up(self) -> None:
        retry_start_step(self._worker_state, self.database.connect)
        transaction.watch_statements(self.database)
        retry_start_step(self._worker_state, lambda: schema.check_tables(self.database))
        queues = [build_work_queue(self._runtime.query(spec, self.database)) for spec in self._specs]
        queries = [queue.query for queue in queues]
        for query in queries:
            session_guards.guard_records(query)
            register_parent_wakeups(query)
        self._worker_state.queues = queues
        for queue in queues:
            missing_columns.wait_if_schema_misfit(self._worker_state, queue, queue.query.filter_raised)
        self._leader.lock = lock_ids.sweep_leader_lock_id(self._app, self._code_fingerprint())
        retry_start_step(self._worker_state, self._admission.read_accepted_reactions)
        self._succession.begin_first(self._worker_state)
        retry_start_step(self._worker_state, lambda: moved_tables.update_renamed_tables(self._worker_state))
        retry_start_step(self._worker_state, self._log_leftovers_of_other_apps)

    def _log_leftovers_of_other_apps(self) -> None:
        """Log the open attempts that apps without a running worker left here: such an app may be this one under a former name."""
        queries = [queue.query for queue in self._worker_state.queues]
        with self.database.reading() as connection:
            found = left_by_other_apps.find_left_by_others(self._app, self.database, connection, queries, self.incarnation.liveness)
        left_by_other_apps.log_left_by_others(self._app, found)

    def _code_fingerprint(self) -> str:
        """Return a text made of all conditions and schedules of this worker. A worker sweeps by its own conditions, so it sweeps only for
        workers with the same text.
        """
        conditions = sorted([queue.name, queue.query.condition_text] for queue in self._worker_state.queues)
        return json.dumps([conditions, sorted([spec.name, spec.as_text] for spec in self._schedules)])

    # ---- loop iterations -------------------------------------------------------------------------------------------------------
    def _run_loop(self) -> None:
        if self.options.wait_for_go:
            self._wait_for_go()
        warned = False
        busy_until = self._clock.monotonic() + SWEEP_S
        while self._worker_state.stopping is None or not self._call_turns.finish_drain():
            try:
                self._run_iteration()
                if not self._counted:
                    self._count_newcomers()  # after the first iteration, so that counting rows does not delay known reactions
            except RowRewritten as error:
                self._succession.note_row_rewritten(self._worker_state, str(error))
            except WentBackError as error:
                self._succession.note_restore(self._worker_state, str(error))
            except Illegible as error:
                self._hold_unreadable_attempts(error)
            except Exception as error:
                self._pause_after_error(error)
            wait = self._seconds_to_wait()
            if not warned and (wait > 0 or self._clock.monotonic() > busy_until):
                self._log_start_warnings()  # late, so that these checks do not delay work that was waiting
                warned, wait = True, self._seconds_to_wait()
            self._turned_at = self._clock.monotonic() + max(wait, 0.0)
            if wait > 0:
                self._wake.wait(wait)
            self._wake.clear()

    def _wait_for_go(self) -> None:
        """Decide which reactions start, then carry out nothing until `begin_work` is called."""
        self._turned_at = self._clock.monotonic() + SWEEP_S
        try:
            self._count_newcomers()
        except Exception as error:
            self._pause_after_error(error)  # the loop tries again after its first iteration
        while not self._go.wait(SWEEP_S) and self._worker_state.stopping is None:
            self._worker_state.incarnation.liveness.is_held()
            self._words.write_if_changed()
            self._turned_at = self._clock.monotonic() + SWEEP_S

    def _count_newcomers(self) -> None:
        self._admission.count_newcomers()
        self._counted = True
        self._registered.set()

    def _log_start_warnings(self) -> None:
        """Log the warnings of the start. An error in a check only makes the worker pause."""
        try:
            self._admission.log_start_warnings()
        except Exception as error:
            self._pause_after_error(error)

    def _hold_unreadable_attempts(self, met: Illegible) -> None:
        """Hold attempts whose rows cannot be read, since a person edited them, so that all other attempts go on."""
        try:
            if corrupt_rows.mend_unreadable_rows(self._worker_state.incarnation):
                self._not_before = self._clock.monotonic() + MENDED_S
            else:
                self._pause_after_error(met)
        except Exception as error:
            self._pause_after_error(error)

    def _pause_after_error(self, error: Exception) -> None:
        """Pause, and perhaps log, after any error in a loop iteration. Results of calls stay in memory, and no new call begins before
        these results are concluded.
        """
        if not self._trouble:
            self._troubled_at = self._clock.monotonic()
        self._trouble = min(self._trouble + 1, 6)
        whose = lock_waits.describe_lock_against_our_writes(self.database) if db_errors.is_lock_timeout(error) else None
        self._troubled_by = whose or describe_exception(error)
        self._registered.set()
        wait = 0.1 * 2**self._trouble
        if not self._worker_state.incarnation.sound:
            wait = min(wait, RETURNS_S)
        self._not_before = self._clock.monotonic() + wait
        self._sweeps.sweep_independently(self._not_before)
        self._succession.next_check = 0.0
        words = str(error) if isinstance(error, StoreRefusedError) else whose or db_errors.error_in_one_line(error)
        is_new = self._says_trouble.is_new(words)
        if not self._says_trouble.may_log(words, self._clock.monotonic()):
            return
        if db_errors.is_transient(error):
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

    def _run_iteration(self) -> None:
        started = self._clock.monotonic()
        if started < self._not_before:
            return
        before = self._worker_state.took
        self.database.refuse_if_silent()
        self._succession.check_lock(self._worker_state)
        self._leader.turned_at = started
        if self._worker_state.stopping is not None:
            self._leader.resign()
        self._remote_hints.pass_on_ready_hints(self._worker_state, started)
        self._leader.announce_or_watch_leader(started, self._send_hint)
        if self._sweeps.begin_sweep_if_due(self._adopt_and_reread_tables, self._do_chores_between_sweeps) and self._quiet_wanted == "asked":
            self._quiet_wanted = "swept"
        if self._worker_state.left_begun:
            self._call_turns.settle_begun_attempts_without_call()
            self._worker_state.left_begun = False
        self._sharing.exchange_reports()
        # Whether passes of a sweep run: asked here, before the timers and hints of this iteration begin passes of their own.
        sweeping = any(queue.has_pass for queue in self._worker_state.all_queues)
        if not sweeping:
            self._worker_state.tally.record_sweep_end(started)
        if locked_tables.recheck_barred_queues(self._worker_state):
            self._timers.mark_stale()
        if self._admission.recheck_lacking_reactions():
            self._timers.mark_stale()
        self._timers.begin_due_passes()
        raising_conditions.continue_searches(self._worker_state)
        self._looks.probe_new_passes()
        self._aside.run_separate_queries()
        self._check_running_calls(started)
        self._suspects.choose_next()
        self._call_turns.run_turn()
        if self._worker_state.stopping is None:
            if self._may_run_handlers:
                self._run_handlers()
            self._signal_idle_if_idle()
        if self._trouble:
            self._trouble = 0
            self._says_trouble = RepeatedTrouble()
            log_trouble_over(self._worker_state, self._clock.monotonic() - self._troubled_at)
        if sweeping and self._worker_state.took == before:
            self._sweeps.idle_s += self._clock.monotonic() - started
        self._words.write_if_changed()
        self._worker_state.incarnation.lines.log_left_out_counts(started)

    def _run_handlers(self) -> None:
        """Run ticks of schedules and the handlers of reactions without a call. In careful mode (after workers died), a record suspected of
        having ended its worker goes first, once no call is in flight.
        """
        alone = None if self._call_turns.number_of_calls_in_flight else self._worker_state.alone
        if self._may_run_ticks:
            self._ticks.run_due_ticks()
        if alone is not None:
            if alone.reaction not in self._worker_state.schedules:
                self._batches.carry_out_suspect(alone)
            self._suspects.postpone_chosen()
        self._batches.run_batches()

    @property
    def _may_run_handlers(self) -> bool:
        """Return whether handlers may run: not while a call is in flight that is suspected of having ended its worker."""
        return not self._call_turns.is_suspect_in_flight

    @property
    def _may_run_ticks(self) -> bool:
        """Return whether ticks of schedules may run: not while a suspected attempt runs or waits for the calls in flight to end."""
        return (
            self._has_to_run_ticks
            and self._may_run_handlers
            and (self._worker_state.alone is None or not self._call_turns.number_of_calls_in_flight)
        )

    @property
    def _has_to_run_ticks(self) -> bool:
        """Return whether this worker runs the schedules: if it sweeps, or if a `wait_until_idle` waits for it."""
        return self._leader.has_to_sweep or self._quiet_wanted is not None

    def _seconds_to_wait(self) -> float:
        """Return how many seconds the loop may sleep, unless a hint wakes it: 0 if there is work now."""
        now = self._clock.monotonic()
        if now < self._not_before:
            return self._not_before - now
        if self._worker_state.alone is not None and not self._call_turns.number_of_calls_in_flight:
            return 0.0  # in careful mode with no call in flight, the next suspected attempt can run at once
        if self._worker_state.stopping is None and any(self._can_take_work(queue, now) for queue in self._worker_state.all_queues):
            return 0.0
        if self._worker_state.stopping is None and any(
            raising_conditions.has_search_step(queue) and queue.not_before <= now for queue in self._worker_state.queues
        ):
            return 0.0
        times = [self._sweeps.next_wake_time(), now + SWEEP_S, self._remote_hints.next_wake_time()]
        if self._may_run_ticks:
            times.append(self._ticks.time_of_next_work())
        known = (
            self._worker_state.next_due,
            self._timers.next_wake_time(),
            self._aside.next_wake_time(),
            self._sharing.next_wake_time(),
            self._worker_state.incarnation.rings.end_of_next_pause()
            if self._may_run_handlers
            else None,  # while a suspected call runs, no handler may run; the end of that call wakes this thread
        )
        times += [at for at in known if at is not None]
        times += [queue.not_before for queue in self._worker_state.all_queues if (queue.has_work or queue.lacks) and queue.not_before > now]
        times += [queue.barred_until for queue in self._worker_state.all_queues if queue.barred is not None]
        times += [queue.failing.until for queue in self._worker_state.all_queues if queue.has_work and queue.failing.until > now]
        call_turns = self._call_turns.seconds_to_wait(now)
        return max(min(min(times) - now, SWEEP_S if call_turns is None else call_turns), 0.0)

    def _can_take_work(self, queue: WorkQueue, now: float) -> bool:
        if not queue.has_work or queue.not_before > now:
            return False
        if queue.query.spec.call is not None:
            return self._call_turns.has_room_for_call(queue, now)
        return self._may_run_handlers and self._batches.can_try_record(queue, now)

    # ---- sweeps ------------------------------------------------------------------------------------------------------------------
    def _adopt_and_reread_tables(self, seen: IdleProbe) -> None:
        """Do the parts of a sweep that query no reaction's condition: adopt attempts of dead workers, settle begun attempts that have no
        call in memory, read the registry of reactions and the schedules again, and look up the next due time.
        """
        now = self._clock.monotonic()
        if seen.strangers and now < self._next_dead:
            seen = replace(seen, strangers=False)
        else:
            self._next_dead = now + DEAD_EACH_S * (self._leader.worker_count - 1)
        take_over_from_dead_workers(self._worker_state, seen)
        if self._worker_state.incarnation.awaits_until is not None:
            self._sweeps.next = min(self._sweeps.next, max(self._worker_state.incarnation.awaits_until, self._next_dead, now))
        if seen.attempts:
            self._call_turns.settle_begun_attempts_without_call()
        if seen.old_rates:
            rate_limit.delete_expired_counts(self._worker_state)
        self._admission.reread_registry(seen)
        self._admission.recheck_older_code()
        self._ticks.reread_rows()
        if seen.attempts:
            due_attempts.refresh_next_due(self._worker_state)
        else:
            self._worker_state.next_due = None
            unknown_states.forget_unknown_states(self._worker_state)
            for queue in self._worker_state.queues:
                queue.due, queue.due_cursor = False, None

    def _do_chores_between_sweeps(self, seen: IdleProbe) -> None:
        """Do the few parts of a sweep that remain while another worker sweeps for this one: update careful mode, shorten waits that a wrong
        clock made too long, and read again what a person accepted or trusted.
        """
        adopt.delete_rows_of_past_incarnations(self._worker_state.incarnation)
        adopt.update_careful_mode(self._worker_state.incarnation, seen)
        shorten_waits_of_wrong_clock(self._worker_state)
        self._admission.reread_registry(seen)
        self._admission.recheck_older_code()

    def _check_running_calls(self, now: float) -> None:
        """Once a second, cancel overtaken calls (the condition no longer holds) whose reaction asks for that, and log a call that blocks
        the event loop.
        """
        if now >= self._next_watch:
            self._next_watch = now + SWEEP_S
            self._call_turns.cancel_overtaken_calls()
            self._call_turns.caller.warn_if_loop_blocked()

    # ---- hints from and to other workers -----------------------------------------------------------------------------------------
    def receive_remote_hint(self, hint: Hint) -> None:
        """Receive a hint from another process. Any thread may call this. A random number in the hint decides which workers query the
        database for the rows.
        """
        if hint.leads and self._part.is_concerned_by(hint.store):
            self._leader.note_leader_message(hint)
            return
        if (
            self.failure is not None
            or hint.in_hand
            or not self._part.is_concerned_by(hint.store)
            or not self._sharing.receive_message(hint)
        ):
            return
        if hint.let_in is None:
            wait_s = self._leader.seconds_until_wake(hint.dice, hint.rows)
            if wait_s is None:
                return
            self._remote_hints.keep_hint(hint, self._clock.monotonic() + wait_s)
        self._wake.set()

    def _send_hint(self, hint: Hint) -> None:
        """Send a hint to the other workers, provided that there is a hint publisher."""
        if self._publisher is not None:
            self._publisher.send_message(replace(hint, store=self._part.name))

    def resign_if_stuck(self) -> None:
        """If this worker hangs, give up the lead, so that another worker sweeps for all. Any thread may call this."""
        self._leader.resign_if_stuck()

    # ---- idleness, and the end of the worker -----------------------------------------------------------------------------------------
    def _signal_idle_if_idle(self) -> None:
        if (
            self._quiet_wanted != "swept"
            or not self._counted
            or not self._call_turns.is_idle
            or self._ticks.has_due_tick
            or self._worker_state.incarnation.rings.has_waiting_records
            or self._worker_state.alone is not None
            or any(queue.has_work or (queue.is_enabled and queue.backlog) for queue in self._worker_state.all_queues)
        ):
            return
        if self._worker_state.took:
            self._quiet_wanted = "asked"  # work was done since the last sweep began, so wait for one more sweep, which must find none
            self._sweeps.next = 0.0
            return
        self._quiet_wanted = None
        self._quiet.set()

    def count_remaining(self) -> RemainingCounts:
        """Count the attempts of this app by state, and the records that become due later."""
        table = attempt_table
        counted = select(table.c.state, func.count()).where(table.c.app == self._app).group_by(table.c.state)
        with self.database.reading() as connection:
            states = {row[0]: row[1] for row in connection.execute(counted)}
            timers = sum(upcoming.count_not_yet_due(connection, queue.query) for queue in self._worker_state.queues)
        return RemainingCounts(states.get("doubt", 0), states.get("failed", 0), states.get("held", 0), timers)

    def _shut_down(self) -> None:
        caller = self._call_turns.caller
        self._worker_state.incarnation.lines.log_left_out_counts(self._clock.monotonic(), over=True)
        with contextlib.suppress(Exception):
            self._leader.resign()  # this worker may keep its other locks for long, while its last calls run
        self._aside.stop()
        caller.stop(CALLS_END_S)
        if caller.number_running and self._worker_state.incarnation.sound:
            # Without the lock, another worker would take this incarnation for dead and settle calls that may still take effect.
            log.warning(
                "%d calls still run: its lock is kept until they end",
                caller.number_running,
                extra={"event": "calls_still_running", "count": caller.number_running},
            )
            self._record_end(
                self._worker_state.incarnation.delete_row_keep_lock
            )  # recorded now, since these calls are in doubt already: a process exit while they run is then no unclean end
            last = log_store.keep_log_label(self._end_after_last_calls)
            self._runtime.threads.Thread(target=last, name="groundstate-last-calls", daemon=True).start()
            return
        if self._worker_state.incarnation.sound:
            self._record_end(self._worker_state.incarnation.end)
        else:
            self._worker_state.incarnation.liveness.release()
        self.database.close()

    def _end_after_last_calls(self) -> None:
        self._call_turns.caller.wait_until_none_runs()
        self._worker_state.incarnation.liveness.release()
        self.database.close()

    def _record_end(self, end: Callable[[], None]) -> None:
        try:
            end()
            self._end_recorded = True
        except Exception as error:
            log.warning(
                "this worker could not write that it ended: the next one will see that by its lock (%s)",
                describe_exception(error),
                extra={"event": "worker_end_unsaid", "worker": f"{self._worker_state.incarnation.id:x}"},
            )


def _ignore_end(_worker: Worker) -> None:
    """Do nothing: the default of `Worker.when_ended`."""
