"""The worker of one database: one thread runs all transactions and liveness checks, and alternates between the reactions.

Each loop iteration does this: check that the worker still has its lock; in one commit, conclude the calls that returned and begin new calls
in the freed slots; run DB-only batches, fresh rows before the backlog. A sweep finds work whose hint was lost: it runs each second, or when
something is due.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import func, select

from groundstate.engine import health
from groundstate.engine.call import rate_limit
from groundstate.engine.call.call_turn import CallTurns
from groundstate.engine.call.thread_pool import stack_of
from groundstate.engine.handler_turn import Batches
from groundstate.engine.health import WorkerHealth
from groundstate.engine.operate import left_by_other_apps, moved_tables
from groundstate.engine.publish_report import ReportPublisher
from groundstate.engine.recover import adopt
from groundstate.engine.recover.admission import Admission
from groundstate.engine.recover.startup import WHILE_IT_CAME_UP, Succession, follow_the_clock, retry_start_step, say_back, take_over
from groundstate.engine.recover.suspects import Suspects
from groundstate.engine.rows import corrupt_rows, data_restore_check
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.rows.reaction_registry import Newcomer
from groundstate.engine.schedule import upcoming
from groundstate.engine.schedule.run_ticks import Ticks
from groundstate.engine.sql import call_write_guard, commit_hooks, db_errors, lock_ids, lock_waits, schema, session_guards, transaction
from groundstate.engine.sql.commit_hooks import Touched
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.db_errors import Illegible, RowRewritten
from groundstate.engine.sql.safe_text import describe
from groundstate.engine.watch import due_attempts, locked_tables, missing_columns, raising_conditions, unknown_states
from groundstate.engine.watch.backlog_sharing import BacklogSharing
from groundstate.engine.watch.due_timers import Timers
from groundstate.engine.watch.hint_publisher import HintPublisher
from groundstate.engine.watch.idle_probe import IdleProbe
from groundstate.engine.watch.log_backoff import Repeated
from groundstate.engine.watch.peek import Peek
from groundstate.engine.watch.remote_hints import RemoteHints
from groundstate.engine.watch.routing import wake_parents
from groundstate.engine.watch.shard_routing import Part
from groundstate.engine.watch.slow_conditions import Aside
from groundstate.engine.watch.sweep_leader import SweepLeader
from groundstate.engine.watch.sweeps import SWEEP_S, Sweeps
from groundstate.engine.watch.trace_hooks import Watch, Watched, Where
from groundstate.engine.watch.work_queue import WorkQueue, lanes_of
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.acceptance import Accept, acceptance
from groundstate.rules.hint_codec import Hint
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Opened
from groundstate.store.safe_name import name_of
from groundstate.store.tables import attempt as attempt_table
from groundstate.values import log_store
from groundstate.values.errors import StoppedError, StoreRefusedError, WentBackError

log = logging.getLogger("groundstate")
DEAD_EACH_S = 0.2  # seconds for each other worker: the least time between two checks whether workers are dead
MENDED_S = 0.1  # seconds: pause after corrupt rows of groundstate's tables were repaired
RETURNS_S = 0.8  # seconds: longest pause of a worker that lost its lock; after a server restart others wait only 5 s before they adopt
LEAVES_S = 15.0  # seconds beyond the drain limit for the worker to record which calls are in doubt
CALLS_END_S = 3.0  # seconds that cancelled async calls have to end; while a call still runs, this incarnation keeps its lock
GIVES_UP_S = 0.7  # seconds that `stop` waits for a start that it cancels, whose statement the server may not have answered


@dataclass(frozen=True)
class Options:
    """The options with which a worker is started."""

    accept: Accept = False  # which new and changed reactions start on rows that exist already, and what is known of their calls
    after_restore: bool = False
    wait_for_go: bool = False  # the worker starts, and carries out nothing until `go` is called
    leave_undeclared: bool = False  # start even if there are attempts of reactions that this code does not declare


@dataclass(frozen=True)
class Rest:
    """Counts of what remains when no work can be done now: attempts and records that wait for their time or for a person."""

    in_doubt: int
    failed: int
    held: int
    timers: int = 0  # records that will become due later


@dataclass(frozen=True)
class Ended:
    """What a worker left when it ended. clean: each incarnation recorded its own end, so that no other worker has to detect it by its free
    lock.
    """

    in_doubt: int = 0  # calls that the stop cut off, that timed out meanwhile, or that still run past their time limit
    clean: bool = True
    hangs: bool = False  # the worker's own thread did not end and was abandoned


class Worker:
    """Carry out the reactions of one database. Call `start`, then `stop`; `until_idle` waits until no work can be done now."""

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
        part: Part | None = None,
    ) -> None:
        self.options = options
        self._part = part or Part()
        self.database, make_liveness, self._witness = opened
        self._specs = specs
        self._schedules = schedules
        self._app = app
        self._store = self._part.name or name_of(self.database.settings.url)
        self._place = call_write_guard.watch(
            app, self.database.settings.url, self.database
        )  # while this reference exists, call functions may not write to this database
        self.failure: BaseException | None = None
        # Called after the thread of a started worker ended by an error and cleaned up.
        self.when_ended: Callable[[Worker], None] = _nobody_asks
        self._up = False  # whether the start has succeeded
        self._said_so = False  # whether the last incarnation recorded its own end
        self._wake = threading.Event()
        self._started = threading.Event()
        self._go = threading.Event()
        self._quiet = threading.Event()
        self._quiet_wanted: str | None = None  # what `until_idle` wants: 'asked', then 'swept' once a sweep began after that
        declared = frozenset([*(spec.name for spec in specs), *(spec.name for spec in schedules)])
        tables_of = {spec.name: spec.table_name for spec in specs}
        self._succession = Succession(
            lambda: Incarnation(app, self.database, make_liveness(), self._witness, redact or str, declared=declared, tables_of=tables_of),
            after_restore=options.after_restore,
        )
        self._worker_state = WorkerState(app, self.database, self._succession.next_life(), self._store)
        self._worker_state.watched = Watched(Where(app, self._store), watch)
        self._admission = Admission(
            self._worker_state, accept=acceptance(options.accept, declared), leave_undeclared=options.leave_undeclared
        )
        self._call_turns = CallTurns(self._worker_state, self._wake.set)
        self._timers = Timers(self._worker_state)
        self._ticks = Ticks(self._worker_state, schedules)
        self._publisher = publisher
        self._leader = SweepLeader(self._worker_state, lambda: publisher is not None and publisher.up)
        self._remote_hints = RemoteHints()
        self._sharing = BacklogSharing(self._worker_state, self._leader, self._say)
        self._words = ReportPublisher(self._worker_state, self._call_turns.limits, self._sharing, lambda: self._waits_for_go)
        self._aside = Aside(self._worker_state, self._wake.set)
        self._batches = Batches(self._worker_state, self._sharing)
        self._suspects = Suspects(self._worker_state)
        self._looks = Peek(self._worker_state, self._leader, self._timers)
        self._sweeps = Sweeps(self._worker_state, self._leader, self._looks, self._timers)
        self._registered = threading.Event()  # set once reactions are registered, or an error or a stop prevents that
        self._counted = False  # whether rows of new and changed reactions were counted; before that the worker cannot be called idle
        self._next_watch = 0.0
        self._next_dead = 0.0
        self._turned_at = time.monotonic()  # monotonic time of the last loop iteration, or of the end of the wait that follows it
        self._not_before = 0.0  # monotonic time before which no loop iteration runs, since the database is in trouble
        self._trouble = 0
        self._troubled_at = 0.0  # monotonic time at which the present trouble began
        self._troubled_by = ""
        self._says_trouble = Repeated()
        self._thread = threading.Thread(target=self._run, name=f"groundstate-{app}", daemon=True)

    @property
    def incarnation(self) -> Incarnation:
        """Return the current worker incarnation; a new one replaces it if its lock was lost."""
        return self._worker_state.incarnation

    @property
    def refused(self) -> list[Newcomer]:
        """Return the new and changed reactions that do not start until a person accepts them."""
        return self._admission.refused

    @property
    def waiting(self) -> dict[str, str]:
        """Return, by name, each reaction that this worker does not carry out now, and why."""
        found = {
            queue.name: queue.lacks or "it is not known yet which rows it would begin with"
            for queue in self.queues
            if queue.lacks or not queue.on
        }
        found |= dict.fromkeys(
            self.incarnation.waiting, f"the database may have been put back, and a person must say what it was: {data_restore_check.CURE}"
        )
        found |= {newcomer.name: newcomer.words for newcomer in self.refused}
        found |= {part.name: part.barred for part in self._worker_state.parts if part.barred is not None and part.name not in found}
        if self.trouble is not None:
            found |= {queue.name: f"its database is in trouble: {self.trouble}" for queue in self.queues if queue.name not in found}
        return found

    @property
    def expired(self) -> Mapping[str, int]:
        """Return how many records expired since the worker was started, by reaction."""
        return self._worker_state.tally.expired

    @property
    def trouble(self) -> str | None:
        """Return what went wrong with the database in the last loop iteration, or for a schedule since; None if it went well."""
        if self._trouble:
            return self._troubled_by
        return self._ticks.trouble if self._leader.sweeps else None  # who does not sweep looks at no schedule

    def worker_health(self) -> WorkerHealth:
        """Return a snapshot of this worker's health. Any thread may call this."""
        return health.build_worker_health(
            self._worker_state,
            self._call_turns,
            thread=self._thread.ident,
            turned_s=max(time.monotonic() - self._turned_at, 0.0),
            trouble=self.trouble,
            ended=self.failure,
            waits_for_go=self._waits_for_go,
            refused=[one.name for one in self.refused],
            waiting=self.waiting,
        )

    @property
    def not_idle(self) -> list[str]:
        """What keeps it from being idle, in words. From any thread."""
        return health.not_idle(self._worker_state, self._call_turns, self.waiting, ticks=self._ticks.wants)

    @property
    def _waits_for_go(self) -> bool:
        return self.options.wait_for_go and not self._go.is_set()

    @property
    def queues(self) -> list[WorkQueue]:
        """Return the work queues, one for each reaction."""
        return self._worker_state.queues

    # ---- methods that other threads call -------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start the worker thread; return once it has its lock, has recorded its identity and has adopted what dead workers left.

        Raises:
            StoppedError: `stop` was called meanwhile.
            Exception: whatever keeps the worker from starting, with its cure.
        """
        if self._worker_state.stopping is None:
            self._thread.start()
            self._started.wait()
        if self._worker_state.stopping is not None and not self._up:
            raise StoppedError(WHILE_IT_CAME_UP) from self.failure
        if self.failure is not None and not self._up:
            raise self.failure

    def until_registered(self, timeout_s: float) -> None:
        """Wait, at most `timeout_s` seconds, until the worker knows of each reaction whether it carries it out. Rows written after that
        belong to a reaction that has started, or wait together with one that has not.
        """
        self._registered.wait(timeout_s)

    def stop(self, limit_s: float) -> Ended:
        """Begin nothing new, let calls end within `limit_s` seconds, leave the rest in doubt, and end this incarnation. A start that is
        still under way ends at once.
        """
        self._worker_state.stopping = time.monotonic() + limit_s
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
        )  # a start that has no lock yet waits for a server, and has begun nothing
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
        return Ended(len(self._call_turns.left_in_doubt), clean=not hangs and (self._said_so if up else True), hangs=hangs)

    def go(self) -> None:
        """Let a worker that was started with `wait_for_go` carry out its reactions from now on."""
        self._go.set()
        self._wake.set()

    def hear(self, touched: Touched) -> None:
        """Receive a hint, which lists what one commit of this process touched, and wake the reactions it concerns."""
        if not self._part.concerns(self._part.of(touched)):
            return
        if threading.current_thread() is not self._thread:
            self._sweeps.heard_here = True
        # A list, so that each queue takes the hint: any() would stop at the first that does.
        heard = [queue.hear(touched, shared=self._worker_state.others) for queue in self._worker_state.parts]
        if any(heard):
            self._wake.set()

    def until_idle(self, timeout_s: float | None) -> bool:
        """Wait until a whole sweep that began after this call finds nothing to do. Return False if `timeout_s` seconds pass before."""
        self._quiet.clear()
        self._quiet_wanted = "asked"
        self._sweeps.next = 0.0
        self._wake.set()
        try:
            end = None if timeout_s is None else time.monotonic() + timeout_s
            while not self._quiet.wait(0.2):
                if self.failure is not None or not self._thread.is_alive():
                    raise self.failure or StoppedError("the worker has stopped")
                if end is not None and time.monotonic() > end:
                    return False
                self._quiet_wanted = self._quiet_wanted or "asked"  # another waiter may have ended and cleared the request for both
            return True
        finally:
            self._quiet_wanted = None

    # ---- from the start of the worker thread to its loop -----------------------------------------------------------------------
    def _run(self) -> None:
        log_store.label_log_lines(self._store, of_several=self._part.several)
        try:
            self._come_up()
            self._up = True
        except BaseException as error:  # `start` raises it in the thread that waits there
            self.failure = error
            with contextlib.suppress(Exception):
                if self._worker_state.stopping is None:
                    self._worker_state.incarnation.liveness.release()
                else:
                    self._succession.give_up(self._worker_state)
            with contextlib.suppress(Exception):
                self.database.close()
            return
        finally:
            self._started.set()
        commit_hooks.listen(self)
        try:
            self._go_on()
        except BaseException as error:
            log.exception(
                "the worker of %s ended by an error of its own; what was under way is settled by the next start",
                self._store,
                extra={"event": "worker_ended", "app": self._app, "store": self._store},
            )
            self.failure = error
            self._worker_state.incarnation.sound = False
        finally:
            self._registered.set()
            commit_hooks.stop_listening(self)
            try:
                self._leave()
            finally:
                if self.failure is not None:
                    self.when_ended(self)

    def _come_up(self) -> None:
        retry_start_step(self._worker_state, self.database.connect)
        transaction.watch(self.database)
        retry_start_step(self._worker_state, lambda: schema.check(self.database))
        queues = [lanes_of(ConditionQuery(spec, self.database)) for spec in self._specs]
        queries = [queue.query for queue in queues]
        for query in queries:
            session_guards.guard(query)
            wake_parents(query)
        self._worker_state.queues = queues
        for queue in queues:
            missing_columns.wait_if_schema_misfit(self._worker_state, queue, queue.query.filter_raised)
        self._leader.lock = lock_ids.sweep_leader_lock_id(self._app, self._code())
        retry_start_step(self._worker_state, self._admission.read)
        self._succession.begin(self._worker_state)
        retry_start_step(self._worker_state, lambda: moved_tables.update_renamed_tables(self._worker_state))
        retry_start_step(self._worker_state, self._log_leftovers_of_other_apps)

    def _log_leftovers_of_other_apps(self) -> None:
        """Log what apps without a living worker left in this database: one of them may be this app under a former name."""
        queries = [queue.query for queue in self._worker_state.queues]
        with self.database.reading() as connection:
            found = left_by_other_apps.find_left_by_others(self._app, self.database, connection, queries, self.incarnation.liveness)
        left_by_other_apps.log_left_by_others(self._app, found)

    def _code(self) -> str:
        """Return a text that identifies this code's conditions and schedules: a worker sweeps only for workers with the same text, since it
        must know all of theirs.
        """
        said = sorted([queue.name, queue.query.condition_text] for queue in self._worker_state.queues)
        return json.dumps([said, sorted([spec.name, spec.words] for spec in self._schedules)])

    # ---- loop iterations -------------------------------------------------------------------------------------------------------
    def _go_on(self) -> None:
        if self.options.wait_for_go:
            self._stand_by()
        warned = False
        busy_until = time.monotonic() + SWEEP_S
        while self._worker_state.stopping is None or not self._call_turns.drained():
            try:
                self._turn()
                if not self._counted:
                    self._count_newcomers()  # after the first iteration, so that counting rows does not delay known reactions
            except RowRewritten as error:
                self._succession.begin_another(self._worker_state, str(error))
            except WentBackError as error:
                self._succession.went_back(self._worker_state, str(error))
            except Illegible as error:
                self._mend(error)
            except Exception as error:
                self._after_trouble(error)
            wait = self._wait_s()
            if not warned and (wait > 0 or time.monotonic() > busy_until):
                self._warn()  # late, so that these checks do not delay work that was waiting
                warned, wait = True, self._wait_s()
            self._turned_at = time.monotonic() + max(wait, 0.0)
            if wait > 0:
                self._wake.wait(wait)
            self._wake.clear()

    def _stand_by(self) -> None:
        """Register each reaction, and carry out nothing until `go` is called."""
        self._turned_at = time.monotonic() + SWEEP_S
        try:
            self._count_newcomers()
        except Exception as error:
            self._after_trouble(error)  # the loop tries again after its first iteration
        while not self._go.wait(SWEEP_S) and self._worker_state.stopping is None:
            self._worker_state.incarnation.liveness.held()
            self._words.turn()
            self._turned_at = time.monotonic() + SWEEP_S

    def _count_newcomers(self) -> None:
        self._admission.count_newcomers()
        self._counted = True
        self._registered.set()

    def _warn(self) -> None:
        """A courtesy of the start, by which no thread of ours ends."""
        try:
            self._admission.warn()
        except Exception as error:
            self._after_trouble(error)

    def _mend(self, met: Illegible) -> None:
        """Hold attempts whose rows were edited by hand and cannot be read, so that everything else goes on."""
        try:
            if corrupt_rows.mend_unreadable_rows(self._worker_state.incarnation):
                self._not_before = time.monotonic() + MENDED_S
            else:
                self._after_trouble(met)
        except Exception as error:
            self._after_trouble(error)

    def _after_trouble(self, error: Exception) -> None:
        """Pause after an error of a loop iteration, whatever it is. Call results stay in memory, and no new call begins before they are
        concluded.
        """
        if not self._trouble:
            self._troubled_at = time.monotonic()
        self._trouble = min(self._trouble + 1, 6)
        whose = lock_waits.who_locks_ours(self.database) if db_errors.locked(error) else None
        self._troubled_by = whose or describe(error)
        self._registered.set()
        wait = 0.1 * 2**self._trouble
        if not self._worker_state.incarnation.sound:
            wait = min(wait, RETURNS_S)
        self._not_before = time.monotonic() + wait
        self._sweeps.by_itself(self._not_before)
        self._succession.next_check = 0.0
        words = str(error) if isinstance(error, StoreRefusedError) else whose or db_errors.error_in_one_line(error)
        is_new = self._says_trouble.is_new(words)
        if not self._says_trouble.may_say(words, time.monotonic()):
            return
        if db_errors.transient(error):
            log.warning(
                "the database is in trouble, tried again in %.1f s: %s",
                wait,
                words,
                extra={"event": "database_trouble", "wait_s": wait},
            )
        # The message says enough without a traceback.
        elif isinstance(error, StoreRefusedError) or db_errors.undefined(error) or db_errors.denied(error):
            log.error("tried again in %.1f s: %s", wait, words, extra={"event": "turn_failed", "wait_s": wait})
        else:
            trace = error if is_new else None
            log.error(
                "a turn failed, tried again in %.1f s: %s", wait, words, exc_info=trace, extra={"event": "turn_failed", "wait_s": wait}
            )

    def _turn(self) -> None:
        started = time.monotonic()
        if started < self._not_before:
            return
        before = self._worker_state.took
        self.database.refuse_silent()
        self._succession.check(self._worker_state)
        self._leader.turned_at = started
        if self._worker_state.stopping is not None:
            self._leader.resign()
        self._remote_hints.take_over(self._worker_state, started)
        self._leader.turn(started, self._say)
        if self._sweeps.turn(self._do_sweep_chores, self._beat) and self._quiet_wanted == "asked":
            self._quiet_wanted = "swept"
        if self._worker_state.left_begun:
            self._call_turns.find_unknown()
            self._worker_state.left_begun = False
        self._sharing.turn()
        # Read first, since timers and hints of this iteration begin passes too.
        sweeping = any(queue.passes for queue in self._worker_state.parts)
        if not sweeping:
            self._worker_state.tally.sweep_ends(started)
        if locked_tables.recheck_barred_queues(self._worker_state):
            self._timers.heard()
        if self._admission.look_again():
            self._timers.heard()
        self._timers.turn()
        raising_conditions.turn(self._worker_state)
        self._looks.turn()
        self._aside.turn()
        self._watch_calls(started)
        self._suspects.turn()
        self._call_turns.turn()
        if self._worker_state.stopping is None:
            if self._handlers_may_run:
                self._handle()
            self._signal_idle_if_idle()
        if self._trouble:
            self._trouble = 0
            self._says_trouble = Repeated()
            say_back(self._worker_state, time.monotonic() - self._troubled_at)
        if sweeping and self._worker_state.took == before:
            self._sweeps.idle_s += time.monotonic() - started
        self._words.turn()
        self._worker_state.incarnation.lines.turn(started)

    def _handle(self) -> None:
        """Run DB-only handlers. In careful mode a suspected record's handler runs once no call is in flight."""
        alone = None if self._call_turns.calls_in_air else self._worker_state.alone
        if self._ticks_may_run:
            self._ticks.turn()
        if alone is not None:
            if alone.reaction not in self._worker_state.schedules:
                self._batches.carry_out_alone(alone)
            self._suspects.had_its_turn()
        self._batches.turn()

    @property
    def _handlers_may_run(self) -> bool:
        """Not beside the call of a suspect, which is to be alone in the air."""
        return not self._call_turns.suspect_in_air

    @property
    def _ticks_may_run(self) -> bool:
        """Nor while a suspect waits for calls in the air to end."""
        return self._ticks_here and self._handlers_may_run and (self._worker_state.alone is None or not self._call_turns.calls_in_air)

    @property
    def _ticks_here(self) -> bool:
        """Return whether this worker carries out schedules: the sweep leader does, and so does a worker on which `until_idle` waits."""
        return self._leader.sweeps or self._quiet_wanted is not None

    def _wait_s(self) -> float:
        """Return for how many seconds the loop has nothing to do unless a hint arrives."""
        now = time.monotonic()
        if now < self._not_before:
            return self._not_before - now
        if self._worker_state.alone is not None and not self._call_turns.calls_in_air:
            return 0.0  # careful mode: another suspected attempt may be next
        if self._worker_state.stopping is None and any(self._can_go_on(queue, now) for queue in self._worker_state.parts):
            return 0.0
        if self._worker_state.stopping is None and any(
            raising_conditions.is_waiting(queue) and queue.not_before <= now for queue in self._worker_state.queues
        ):
            return 0.0
        times = [self._sweeps.wait_until(), now + SWEEP_S, self._remote_hints.wait_until()]
        if self._ticks_may_run:
            times.append(self._ticks.wait_until())
        known = (
            self._worker_state.next_due,
            self._timers.wait_until(),
            self._aside.wait_until(),
            self._sharing.wait_until(),
            self._worker_state.incarnation.rings.wait_until() if self._handlers_may_run else None,  # what ends that wakes this thread
        )
        times += [at for at in known if at is not None]
        times += [queue.not_before for queue in self._worker_state.parts if (queue.wants or queue.lacks) and queue.not_before > now]
        times += [queue.barred_until for queue in self._worker_state.parts if queue.barred is not None]
        times += [queue.failing.until for queue in self._worker_state.parts if queue.wants and queue.failing.until > now]
        call_turns = self._call_turns.wait_s(now)
        return max(min(min(times) - now, SWEEP_S if call_turns is None else call_turns), 0.0)

    def _can_go_on(self, queue: WorkQueue, now: float) -> bool:
        if not queue.wants or queue.not_before > now:
            return False
        if queue.query.spec.call is not None:
            return self._call_turns.has_room(queue, now)
        return self._handlers_may_run and self._batches.can_go_on(queue, now)

    # ---- sweeps ------------------------------------------------------------------------------------------------------------------
    def _do_sweep_chores(self, seen: IdleProbe) -> None:
        """Do what a sweep does beside conditions: adopt from dead workers, find begun calls that are not in memory, delete baselines that
        no longer apply, and look up the next due time.
        """
        now = time.monotonic()
        if seen.strangers and now < self._next_dead:
            seen = replace(seen, strangers=False)
        else:
            self._next_dead = now + DEAD_EACH_S * (self._leader.size - 1)
        take_over(self._worker_state, seen)
        if self._worker_state.incarnation.awaits_until is not None:
            self._sweeps.next = min(self._sweeps.next, max(self._worker_state.incarnation.awaits_until, self._next_dead, now))
        if seen.attempts:
            self._call_turns.find_unknown()
        if seen.old_rates:
            rate_limit.forget_old(self._worker_state)
        self._admission.read_again(seen)
        self._admission.look_at_older()
        self._ticks.look_again()
        if seen.attempts:
            due_attempts.refresh_next_due(self._worker_state)
        else:
            self._worker_state.next_due = None
            unknown_states.none(self._worker_state)
            for queue in self._worker_state.queues:
                queue.due, queue.due_cursor = False, None

    def _beat(self, seen: IdleProbe) -> None:
        """Check regularly, in a worker for which another one sweeps, what a person accepted or trusted, and whether careful mode
        applies.
        """
        adopt.forget_past(self._worker_state.incarnation)
        adopt.look_at_ends(self._worker_state.incarnation, seen)
        follow_the_clock(self._worker_state)
        self._admission.read_again(seen)
        self._admission.look_at_older()

    def _watch_calls(self, now: float) -> None:
        """Once a second, end overtaken calls whose declaration asks for that, and log a call that blocks the event loop."""
        if now >= self._next_watch:
            self._next_watch = now + SWEEP_S
            self._call_turns.end_overtaken()
            self._call_turns.caller.watch()

    # ---- hints from and to other workers -----------------------------------------------------------------------------------------
    def hear_afar(self, hint: Hint) -> None:
        """Receive a hint from another process, on any thread. The random number in the hint decides which workers query the database for
        it.
        """
        if hint.leads and self._part.concerns(hint.store):
            self._leader.leads_says(hint)
            return
        if self.failure is not None or hint.in_hand or not self._part.concerns(hint.store) or not self._sharing.hear(hint):
            return
        if hint.let_in is None:
            wait_s = self._leader.wakes(hint.dice, hint.rows)
            if wait_s is None:
                return
            self._remote_hints.hear(hint, time.monotonic() + wait_s)
        self._wake.set()

    def _say(self, hint: Hint) -> None:
        """Send a hint to the other workers, provided that there is a hint publisher."""
        if self._publisher is not None:
            self._publisher.say(replace(hint, store=self._part.name))

    def stand_down(self) -> None:
        """Let another worker sweep for all if this worker hangs. Any thread may call this."""
        self._leader.stand_down()

    # ---- idleness, and the end of the worker -----------------------------------------------------------------------------------------
    def _signal_idle_if_idle(self) -> None:
        if (
            self._quiet_wanted != "swept"
            or not self._counted
            or not self._call_turns.quiet
            or self._ticks.wants
            or self._worker_state.incarnation.rings.wait
            or self._worker_state.alone is not None
            or any(queue.wants or (queue.on and queue.backlog) for queue in self._worker_state.parts)
        ):
            return
        if self._worker_state.took:
            self._quiet_wanted = "asked"  # work was done since the last sweep began, so one more sweep must find nothing
            self._sweeps.next = 0.0
            return
        self._quiet_wanted = None
        self._quiet.set()

    def rest(self) -> Rest:
        """Count the attempts of this app by state, and the records that are still to become due."""
        table = attempt_table
        counted = select(table.c.state, func.count()).where(table.c.app == self._app).group_by(table.c.state)
        with self.database.reading() as connection:
            states = {row[0]: row[1] for row in connection.execute(counted)}
            timers = sum(upcoming.count(connection, queue.query) for queue in self._worker_state.queues)
        return Rest(states.get("doubt", 0), states.get("failed", 0), states.get("held", 0), timers)

    def _leave(self) -> None:
        caller = self._call_turns.caller
        self._worker_state.incarnation.lines.turn(time.monotonic(), over=True)
        with contextlib.suppress(Exception):
            self._leader.resign()  # this incarnation may keep its locks for long while its last calls run
        self._aside.stop()
        caller.stop(CALLS_END_S)
        if caller.busy and self._worker_state.incarnation.sound:
            # Without the lock, another worker would take this incarnation for dead and settle calls that may still take effect.
            log.warning(
                "%d calls still run: its lock is kept until they end",
                caller.busy,
                extra={"event": "calls_still_running", "count": caller.busy},
            )
            self._say_over(
                self._worker_state.incarnation.delete_row_keep_lock
            )  # recorded now, so that a process exit while they run is no unclean end: they are in doubt already
            threading.Thread(target=log_store.keep_log_label(self._leave_last), name="groundstate-last-calls", daemon=True).start()
            return
        if self._worker_state.incarnation.sound:
            self._say_over(self._worker_state.incarnation.end)
        else:
            self._worker_state.incarnation.liveness.release()
        self.database.close()

    def _leave_last(self) -> None:
        self._call_turns.caller.wait()
        self._worker_state.incarnation.liveness.release()
        self.database.close()

    def _say_over(self, end: Callable[[], None]) -> None:
        try:
            end()
            self._said_so = True
        except Exception as error:
            log.warning(
                "this worker could not write that it ended: the next one will see that by its lock (%s)",
                describe(error),
                extra={"event": "worker_end_unsaid", "worker": f"{self._worker_state.incarnation.id:x}"},
            )


def _nobody_asks(_worker: Worker) -> None:
    """Do nothing: the default of `Worker.when_ended`."""
