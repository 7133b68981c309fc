"""Directs one run: its processes, its calls in flight, and what happens at each crossing.

A process here behaves as a process of the user's would. When it is killed, its threads stay parked where they are, and what the operating
system would close is closed beneath them.
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
from groundstate.engine.worker import Options, Worker
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.testing.databases.scratch_db import Place
from groundstate.testing.simulate import cooperative_threads
from groundstate.testing.simulate.clock import Moves
from groundstate.testing.simulate.cooperative_threads import Actor, Buried, quiet_dead
from groundstate.testing.simulate.crash_plan import Move, Schedule
from groundstate.testing.simulate.crash_point import Crossing
from groundstate.testing.simulate.db_intercept import Kept, Wired
from groundstate.testing.simulate.fake_environment import Dice, Stuck, Time, installed
from groundstate.testing.simulate.fake_executor import LabCaller, told
from groundstate.testing.simulate.fake_hints import Hints
from groundstate.testing.simulate.fake_provider import Effect, Fake
from groundstate.testing.simulate.fake_service import ExternalService
from groundstate.testing.simulate.observer import Judge
from groundstate.testing.simulate.restarts import Joined, Restarts
from groundstate.testing.simulate.sim_process import Process, Task
from groundstate.testing.simulate.thread_scheduler import Turns
from groundstate.testing.simulate.time_outs import Fence
from groundstate.values.errors import StoppedError

STATEMENT_S = 0.001  # seconds that each crossing takes by the lab's clock

IDLE_AFTER = 30  # crossings without a change, after which further ones count as those of an idle worker that polls
IDLE_TIMES = 3  # a run may have this many times its limit of crossings if the idle ones are counted too


class Stage:
    """One run of a schedule on an app."""

    def __init__(  # noqa: PLR0913  # each is passed by keyword
        self,
        app: str,
        specs: Sequence[Sequence[ReactionSpec]],
        place: Place,
        fakes: Sequence[Fake],
        schedule: Schedule,
        *,
        kept: Kept,
        limit: int,
        clock: Moves | None = None,
    ) -> None:
        self.app = app
        self.specs = specs
        self.place = place
        self.schedule = schedule
        self.limit = limit  # limit on crossings that are not idle, beyond which the run counts as endless
        self.clock = clock or Moves()
        self.time = Time(self.clock.begins, own_clock=place.locks_rows)
        leaps = any(move.kind == "leap" for move in schedule.moves)
        self.service = ExternalService(fakes, self.time, lookups_lag=schedule.lookups_lag, leaps=leaps)
        self.crossings: list[Crossing] = []
        self.processes: list[Process] = []
        self.calls = 0
        self.meanwhile: Sequence[Callable[[Session], object]] = ()
        self.judge: Judge | None = None
        self.story: list[str] = []
        self.fence: Fence = lambda _name: nullcontext()  # a context in which a user's call that the lab inspects reaches nothing
        self.schedules: Sequence[Sequence[ScheduleSpec]] = [()] * len(specs)
        self.marks: list[object] | None = None  # with a list, collects the state that a kill at each crossing would leave
        # with marks: pairs of another program's transaction and the crossing at which it would write nothing
        self.idle: set[tuple[int, int]] = set()
        self.is_idle: Callable[[Callable[[Session], object]], bool] = lambda _act: False
        self.wrong: BaseException | None = None  # a failure of the judge where it could not be raised at once
        self.at_death: Callable[[Process], None] | None = None  # kills a real process in place of the simulated death
        self._after_restore = False
        self._changes = 0  # commits that wrote, and effects at external services
        self._changed_at = 0  # the number of the crossing at which the last change was
        self._idle = 0  # crossings of idle workers, which poll each second
        self._kept = kept
        self._moves: dict[int, list[Move]] = {}
        for move in schedule.moves:
            self._moves.setdefault(move.crossing, []).append(move)
        self._kept_out: list[Move] = []  # moves that wait for a lock, or for a crossing outside of a transaction
        self._came_in = 0  # how many transactions of other programs were committed and clocks moved
        self._turns = Turns(self.time, place, self._after_leg)
        self._reached: tuple[Process, str, str, bool] | None = None
        self.restarts: Restarts | None = None  # restarts that were tried; where the run reaches one of them, it ends with Joined
        self.joined = False
        self._dice = Dice(0)
        self._acts: list[int] = []  # numbers of the other programs' transactions that were committed
        self._copy: Any = None
        self._stopping = False
        self._crossed = False  # whether the thread that ran last has parked at a crossing
        self._told = 0
        self._hints = Hints(schedule.hints)
        self._building: Process | None = None
        self._wired: dict[Actor, Wired] = {}  # the database of each thread

    # ---- the run ---------------------------------------------------------------------------------------------------------------
    @contextmanager
    def open(self, seed: int = 1) -> Iterator[None]:
        """Within the block, the engine's modules use the stand-ins of this stage; after it, all parked threads are ended."""
        self._dice = Dice(seed)
        with installed(self, partial(LabCaller, self), self._kept.query, self._dice), quiet_dead():
            try:
                yield
            finally:
                for process in self.alive:
                    self._let_go(process)
                for process in self.processes:
                    for actor in process.actors:
                        actor.bury()
                self._kept.take_back()

    @property
    def alive(self) -> list[Process]:
        return list(self._turns.alive)

    def run_until_idle(self) -> None:
        """Run until no work can be done now; a process that dies on the way is started again."""
        while True:
            self._raise_wrong()
            while len(self.alive) < self.schedule.workers:
                self._start()
            alive, changes, came_in = self.alive, self._changes, self._came_in
            quiet = all(self._is_quiet(process) for process in alive) and self.alive == alive
            # Each worker was quiet at another time. All are quiet only if no transaction wrote and no other program committed in between.
            alone = sum(len(process.workers) for process in alive) == 1 and self._came_in == came_in
            quiet = quiet and (alone or self._changes == changes)
            if quiet and not self._turns.let_arrive():  # even if all workers are quiet, a late request may arrive
                return

    def stop(self) -> bool:
        """Stop all processes cleanly.

        Return False where more work may be left, since a process died or began, or another program committed.
        """
        alive, came_in, self._stopping = self.alive, self._came_in, True
        for process in alive:
            with suppress(StoppedError):
                for worker in process.workers if not process.dead else ():
                    worker.stop(10)
            if not process.dead:
                self._let_go(process)
        return not self.alive and not any(process.killed for process in alive) and self._came_in == came_in

    def next_task_s(self) -> float | None:
        """Return when the next step of a call in flight is due, as `now_s`, or None."""
        return self._turns.next_task_s()

    def _start(self) -> None:
        process = self._building = Process(len(self.processes) + 1)
        self.processes.append(process)
        self._turns.alive.append(process)
        self.tell_story(f"{process.name} starts")
        options = Options(after_restore=self._after_restore)
        for number, (settings, specs) in enumerate(zip(self.place.settings, self.specs, strict=True)):
            wired = self._kept.take(number, settings)
            wired.use(self, process)
            known = len(process.actors)
            redact = specs[0].store.redact if specs else None
            schedules = self.schedules[number]
            process.workers.append(Worker(self.app, specs, wired.opened, schedules=schedules, options=options, redact=redact))
            self._wired.update(dict.fromkeys(process.actors[known:], wired))
        self._after_restore, self._building = False, None
        for worker in process.workers:
            if not process.dead:
                worker.start()
        process.started = not process.dead

    @property
    def building(self) -> Process:
        """The process that is being built, to which new callers belong."""
        assert self._building is not None  # noqa: S101  # callers are made only by workers, and those only in _start
        return self._building

    def _is_quiet(self, process: Process) -> bool:
        try:
            return all(worker.until_idle(None) for worker in process.workers) and not process.dead
        except StoppedError:
            if not process.dead:
                raise
            return False

    # ---- which thread goes on ----------------------------------------------------------------------------------------------------
    def spawn(self, name: str, run: Callable[[], object]) -> Actor:
        process = self.building
        actor = Actor(f"{process.name}: {name}", run)
        process.actors.append(actor)
        return actor

    def run_until(self, true: Callable[[], bool], seconds: float | None) -> bool:
        """Direct threads until `true()` holds, a process has died, or the seconds have passed and no thread can run; return `true()`.

        Only the thread that directs calls it.
        """
        end = None if seconds is None else self.time.awake_s + seconds
        alive = self.alive
        # A thread that parked only for a mark goes on first, so that marks do not change the run.
        while (self._crossed and self._turns.is_alone) or not true():
            if any(process.dead for process in alive) or not self._turns.step(end):
                return true()
        return True

    def _after_leg(self) -> None:
        reached, self._reached = self._reached, None
        self._crossed = reached is not None
        if reached is not None:
            self.reach(*reached)
        self._raise_wrong()

    def _raise_wrong(self) -> None:
        if self.wrong is not None:
            wrong, self.wrong = self.wrong, None
            raise wrong

    # ---- crossings ---------------------------------------------------------------------------------------------------------------
    def cross(self, process: Process, kind: str, what: str, *, inside: bool = False) -> bool:
        """Reach a crossing, where the schedule's moves happen; return True where the process is dead now. Any thread of the lab may call
        it.

        inside: whether the process has a transaction open.
        """
        me = cooperative_threads.current()
        if me is None:
            self.reach(process, kind, what, inside)
            return process.dead
        if me.dead or process.dead:
            raise Buried
        if self._nothing_happens(kind, what):
            self._count(process, kind, what, inside)
            return False
        self._reached = (process, kind, what, inside)
        me.park()
        return False

    def _nothing_happens(self, kind: str, what: str) -> bool:
        """Return whether the thread may go on without parking, which is quicker: no other thread could run, and no move is planned here."""
        number = len(self.crossings) + 1
        planned = number in self._moves or self._kept_out or self._is_for_ever(number)
        judged = (kind == "committed" and what != "nothing") or self.marks is not None or self.wrong is not None
        return self._turns.is_alone and not (planned or judged)

    def _count(self, process: Process, kind: str, what: str, inside: bool) -> Crossing:
        crossing = Crossing(len(self.crossings) + 1, kind, what, process.number, inside, told=self.time.told > self._told)
        self._told = self.time.told
        self.crossings.append(crossing)
        self._idle += crossing.number - self._changed_at > IDLE_AFTER
        self.time.forward(STATEMENT_S)
        return crossing

    def _is_for_ever(self, number: int) -> bool:
        return number - self._idle > self.limit or number > IDLE_TIMES * self.limit

    def reach(self, process: Process, kind: str, what: str, inside: bool) -> None:
        """Carry out the moves of a crossing and notify the judge; only the thread that directs calls it."""
        crossing = self._count(process, kind, what, inside)
        if self._is_for_ever(crossing.number):
            raise Stuck(f"it is not done after {crossing.number} crossings, {crossing.number - self._idle} of them where something went on")
        if kind == "committed" and what != "nothing":
            self._changes += 1
            self._changed_at = crossing.number
            self.tell_story(f"{process.name} commits {what}")
            if self.judge is not None:
                self.judge.committed(ours_alone=all(" groundstate_" in word for word in what.split(", ")))
        if self.marks is not None:
            self.marks.append((self._changes, len(self._turns.tasks), self.place.mark(), *(one.left() for one in self.alive)))
            # while the workers stop, a commit of another program makes the lab start again
            if not self._stopping and (self.place.locks_rows or not inside):
                self.idle.update((which, crossing.number) for which, act in enumerate(self.meanwhile, 1) if self.is_idle(act))
        moves, self._kept_out = [*self._kept_out, *self._moves.get(crossing.number, ())], []
        for move in moves:
            if move.kind == "freeze" and kind in ("statement", "commit"):
                self._kept_out.append(move)  # a worker frozen in a transaction would lock all others out of an SQLite store
            else:
                self._make(move, process, crossing)
        if moves and self.restarts is not None and self._is_all_told() and self.restarts.was_tried(self._left(), self.time.now_s):
            self.wrong = self.wrong or Joined()

    def _is_all_told(self) -> bool:
        """Return whether the state left behind determines the rest of the run: all processes are dead, and no move, mood or call is to
        come.
        """
        to_come = self._kept_out or any(crossing > len(self.crossings) for crossing in self._moves)
        to_come = to_come or any(number > self.calls for number, _ in self.schedule.moods) or self.schedule.hints == "reordered"
        in_air = any(task.outlives or task.at_s > self.time.now_s for task in self._turns.tasks)
        return not (self.alive or to_come or in_air)

    def _left(self) -> object:
        """Return the state from which a restart begins when every process is dead; see the module `restarts`."""
        leaps = any(move.kind == "leap" for move in self.schedule.moves)
        how = (self.schedule.hints, self.schedule.lookups_lag, self.schedule.workers, leaps, self._after_restore)
        judged = None if self.judge is None else self.judge.left()
        return self.place.state(), self.service.done(), how, self.time.apart, self._dice.state, self._acts, judged

    def _make(self, move: Move, process: Process, crossing: Crossing) -> None:
        match move.kind:
            case "die":
                self.tell_story(f"{process.name} is killed {crossing}")
                self.kill(process)
            case "meanwhile":
                self._someone_else(move, crossing)
            case "switch":
                others = [one for one in self.alive if one is not process]
                self._turns.preferred = others[0] if others else None
                if others:
                    self.tell_story(f"{others[0].name} goes on, {crossing} of {process.name}")
            case "unlock" | "freeze":
                self._unlock(process, crossing, freezes=move.kind == "freeze")
            case "leap" | "suspend":
                self._move_clock(move, crossing)
            case "copy":
                self._copy = (self.place.copy(), self.judge.copied() if self.judge is not None else None)
                self.tell_story(f"the database is copied, {crossing}")
            case "restore":
                if self._copy is not None:
                    self._restore(crossing)

    def _someone_else(self, move: Move, crossing: Crossing) -> None:
        if not self.meanwhile:
            return
        act = self.meanwhile[max(move.which, 1) - 1]
        if not self.place.someone_else(act):
            self._kept_out.append(move)
            return
        self._changes += 1
        self._came_in += 1
        self._acts.append(move.which)
        self.tell_story(f"meanwhile, {crossing}: {getattr(act, '__name__', 'someone else')}")
        if self.judge is not None:
            self.judge.committed(ours_alone=False)

    def _move_clock(self, move: Move, crossing: Crossing) -> None:
        which = max(move.which, 1) - 1
        if move.kind == "leap" and self.clock.leaps:
            self.leap(self.clock.leaps[which], f", {crossing}")
        if move.kind == "suspend" and self.clock.suspends:
            self.suspend(self.clock.suspends[which], f", {crossing}")

    def leap(self, by: timedelta, where: str = "") -> None:
        """Move the time of day ahead or back; no other clock changes."""
        self.time.leap(by)
        self._clock_moved(f"the clock {'leaps ahead' if by > timedelta() else 'steps back'} by {abs(by)}", where)

    def suspend(self, how_long: timedelta, where: str = "") -> None:
        """Suspend the host of all processes for this time, while external services and requests in flight go on."""
        self._turns.suspend(how_long.total_seconds())
        self._clock_moved(f"the host was suspended for {how_long}", where)

    def _clock_moved(self, words: str, where: str) -> None:
        self._came_in += 1  # a record that was not due when a worker looked may be due now
        self._changes += 1
        self.tell_story(f"{words}{where}: it shows {self.time.now().astimezone(self.clock.begins.tzinfo)}")

    def _unlock(self, process: Process, crossing: Crossing, *, freezes: bool) -> None:
        if not process.started or process.dead:
            return
        self.tell_story(f"{process.name} loses its lock and {'stands still' if freezes else 'lives'}, {crossing}")
        if freezes:
            process.frozen_until_s = self.time.now_s + self.service.longest_s
        for worker in process.workers:
            worker.incarnation.liveness.release()
        self._start()

    def _restore(self, crossing: Crossing) -> None:
        self.tell_story(f"all is killed {crossing}, and the copy of the database is put back")
        for process in self.alive:
            self.kill(process)
        copy, known = self._copy
        self.place.put_back(copy)
        self._after_restore = True
        if self.judge is not None:
            self.judge.put_back(known)

    def kill(self, process: Process) -> None:
        """Kill the process as SIGKILL does: none of its code runs any more, and the system closes its connections and frees its locks."""
        if process.dead:
            return
        if self.at_death is not None:
            self.at_death(process)
        process.killed = True
        for actor in process.actors:
            actor.dead = True
        self._let_go(process)

    def _let_go(self, process: Process) -> None:
        with self.place.leaving(process.drivers()):
            process.let_go()
        self._turns.alive.remove(process)
        if self._turns.preferred is process:
            self._turns.preferred = None

    def gives_way(self, process: Process) -> bool:
        """Wait until another process, which holds the write lock of an SQLite store, has run on; return False where no other can run."""
        me = cooperative_threads.current()
        others = [one for one in self.alive if one is not process and any(actor.ready() and not actor.done for actor in one.actors)]
        if me is None or not others:
            return False
        before = len(self.crossings)
        self._turns.preferred = others[0]
        me.park(lambda: len(self.crossings) > before)
        return True

    # ---- calls in flight -----------------------------------------------------------------------------------------------------------
    def task(self, process: Process, run: Callable[[], object], at_s: float = 0.0, *, outlives: bool = False) -> None:
        self._turns.tasks.append(Task(process, lambda: _nothing(run()), at_s, outlives))

    def leave(self, in_flights: Sequence[InFlightCall]) -> None:
        """Report to the judge that these in-flight calls leave the worker's thread, so their requests may arrive from now on."""
        if self.judge is not None:
            self._judged(partial(self.judge.leave, in_flights))

    def arrives(self, in_flight: InFlightCall, key: str, argument: Any) -> Effect[Any]:
        """Let the external service carry out the request of this in-flight call, and report a new effect to the judge."""
        effect, new = self.service.carry_out(in_flight, key, argument)
        self.tell_story(
            f"the service has done {told(in_flight)}" if new else f"the service knows the key of {told(in_flight)}, and does nothing"
        )
        self._changes += 1
        if new and self.judge is not None:
            self._judged(partial(self.judge.acted, effect))
        return effect

    def brought(self, process: Process, effect: Effect[Any]) -> None:
        """Report to the judge that the outcome of this effect has come back to the process."""
        if self.judge is not None:
            self.judge.brought(process, effect)

    def _judged(self, judge: Callable[[], None]) -> None:
        """Run a check of the judge, and keep its failure until the stage directs again.

        A user's function or the engine, in which it runs, might catch the exception.
        """
        try:
            judge()
        except AssertionError as wrong:
            self.wrong = self.wrong or wrong

    # ---- hints ---------------------------------------------------------------------------------------------------------------------
    def tell(self, touched: commit_hooks.Touched) -> None:
        """Deliver the hint of a commit to the workers of its own process, as far as the schedule lets it arrive."""
        me = cooperative_threads.current()
        if me is None:
            return
        process = next(one for one in self.processes if me in one.actors)
        self.cross(process, "hint", ", ".join(sorted(one.__name__ for one in {*touched.keys, *touched.whole})))
        for whose, one in self._hints.arriving(process, touched):
            for worker in whose.workers:
                worker.hear(one)

    def transaction_of_me(self) -> list[Callable[[], None]] | None:
        """Return the callbacks that are called when the current thread's transaction commits, or None for a thread without a database."""
        wired = self._wired.get(cooperative_threads.current())  # type: ignore[arg-type]  # only an actor has a database
        return None if wired is None else wired.transaction

    def tell_story(self, words: str) -> None:
        self.story.append(f"{self.time.now_s:9.3f} s  {words}")


def _nothing(_value: object) -> None:
    return None
