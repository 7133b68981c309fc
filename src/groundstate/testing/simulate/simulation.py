"""Directs one run: its simulated processes, its calls in flight, and the moves (disturbances) at each crossing.

When a simulated process is killed, its threads stay paused for ever, and its connections and files are closed, as by the operating system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from groundstate.engine.rows.in_flight import InFlightCall
from groundstate.engine.sql import commit_hooks
from groundstate.engine.worker.options import Options
from groundstate.engine.worker.runtime import Runtime
from groundstate.engine.worker.worker import Worker
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.testing.databases.scratch_db import Place
from groundstate.testing.simulate import cooperative_threads
from groundstate.testing.simulate.clock import ClockMoves
from groundstate.testing.simulate.cooperative_threads import Actor, DeadThreadExit, suppress_logs_of_dead_actors
from groundstate.testing.simulate.crash_plan import Move, Schedule
from groundstate.testing.simulate.crash_point import Crossing
from groundstate.testing.simulate.db_intercept import DatabasePool, InterceptedDatabase
from groundstate.testing.simulate.fake_environment import Dice, Stuck, Threading, Time
from groundstate.testing.simulate.fake_executor import LabCallExecutor, describe_call
from groundstate.testing.simulate.fake_hints import HintDelivery
from groundstate.testing.simulate.fake_provider import Effect, Fake
from groundstate.testing.simulate.fake_service import ExternalService
from groundstate.testing.simulate.observer import Judge
from groundstate.testing.simulate.restarts import RestartAlreadyTried, Restarts
from groundstate.testing.simulate.sim_process import Process, Task
from groundstate.testing.simulate.thread_scheduler import ThreadScheduler
from groundstate.testing.simulate.time_outs import Fence
from groundstate.values.errors import StoppedError

STATEMENT_S = 0.001  # seconds by which each crossing moves the lab's clock

IDLE_AFTER = 30  # after this many crossings at which no commit wrote anything, the next crossings count as those of idle workers
IDLE_TIMES = 3  # a run counts as endless after this many times `limit` crossings, including those of idle workers


class Stage:
    """One run of a schedule (the disturbances of the run) on an app."""

    def __init__(  # noqa: PLR0913  # each is passed by keyword
        self,
        app: str,
        specs: Sequence[Sequence[ReactionSpec]],
        place: Place,
        fakes: Sequence[Fake],
        schedule: Schedule,
        *,
        kept: DatabasePool,
        limit: int,
        clock: ClockMoves | None = None,
    ) -> None:
        self.app = app
        self.specs = specs
        self.place = place
        self.schedule = schedule
        # the run counts as endless after this many crossings (points at which the schedule may disturb it), without those of idle workers
        self.limit = limit
        self.clock = clock or ClockMoves()
        self.time = Time(self.clock.begins, own_clock=place.locks_rows)
        leaps = any(move.kind == "leap" for move in schedule.moves)
        self.service = ExternalService(fakes, self.time, lookups_lag=schedule.lookups_lag, leaps=leaps)
        self.crossings: list[Crossing] = []
        self.processes: list[Process] = []
        self.calls = 0
        self.meanwhile: Sequence[Callable[[Session], object]] = ()
        self.judge: Judge | None = None
        self.story: list[str] = []
        self.fence: Fence = lambda _name: nullcontext()  # returns a context in which a user's call cannot reach an external service
        self.schedules: Sequence[Sequence[ScheduleSpec]] = [()] * len(specs)
        self.marks: list[object] | None = None  # for each crossing, the state that a kill would leave behind; None if it is not recorded
        # pairs (number of another program's transaction, crossing at which it would write nothing); recorded together with `marks`
        self.idle: set[tuple[int, int]] = set()
        self.is_idle: Callable[[Callable[[Session], object]], bool] = lambda _act: False
        self.wrong: BaseException | None = None  # an exception that could not be raised at once; None if there is none
        self.at_death: Callable[[Process], None] | None = None  # called with each process that is killed; None if not set
        self._after_restore = False
        self._changes = 0  # number of commits that wrote, of effects at external services, and of moves of clocks
        self._changed_at = 0  # number of the latest crossing at which a commit wrote something
        self._idle = 0  # number of crossings of idle workers, which poll each second
        self._kept = kept
        self._moves: dict[int, list[Move]] = {}
        for move in schedule.moves:
            self._moves.setdefault(move.crossing, []).append(move)
        self._kept_out: list[Move] = []  # moves that wait until a lock is free or a transaction has ended
        self._came_in = 0  # number of committed transactions of other programs plus number of moves of clocks
        self._scheduler = ThreadScheduler(self.time, place, self._on_thread_parked)
        self._reached: tuple[Process, str, str, bool] | None = None
        self.restarts: Restarts | None = None  # the restarts tried so far; if not None, an equal restart ends the run
        self.joined = False
        self._dice = Dice(0)
        self._runtime = Runtime()  # the clocks, threads and so on that new workers get; `use_stand_ins` replaces them by stand-ins
        self._acts: list[int] = []  # numbers of the other programs' transactions that were committed, in order
        self._copy: Any = None
        self._stopping = False
        self._crossed = False  # whether the thread that ran last has paused at a crossing
        self._told = 0
        self._hints = HintDelivery(schedule.hints)
        self._building: Process | None = None
        self._wired: dict[Actor, InterceptedDatabase] = {}  # the database that each thread uses

    # ---- the run ---------------------------------------------------------------------------------------------------------------
    @contextmanager
    def use_stand_ins(self, seed: int = 1) -> Iterator[None]:
        """In the block, processes may run with stand-ins for clocks, threads and calls. At its end, all paused threads are ended."""
        self._dice = Dice(seed)
        self._runtime = Runtime(
            self.time, self._dice, Threading(self), partial(LabCallExecutor, self), self._kept.reuse_query, listen=_ignore_listener
        )
        commit_hooks.add_listener(self)
        with suppress_logs_of_dead_actors():
            try:
                yield
            finally:
                commit_hooks.remove_listener(self)
                for process in self.alive:
                    self._remove_process(process)
                for process in self.processes:
                    for actor in process.actors:
                        actor.end_dead_thread()
                self._kept.release_all()

    @property
    def alive(self) -> list[Process]:
        return list(self._scheduler.alive)

    def run_until_idle(self) -> None:
        """Run until no work can be done now. If a process dies meanwhile, start another in its place."""
        while True:
            self._raise_judges_failure()
            while len(self.alive) < self.schedule.workers:
                self._start_process()
            alive, changes, came_in = self.alive, self._changes, self._came_in
            quiet = all(self._is_process_idle(process) for process in alive) and self.alive == alive
            # The workers may have been idle at different times. Now all are idle only if nothing was written in between.
            alone = sum(len(process.workers) for process in alive) == 1 and self._came_in == came_in
            quiet = quiet and (alone or self._changes == changes)
            if quiet and not self._scheduler.run_due_task():  # a late request may still arrive although all workers are idle
                return

    def stop(self) -> bool:
        """Stop all processes cleanly.

        Return False if a process died or was started meanwhile, or another program committed: work may be left then.
        """
        alive, came_in, self._stopping = self.alive, self._came_in, True
        for process in alive:
            with suppress(StoppedError):
                for worker in process.workers if not process.dead else ():
                    worker.stop(10)
            if not process.dead:
                self._remove_process(process)
        return not self.alive and not any(process.killed for process in alive) and self._came_in == came_in

    def next_task_s(self) -> float | None:
        """Return when the next step of a call in flight is due, in seconds since the run began; None if there is none."""
        return self._scheduler.next_task_s()

    def _start_process(self) -> None:
        process = self._building = Process(len(self.processes) + 1)
        self.processes.append(process)
        self._scheduler.alive.append(process)
        self.add_to_story(f"{process.name} starts")
        options = Options(after_restore=self._after_restore)
        for number, (settings, specs) in enumerate(zip(self.place.settings, self.specs, strict=True)):
            wired = self._kept.take_database(number, settings)
            wired.assign(self, process)
            known = len(process.actors)
            redact = specs[0].store.redact if specs else None
            schedules = self.schedules[number]
            worker = Worker(self.app, specs, wired.opened, schedules=schedules, options=options, redact=redact, runtime=self._runtime)
            process.workers.append(worker)
            self._wired.update(dict.fromkeys(process.actors[known:], wired))
        self._after_restore, self._building = False, None
        for worker in process.workers:
            if not process.dead:
                worker.start()
        process.started = not process.dead

    @property
    def process_being_built(self) -> Process:
        """The process that is being built, to which new threads and call executors belong."""
        assert self._building is not None  # noqa: S101  # workers create threads and executors only within _start_process
        return self._building

    def _is_process_idle(self, process: Process) -> bool:
        try:
            return all(worker.wait_until_idle(None) for worker in process.workers) and not process.dead
        except StoppedError:
            if not process.dead:
                raise
            return False

    # ---- scheduling of threads ----------------------------------------------------------------------------------------------------
    def spawn_actor(self, name: str, run: Callable[[], object]) -> Actor:
        process = self.process_being_built
        actor = Actor(f"{process.name}: {name}", run)
        process.actors.append(actor)
        return actor

    def run_until(self, true: Callable[[], bool], seconds: float | None) -> bool:
        """Run threads until `true()` is true, a process has died, or `seconds` have passed and no thread can run. Return what `true()`
        returns then.

        Only the director's thread calls it.
        """
        end = None if seconds is None else self.time.monotonic_s + seconds
        alive = self.alive
        # A thread that paused only to record a state is resumed first, so that recording states does not change the run.
        while (self._crossed and self._scheduler.is_alone) or not true():
            if any(process.dead for process in alive) or not self._scheduler.run_next_thread(end):
                return true()
        return True

    def _on_thread_parked(self) -> None:
        reached, self._reached = self._reached, None
        self._crossed = reached is not None
        if reached is not None:
            self.carry_out_crossing(*reached)
        self._raise_judges_failure()

    def _raise_judges_failure(self) -> None:
        if self.wrong is not None:
            wrong, self.wrong = self.wrong, None
            raise wrong

    # ---- crossings ---------------------------------------------------------------------------------------------------------------
    def report_crossing(self, process: Process, kind: str, what: str, *, inside: bool = False) -> bool:
        """Report that this process reaches a crossing, where the schedule may disturb the run. Return whether the process is dead now.

        May be called from any thread of the lab.

        inside: whether the process has a transaction open.
        """
        me = cooperative_threads.current_actor()
        if me is None:
            self.carry_out_crossing(process, kind, what, inside)
            return process.dead
        if me.dead or process.dead:
            raise DeadThreadExit
        if self._may_continue_without_parking(kind, what):
            self._record_crossing(process, kind, what, inside)
            return False
        self._reached = (process, kind, what, inside)
        me.park()
        return False

    def _may_continue_without_parking(self, kind: str, what: str) -> bool:
        """Return whether the thread can go on at this crossing without a pause: no other thread could run, and the schedule plans nothing
        here.
        """
        number = len(self.crossings) + 1
        planned = number in self._moves or self._kept_out or self._exceeds_limit(number)
        judged = (kind == "committed" and what != "nothing") or self.marks is not None or self.wrong is not None
        return self._scheduler.is_alone and not (planned or judged)

    def _record_crossing(self, process: Process, kind: str, what: str, inside: bool) -> Crossing:
        crossing = Crossing(len(self.crossings) + 1, kind, what, process.number, inside, told=self.time.told > self._told)
        self._told = self.time.told
        self.crossings.append(crossing)
        self._idle += crossing.number - self._changed_at > IDLE_AFTER
        self.time.forward(STATEMENT_S)
        return crossing

    def _exceeds_limit(self, number: int) -> bool:
        return number - self._idle > self.limit or number > IDLE_TIMES * self.limit

    def carry_out_crossing(self, process: Process, kind: str, what: str, inside: bool) -> None:
        """Carry out the schedule's moves at a crossing, and tell the judge what was committed. Only the director's thread calls it."""
        crossing = self._record_crossing(process, kind, what, inside)
        if self._exceeds_limit(crossing.number):
            raise Stuck(f"the run has not ended after {crossing.number} crossings, {crossing.number - self._idle} of them of busy workers")
        if kind == "committed" and what != "nothing":
            self._changes += 1
            self._changed_at = crossing.number
            self.add_to_story(f"{process.name} commits {what}")
            if self.judge is not None:
                self.judge.on_commit(ours_alone=all(" groundstate_" in word for word in what.split(", ")))
        if self.marks is not None:
            self.marks.append(
                (self._changes, len(self._scheduler.tasks), self.place.content_hash(), *(one.state_left_behind() for one in self.alive))
            )
            # Transactions of other programs are not tried while the workers stop, since their commit would make the lab start new workers.
            if not self._stopping and (self.place.locks_rows or not inside):
                self.idle.update((which, crossing.number) for which, act in enumerate(self.meanwhile, 1) if self.is_idle(act))
        moves, self._kept_out = [*self._kept_out, *self._moves.get(crossing.number, ())], []
        for move in moves:
            if move.kind == "freeze" and kind in ("statement", "commit"):
                # The freeze waits for the end of the transaction: a worker that stands still inside it would lock the others out of SQLite.
                self._kept_out.append(move)
            else:
                self._carry_out_move(move, process, crossing)
        if (
            moves
            and self.restarts is not None
            and self._is_rest_determined()
            and self.restarts.was_tried(self._state_left_behind(), self.time.now_s)
        ):
            self.wrong = self.wrong or RestartAlreadyTried()

    def _is_rest_determined(self) -> bool:
        """Return whether the state left behind determines the rest of the run: all processes are dead, and no move, mood or request is
        still to come.
        """
        to_come = self._kept_out or any(crossing > len(self.crossings) for crossing in self._moves)
        to_come = to_come or any(number > self.calls for number, _ in self.schedule.moods) or self.schedule.hints == "reordered"
        in_air = any(task.outlives or task.at_s > self.time.now_s for task in self._scheduler.tasks)
        return not (self.alive or to_come or in_air)

    def _state_left_behind(self) -> object:
        """Return the state that determines the rest of the run once every process is dead, as the module `restarts` describes."""
        leaps = any(move.kind == "leap" for move in self.schedule.moves)
        how = (self.schedule.hints, self.schedule.lookups_lag, self.schedule.workers, leaps, self._after_restore)
        judged = None if self.judge is None else self.judge.state_for_next_checks()
        return self.place.state(), self.service.effects_and_counts(), how, self.time.clock_differences, self._dice.state, self._acts, judged

    def _carry_out_move(self, move: Move, process: Process, crossing: Crossing) -> None:
        match move.kind:
            case "die":
                self.add_to_story(f"{process.name} is killed {crossing}")
                self.kill(process)
            case "meanwhile":
                self._commit_as_other_program(move, crossing)
            case "switch":
                others = [one for one in self.alive if one is not process]
                self._scheduler.preferred = others[0] if others else None
                if others:
                    self.add_to_story(f"{others[0].name} goes on, {crossing} of {process.name}")
            case "unlock" | "freeze":
                self._take_lock_away(process, crossing, freezes=move.kind == "freeze")
            case "leap" | "suspend":
                self._move_clock(move, crossing)
            case "copy":
                self._copy = (self.place.copy(), self.judge.snapshot() if self.judge is not None else None)
                self.add_to_story(f"the database is copied, {crossing}")
            case "restore":
                if self._copy is not None:
                    self._restore_copy(crossing)

    def _commit_as_other_program(self, move: Move, crossing: Crossing) -> None:
        if not self.meanwhile:
            return
        act = self.meanwhile[max(move.which, 1) - 1]
        if not self.place.commit_as_other_program(act):
            self._kept_out.append(move)
            return
        self._changes += 1
        self._came_in += 1
        self._acts.append(move.which)
        self.add_to_story(f"meanwhile, {crossing}: {getattr(act, '__name__', 'someone else')}")
        if self.judge is not None:
            self.judge.on_commit(ours_alone=False)

    def _move_clock(self, move: Move, crossing: Crossing) -> None:
        which = max(move.which, 1) - 1
        if move.kind == "leap" and self.clock.leaps:
            self.leap(self.clock.leaps[which], f", {crossing}")
        if move.kind == "suspend" and self.clock.suspends:
            self.suspend(self.clock.suspends[which], f", {crossing}")

    def leap(self, by: timedelta, where: str = "") -> None:
        """Set the time of day ahead, or back if `by` is negative. No other clock changes."""
        self.time.leap(by)
        self._report_clock_move(f"the clock {'leaps ahead' if by > timedelta() else 'steps back'} by {abs(by)}", where)

    def suspend(self, how_long: timedelta, where: str = "") -> None:
        """Suspend the host with all its processes for this time, while external services and requests in flight go on."""
        self._scheduler.suspend(how_long.total_seconds())
        self._report_clock_move(f"the host was suspended for {how_long}", where)

    def _report_clock_move(self, words: str, where: str) -> None:
        self._came_in += 1  # makes the lab ask the workers again, since a record may have become due
        self._changes += 1
        self.add_to_story(f"{words}{where}: it shows {self.time.now().astimezone(self.clock.begins.tzinfo)}")

    def _take_lock_away(self, process: Process, crossing: Crossing, *, freezes: bool) -> None:
        if not process.started or process.dead:
            return
        self.add_to_story(f"{process.name} loses its lock and {'stands still' if freezes else 'lives'}, {crossing}")
        if freezes:
            process.frozen_until_s = self.time.now_s + self.service.surely_settled_within_s
        for worker in process.workers:
            worker.incarnation.liveness.release()
        self._start_process()

    def _restore_copy(self, crossing: Crossing) -> None:
        self.add_to_story(f"all is killed {crossing}, and the copy of the database is restored")
        for process in self.alive:
            self.kill(process)
        copy, known = self._copy
        self.place.restore_copy(copy)
        self._after_restore = True
        if self.judge is not None:
            self.judge.restore_snapshot(known)

    def kill(self, process: Process) -> None:
        """Kill the process as SIGKILL does: nothing runs in it any more, its connections are closed, and its locks are freed."""
        if process.dead:
            return
        if self.at_death is not None:
            self.at_death(process)
        process.killed = True
        for actor in process.actors:
            actor.dead = True
        self._remove_process(process)

    def _remove_process(self, process: Process) -> None:
        with self.place.closing_connections(process.driver_connections()):
            process.release_resources()
        self._scheduler.alive.remove(process)
        if self._scheduler.preferred is process:
            self._scheduler.preferred = None

    def let_other_process_run(self, process: Process) -> bool:
        """Let another process run to its next crossing, since it may hold an SQLite store's write lock. Return False if no other process
        can run.
        """
        me = cooperative_threads.current_actor()
        others = [one for one in self.alive if one is not process and any(actor.ready() and not actor.done for actor in one.actors)]
        if me is None or not others:
            return False
        before = len(self.crossings)
        self._scheduler.preferred = others[0]
        me.park(lambda: len(self.crossings) > before)
        return True

    # ---- calls in flight -----------------------------------------------------------------------------------------------------------
    def add_task(self, process: Process, run: Callable[[], object], at_s: float = 0.0, *, outlives: bool = False) -> None:
        self._scheduler.tasks.append(Task(process, lambda: _do_nothing(run()), at_s, outlives))

    def on_calls_leave(self, in_flights: Sequence[InFlightCall]) -> None:
        """Report to the judge that the worker has handed over these calls, so that their requests may arrive at the service from now on."""
        if self.judge is not None:
            self._run_check(partial(self.judge.on_calls_leave, in_flights))

    def carry_out_request(self, in_flight: InFlightCall, key: str, argument: Any) -> Effect[Any]:
        """Let the fake provider carry out the request of this call, and return the effect (what it did). A new effect is reported to the
        judge.
        """
        effect, new = self.service.carry_out_request(in_flight, key, argument)
        self.add_to_story(
            f"the service has done {describe_call(in_flight)}"
            if new
            else f"the service knows the key of {describe_call(in_flight)}, and does nothing"
        )
        self._changes += 1
        if new and self.judge is not None:
            self._run_check(partial(self.judge.on_effect, effect))
        return effect

    def on_outcome_delivered(self, process: Process, effect: Effect[Any]) -> None:
        """Report to the judge that the process has received the outcome of this effect (what a service did for its call)."""
        if self.judge is not None:
            self.judge.on_outcome_delivered(process, effect)

    def _run_check(self, judge: Callable[[], None]) -> None:
        """Run a check of the judge. Keep an exception that it raises until the director's thread can raise it. If it were raised here, the
        engine or a user's function might catch it.
        """
        try:
            judge()
        except AssertionError as wrong:
            self.wrong = self.wrong or wrong

    # ---- hints ---------------------------------------------------------------------------------------------------------------------
    def note_commit(self, touched: commit_hooks.TouchedRecords) -> None:
        """Deliver the hint of a commit to the workers of the process that committed, as the schedule says.

        touched: the records that the commit changed, which the hint names.
        """
        me = cooperative_threads.current_actor()
        process = next((one for one in self.processes if me in one.actors), None)
        if process is None:
            return
        self.report_crossing(process, "hint", ", ".join(sorted(one.__name__ for one in {*touched.keys, *touched.whole})))
        for whose, one in self._hints.arriving_hints(process, touched):
            for worker in whose.workers:
                worker.note_commit(one)

    def callbacks_of_current_transaction(self) -> list[Callable[[], None]] | None:
        """Return the list of functions to call when the current thread's transaction is committed; None for a thread without a database."""
        wired = self._wired.get(cooperative_threads.current_actor())  # type: ignore[arg-type]  # only a thread of an actor has a database
        return None if wired is None else wired.transaction

    def add_to_story(self, words: str) -> None:
        self.story.append(f"{self.time.now_s:9.3f} s  {words}")


def _do_nothing(_value: object) -> None:
    return None


def _ignore_listener(_worker: commit_hooks.Listener) -> None:
    """Do nothing: workers of a run do not hear of commits by themselves, since the stage delivers hints as its schedule says."""
