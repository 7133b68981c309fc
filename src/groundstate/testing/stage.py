"""Directs one run: its processes, which thread goes on, what is in the air, and what happens at each crossing. Judges nothing.

A process here is what a process of the user's would be: a worker for each store, their connections and locks. When it dies, its threads
stay parked where they are, and what the system would close is closed beneath them.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from sqlalchemy import bindparam, event, type_coerce

from groundstate.engine import hints
from groundstate.engine.calling import Caller
from groundstate.engine.flight import Flight, NotSent, Unclear, Word
from groundstate.engine.worker import Options, Worker
from groundstate.rules.policy import MARGIN
from groundstate.rules.reaction import CallSpec, ReactionSpec
from groundstate.store import opening
from groundstate.store.port import Settings
from groundstate.store.tables import Instant
from groundstate.testing import actors
from groundstate.testing.actors import Actor, Buried
from groundstate.testing.ambient import EPOCH, Stuck, Time, installed
from groundstate.testing.provider import Effect, Fake, Mood
from groundstate.testing.schedule import Move, Schedule
from groundstate.values.answers import Absent, Busy, NotDone
from groundstate.values.errors import Stopped

STATEMENT_S = 0.001  # what each crossing costs, by the lab's clock
BLOCKED_S = 0.02  # a statement on PostgreSQL that took longer is looked at: does it wait for a lock?


@dataclass(frozen=True)
class Crossing:
    """A place where the program may be cut: before a statement, before and after a commit, at a hint, before, in and after a call."""

    number: int
    kind: str  # statement, commit, committed, hint, call, done, answered, find, found
    what: str
    process: int

    def __str__(self) -> str:
        return f"{_BEFORE.get(self.kind, self.kind)} {self.what}".strip()


_BEFORE = {
    "statement": "before",
    "commit": "before COMMIT of",
    "committed": "after COMMIT of",
    "hint": "before the hint of",
    "call": "before the call",
    "done": "in the call, done but not answered:",
    "answered": "after the answer of the call",
    "find": "before the find of",
    "found": "after the find of",
}


class Place(Protocol):
    """The scratch database of a run."""

    settings: Sequence[Settings]  # of each of the app's stores
    locks_rows: bool  # whether a statement may wait for another's lock inside the database

    def someone_else(self, act: Callable[..., None]) -> bool:
        """Someone else's transaction; False where a lock keeps it out for now."""

    def copy(self) -> Any:
        """The database as it is now."""

    def put_back(self, copy: Any) -> None:
        """Brings the database to where it was. No process lives."""

    def waits(self, connection: Any) -> bool:
        """Whether the statement on this driver's connection waits for a lock."""

    def gone(self, connections: Sequence[Any]) -> None:
        """Returns when the database knows that these closed connections are gone."""


class Judge(Protocol):
    """Who is told what happened."""

    def committed(self) -> None:
        """Somebody's transaction was committed."""

    def acted(self, effect: Effect[Any]) -> None:
        """The outside was acted on."""

    def copied(self) -> Any:
        """What is known of the database's state, to be given back with it."""

    def put_back(self, known: Any) -> None:
        """The database went back."""


@dataclass(eq=False)
class Process:
    """One process. `transaction` holds what its transaction under way has done that counts once it commits."""

    number: int
    workers: list[Worker] = field(default_factory=list)
    actors: list[Actor] = field(default_factory=list)
    connections: list[Any] = field(default_factory=list)
    dead: bool = False
    killed: bool = False
    started: bool = False
    in_transaction: list[Callable[[], None]] = field(default_factory=list)
    savepoints: dict[str, int] = field(default_factory=dict)
    words: str = ""  # the last statement that wrote, for telling a commit

    @property
    def name(self) -> str:
        return f"worker {self.number}"


@dataclass(eq=False)
class Task:
    """One step that is still to come of a call in the air."""

    process: Process
    run: Callable[[], None]
    at_s: float
    outlives: bool = False  # a request that has left the process arrives, whoever died


class LabCaller(Caller):
    """Makes no call itself: gives each flight to the stage. What may go out and what an answer means is the engine's own."""

    def __init__(self, stage: Stage, say: Callable[[Sequence[Word]], None], sound: Callable[[int], bool]) -> None:
        super().__init__(say, sound)
        self._stage = stage
        self._process = stage.building
        self._air: set[Flight] = set()

    def start(self, flights: Sequence[Flight]) -> None:
        groups: dict[CallSpec, list[Flight]] = {}
        for flight in flights:
            call = flight.question.spec.call
            if call is not None and call.many and not flight.is_find:
                groups.setdefault(call, []).append(flight)
            else:
                self._stage.task(self._process, partial(self._send, [flight]))
        for call, some in groups.items():
            size = call.many or 1
            for first in range(0, len(some), size):
                self._stage.task(self._process, partial(self._send, some[first : first + size]))

    def cancel(self, flights: Sequence[Flight]) -> None:
        for flight in flights:
            if flight in self._air:
                self._back(Unclear(flight, "CancelledError"))
                self._air.discard(flight)

    def watch(self) -> None:
        """There is no loop that could be blocked."""

    def stop(self, timeout_s: float) -> None:  # the caller's
        """Nothing of it runs by itself."""

    # ---- steps -----------------------------------------------------------------------------------------------------------------
    def _send(self, flights: Sequence[Flight]) -> None:
        stage, first = self._stage, flights[0]
        if stage.cross(self._process, "find" if first.is_find else "call", told(first)):
            return
        going = [flight for flight in flights if self._may_go(flight)]
        self._back(*[NotSent(flight) for flight in flights if flight not in going])
        for flight in going:
            self._air.add(flight)
            if flight.is_find:
                self._ask(flight)
            else:
                self._call(flight)

    def _ask(self, flight: Flight) -> None:
        stage = self._stage
        effect = stage.fake_of(flight).find(str(flight.key), stage.time.now_s)
        stage.tell_story(f"{self._process.name} asks what became of {told(flight)}: {'absent' if effect is None else effect.answer!r}")
        self._bring(flight, self._answered(flight, Absent() if effect is None else effect.answer), "found")

    def _call(self, flight: Flight) -> None:
        stage = self._stage
        fake = stage.fake_of(flight)
        fake.ledger.requests += 1
        stage.calls += 1
        mood = dict(stage.schedule.moods).get(stage.calls, Mood.DONE)
        stage.tell_story(f"{self._process.name} calls {told(flight)} (call {stage.calls}: {mood.value})")
        now_s = stage.time.now_s
        if mood is Mood.REFUSED:
            self._bring(flight, self._raised(flight, NotDone("the lab refuses it")), "answered")
        elif mood is Mood.BUSY:
            self._bring(flight, self._raised(flight, Busy(MARGIN)), "answered")
        elif mood is Mood.LOST:
            self._bring(flight, self._raised(flight, ConnectionError("the lab lost it")), "answered")
        elif mood is Mood.LATE:
            stage.task(self._process, partial(stage.arrives, flight), self._last_s(flight), outlives=True)
            self._bring(flight, self._raised(flight, TimeoutError()), "answered")
        elif mood is Mood.LATE_ANSWER and not self._function(flight).is_async:
            flight.ends_s = now_s + flight.timeout.total_seconds()
            effect = stage.arrives(flight)
            stage.task(self._process, partial(self._bring_late, flight, effect), flight.ends_s + 1)
        else:
            effect = stage.arrives(flight)
            if stage.cross(self._process, "done", told(flight)):
                return
            lost = mood is not Mood.DONE
            self._bring(flight, self._raised(flight, TimeoutError()) if lost else self._answered(flight, effect.answer), "answered")

    def _last_s(self, flight: Flight) -> float:
        """The last moment at which a request may still arrive."""
        call = flight.question.spec.call
        settle_after = call.in_doubt.settle_after if call else None
        begun_s = (flight.moment.now - EPOCH).total_seconds()
        return begun_s + (flight.timeout + MARGIN + (flight.timeout if settle_after is None else settle_after)).total_seconds() - 0.002

    def _bring_late(self, flight: Flight, effect: Effect[Any]) -> None:
        self._bring(flight, self._after_giving_up(self._answered(flight, effect.answer)), "answered")

    def _bring(self, flight: Flight, word: Word, kind: str) -> None:
        if flight in self._air:
            self._air.discard(flight)
            self._back(word)
            self._stage.cross(self._process, kind, told(flight))


def told(flight: Flight) -> str:
    """Which call it is, for people."""
    _, reaction, record, occurrence = flight.identity
    return f"{reaction} of {record}" + (f" ({occurrence})" if occurrence else "")


class Stage:
    """One run of a schedule."""

    def __init__(
        self, app: str, specs: Sequence[Sequence[ReactionSpec]], place: Place, fakes: Sequence[Fake], schedule: Schedule, *, limit: int
    ) -> None:
        self.app = app
        self.specs = specs
        self.place = place
        self.fakes = {fake.spec: fake for fake in fakes}
        self.schedule = schedule
        self.limit = limit  # crossings: more is for ever
        self.time = Time()
        self.crossings: list[Crossing] = []
        self.processes: list[Process] = []
        self.calls = 0
        self.meanwhile: Sequence[Callable[..., None]] = ()
        self.judge: Judge | None = None
        self.story: list[str] = []
        self.wrong: BaseException | None = None  # what a judge raised in a place where it could not be raised
        self.after_restore = False
        self.at_death: Callable[[Process], None] | None = None  # instead of a death in process: a real one
        self._moves: dict[int, list[Move]] = {}
        for move in schedule.moves:
            self._moves.setdefault(move.crossing, []).append(move)
        self._kept_out: list[Move] = []  # someone else's transactions that wait for a lock
        self._tasks: list[Task] = []
        self._running: Actor | None = None
        self._preferred: Process | None = None
        self._reached: tuple[Process, str, str] | None = None
        self._beyond: set[Actor] = set()  # in a statement that waits for another's lock
        self._copy: Any = None
        self._hints = 0
        self._held_back: list[tuple[Process, hints.Touched]] = []
        self._building: Process | None = None

    # ---- the run ---------------------------------------------------------------------------------------------------------------
    @contextmanager
    def open(self, seed: int = 1) -> Iterator[None]:
        """The engine's modules are the stage's while the block runs; at its end all threads that died are buried."""
        with installed(self, partial(LabCaller, self), seed), _quiet_dead():
            try:
                yield
            finally:
                for process in self.alive:
                    self._let_go(process)
                for process in self.processes:
                    for actor in process.actors:
                        actor.bury()

    @property
    def alive(self) -> list[Process]:
        return [process for process in self.processes if not process.dead]

    def run_until_quiet(self) -> None:
        """Until nothing can be done now, whoever dies on the way: what dies is started again."""
        while True:
            while len(self.alive) < self.schedule.workers:
                self._start()
            if all(self._is_quiet(process) for process in self.alive) and len(self.alive) >= self.schedule.workers:
                return

    def stop(self) -> None:
        """A clean end of all processes. One that dies in it is started and stopped again."""
        while self.alive:
            process = self.alive[0]
            with suppress(Stopped):
                for worker in process.workers:
                    worker.stop(10)
            if process.dead:
                self._start()
            else:
                self._let_go(process)

    def next_task_s(self) -> float | None:
        """When something that is in the air arrives."""
        return min((task.at_s for task in self._tasks if task.outlives or not task.process.dead), default=None)

    def _start(self) -> None:
        process = self._building = Process(len(self.processes) + 1)
        self.processes.append(process)
        self.tell_story(f"{process.name} starts")
        for settings, specs in zip(self.place.settings, self.specs, strict=True):
            opened = opening.open_store(settings)
            self._watch(process, opened[0])
            options = Options(after_restore=self.after_restore)
            process.workers.append(Worker(self.app, specs, opened, options=options))
        self.after_restore = False
        self._building = None
        for worker in process.workers:
            if not process.dead:
                worker.start()
        process.started = not process.dead

    @property
    def building(self) -> Process:
        assert self._building is not None  # noqa: S101  # callers are made by workers, and those in _start
        return self._building

    def _is_quiet(self, process: Process) -> bool:
        try:
            return all(worker.until_quiet(None) for worker in process.workers) and not process.dead
        except Stopped:
            if not process.dead:
                raise
            return False

    # ---- who goes on -------------------------------------------------------------------------------------------------------------
    def spawn(self, name: str, run: Callable[[], object]) -> Actor:
        process = self.building
        actor = Actor(f"{process.name}: {name}", run)
        process.actors.append(actor)
        return actor

    def run_until(self, true: Callable[[], bool], seconds: float | None) -> bool:
        """In the thread that directs. Ends too when a process has died, and when its time is over and nothing else can go on."""
        end = None if seconds is None else self.time.now_s + seconds
        alive = len(self.alive)
        while not true():
            if len(self.alive) < alive:
                return true()
            if not self._step(end):
                return true()
        return True

    def _step(self, end: float | None) -> bool:
        """Lets somebody go on; False when the end has come."""
        actor = self._next_actor()
        if actor is not None:
            self._lead(actor)
            return True
        now = self.time.now_s
        ready = next((task for task in self._tasks if task.at_s <= now), None)
        if ready is not None:
            self._tasks.remove(ready)
            if ready.outlives or not ready.process.dead:
                ready.run()
                self._may_raise()
            return True
        if end is not None and now >= end:
            return False
        soon = [task.at_s for task in self._tasks] or [
            actor.until for process in self.alive for actor in process.actors if actor.until is not None and not actor.done
        ]
        times = [*soon, *([end] if end is not None else [])]
        if not times:
            raise Stuck("everybody waits, and for nothing that could come")
        self.time.forward(min(times) - now)
        return True

    def _next_actor(self) -> Actor | None:
        """The one that ran before, unless another is preferred or it waits."""
        self._look_beyond()
        order = sorted(self.alive, key=lambda process: process is not self._preferred)
        actors = [actor for process in order for actor in process.actors if not actor.done and actor not in self._beyond]
        if self._running in actors and self._preferred is None:
            actors.remove(self._running)
            actors.insert(0, self._running)
        return next((actor for actor in actors if actor.ready() or (actor.until is not None and actor.until <= self.time.now_s)), None)

    def _lead(self, actor: Actor) -> None:
        self._running = actor
        if actor.go_on(BLOCKED_S if self.place.locks_rows else None) or self._wait_for(actor):
            self._after_leg()

    def _wait_for(self, actor: Actor) -> bool:
        """A thread that neither parked nor ended: in a statement that waits for a lock, others go on; else it is waited for."""
        process = next(one for one in self.processes if actor in one.actors)
        while not actor.arrived(BLOCKED_S):
            if any(self.place.waits(connection) for connection in process.connections):
                self._beyond.add(actor)
                return False
        return True

    def _look_beyond(self) -> None:
        for actor in sorted(self._beyond, key=lambda one: one.name):
            if actor.arrived(BLOCKED_S):
                self._beyond.discard(actor)
                self._running = actor
                self._after_leg()

    def _after_leg(self) -> None:
        reached, self._reached = self._reached, None
        if reached is not None:
            self.reach(*reached)
        self._may_raise()

    def _may_raise(self) -> None:
        if self.wrong is not None:
            wrong, self.wrong = self.wrong, None
            raise wrong

    # ---- crossings ---------------------------------------------------------------------------------------------------------------
    def cross(self, process: Process, kind: str, what: str) -> bool:
        """From any thread of ours: the crossing is reached, and what the schedule says happens. True where the process is dead now."""
        me = actors.current()
        if me is None:
            self.reach(process, kind, what)
            return process.dead
        if me.dead or process.dead:
            raise Buried
        self._reached = (process, kind, what)
        me.park()
        return False

    def reach(self, process: Process, kind: str, what: str) -> None:
        """In the thread that directs."""
        crossing = Crossing(len(self.crossings) + 1, kind, what, process.number)
        self.crossings.append(crossing)
        if crossing.number > self.limit:
            raise Stuck(f"it is not done after {self.limit} crossings")
        self.time.forward(STATEMENT_S)
        if kind == "committed":
            self.tell_story(f"{process.name} commits {what}")
            if self.judge is not None:
                self.judge.committed()
        moves, self._kept_out = [*self._kept_out, *self._moves.get(crossing.number, ())], []
        for move in moves:
            self._make(move, process, crossing)

    def _make(self, move: Move, process: Process, crossing: Crossing) -> None:
        match move.kind:
            case "die":
                self.tell_story(f"{process.name} is killed {crossing}")
                self.kill(process)
            case "meanwhile":
                self._someone_else(move, crossing)
            case "switch":
                others = [one for one in self.alive if one is not process]
                self._preferred = others[0] if others else None
                if others:
                    self.tell_story(f"{others[0].name} goes on, {crossing} of {process.name}")
            case "unlock":
                self._unlock(process, crossing)
            case "copy":
                self._copy = (self.place.copy(), self.judge.copied() if self.judge is not None else None)
                self.tell_story(f"the database is copied, {crossing}")
            case "restore":
                if self._copy is not None:
                    self._restore(crossing)

    def _someone_else(self, move: Move, crossing: Crossing) -> None:
        act = self.meanwhile[move.which - 1] if move.which else self.meanwhile[0]
        if not self.place.someone_else(act):
            self._kept_out.append(move)
            return
        self.tell_story(f"meanwhile, {crossing}: {getattr(act, '__name__', 'someone else')}")
        if self.judge is not None:
            self.judge.committed()

    def _unlock(self, process: Process, crossing: Crossing) -> None:
        if not process.started or process.dead:
            return
        self.tell_story(f"{process.name} loses its lock and lives, {crossing}")
        for worker in process.workers:
            worker.life.lives.release()
        self._start()

    def _restore(self, crossing: Crossing) -> None:
        self.tell_story(f"all is killed {crossing}, and the copy of the database is put back")
        for process in self.alive:
            self.kill(process)
        copy, known = self._copy
        self.place.put_back(copy)
        self.after_restore = True
        if self.judge is not None:
            self.judge.put_back(known)

    def kill(self, process: Process) -> None:
        """As SIGKILL: nothing of it runs any more; the system closes its connections and lets its locks go."""
        if process.dead:
            return
        if self.at_death is not None:
            self.at_death(process)
        process.dead = process.killed = True
        for actor in process.actors:
            actor.dead = True
        self._let_go(process)

    def _let_go(self, process: Process) -> None:
        process.dead = True
        for worker in process.workers:
            hints.stop_listening(worker)
            with suppress(Exception):
                worker.life.lives.release()
            watching = getattr(worker.database, "_watching", None)
            if watching is not None:
                watching.close()
            witness = worker._witness  # noqa: SLF001  # its descriptors are closed by the system
            if witness is not None and hasattr(witness, "close"):
                witness.close()
        for connection in process.connections:
            with suppress(Exception):
                connection.close()
        self.place.gone(process.connections)
        if self._preferred is process:
            self._preferred = None

    # ---- what is in the air --------------------------------------------------------------------------------------------------------
    def task(self, process: Process, run: Callable[[], object], at_s: float = 0.0, *, outlives: bool = False) -> None:
        self._tasks.append(Task(process, lambda: _nothing(run()), at_s, outlives))

    def fake_of(self, flight: Flight) -> Fake:
        call = flight.question.spec.call
        assert call is not None  # noqa: S101  # only reactions with a call fly
        return self.fakes[call]

    def arrives(self, flight: Flight) -> Effect[Any]:
        """The request of this flight is carried out by the outside."""
        fake = self.fake_of(flight)
        before = len(fake.ledger.entries)
        now_s = self.time.now_s
        call = flight.question.spec.call
        settle_after = call.in_doubt.settle_after if call is not None else None
        lag_s = (flight.timeout + MARGIN + settle_after).total_seconds() if self.schedule.finds_lag and settle_after is not None else 0.0
        begun_s = (flight.moment.now - EPOCH).total_seconds()
        visible_s = max(now_s, begun_s + lag_s - 0.001) if lag_s else now_s
        effect = fake.do(flight.identity, str(flight.key), flight.argument, now_s, visible_s)
        new = len(fake.ledger.entries) > before
        self.tell_story(f"the outside has done {told(flight)}" if new else f"the outside knows the key of {told(flight)}, and does nothing")
        if new and self.judge is not None:
            self.judge.acted(effect)
        return effect

    # ---- hints ---------------------------------------------------------------------------------------------------------------------
    def tell(self, touched: hints.Touched) -> None:
        """A hint of a commit reaches the workers of its own process, as far as the schedule lets it."""
        me = actors.current()
        if me is None:
            return
        process = next(one for one in self.processes if me in one.actors)
        self.cross(process, "hint", ", ".join(sorted(one.__name__ for one in {*touched.keys, *touched.whole})))
        if self.schedule.hints == "lost":
            return
        arriving = [(process, touched)]
        if self.schedule.hints == "doubled":
            arriving *= 2
        elif self.schedule.hints == "reordered":
            self._held_back.append((process, touched))
            if len(self._held_back) < 2:
                return
            arriving, self._held_back = list(reversed(self._held_back)), []
        elif self.schedule.hints == "invented":
            invented = hints.Touched(keys={one: {(-1,): None, ("?", None): None} for one in {*touched.keys, *touched.whole}})
            arriving.append((process, invented))
        for whose, one in arriving:
            for worker in whose.workers:
                worker.hear(one)

    # ---- the database ----------------------------------------------------------------------------------------------------------------
    def _watch(self, process: Process, database: Any) -> None:
        """From now on the statements and commits of this database are crossings of the process, and its clock is the stage's."""
        moment = type_coerce(bindparam("lab_now", callable_=self.time.now, type_=Instant()), Instant())
        database.now = lambda: moment
        dialect = database.engine.dialect
        embedded = not database.locks_rows

        def connected(connection: Any, _record: object) -> None:
            process.connections.append(connection)
            if embedded:
                connection.execute("PRAGMA synchronous=OFF")  # no power is cut here

        def connecting(*_: object) -> None:
            if process.dead:
                raise Buried

        event.listen(database.engine, "connect", connected)
        event.listen(database.engine, "do_connect", connecting)
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            setattr(dialect, name, partial(self._execute, process, getattr(dialect, name)))
        dialect.do_commit = partial(self._commit, process, dialect.do_commit)
        dialect.do_rollback = partial(self._roll_back, process, dialect.do_rollback)
        dialect.do_savepoint = partial(self._savepoint, process, dialect.do_savepoint)
        dialect.do_rollback_to_savepoint = partial(self._back_to_savepoint, process, dialect.do_rollback_to_savepoint)

    def _execute(self, process: Process, real: Callable[..., Any], cursor: Any, statement: str, *rest: Any) -> Any:
        if actors.current() is None:
            return real(cursor, statement, *rest)
        what = in_short(statement)
        self.cross(process, "statement", what)
        if not what.startswith("SELECT") and what != "BEGIN":
            process.words = what
        if not statement.startswith("BEGIN IMMEDIATE"):
            return real(cursor, statement, *rest)
        process.in_transaction.clear()
        process.words = ""
        while True:
            cursor.execute("PRAGMA busy_timeout=0")
            try:
                return real(cursor, statement, *rest)
            except sqlite3.OperationalError:
                if not self._gives_way(process):
                    raise

    def _gives_way(self, process: Process) -> bool:
        """While another process has the write lock of an embedded store: waits until it went on. False where nobody can."""
        me = actors.current()
        others = [one for one in self.alive if one is not process and any(actor.ready() and not actor.done for actor in one.actors)]
        if me is None or not others:
            return False
        before = len(self.crossings)
        self._preferred = others[0]
        me.park(lambda: len(self.crossings) > before)
        return True

    def _commit(self, process: Process, real: Callable[[Any], None], connection: Any) -> None:
        if actors.current() is None:
            real(connection)
            return
        what = process.words or "nothing"
        self.cross(process, "commit", what)
        real(connection)
        done, process.in_transaction[:] = list(process.in_transaction), []
        for one in done:
            one()
        self.cross(process, "committed", what)

    def _roll_back(self, process: Process, real: Callable[[Any], None], connection: Any) -> None:
        process.in_transaction.clear()
        process.words = ""
        real(connection)

    def _savepoint(self, process: Process, real: Callable[[Any, str], None], connection: Any, name: str) -> None:
        process.savepoints[name] = len(process.in_transaction)
        real(connection, name)

    def _back_to_savepoint(self, process: Process, real: Callable[[Any, str], None], connection: Any, name: str) -> None:
        del process.in_transaction[process.savepoints.get(name, 0) :]
        real(connection, name)

    def process_of_me(self) -> Process | None:
        """Whose thread this is."""
        me = actors.current()
        return None if me is None else next(one for one in self.processes if me in one.actors)

    def tell_story(self, words: str) -> None:
        self.story.append(f"{self.time.now_s:9.3f} s  {words}")


def _nothing(_value: object) -> None:
    return None


def in_short(statement: str) -> str:
    """A statement as its verb and the table that it names first."""
    words = statement.split(None, 2)
    verb = words[0].upper() if words else ""
    if verb in {"BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK", "PRAGMA", "SET"}:
        return verb
    if verb == "UPDATE" and len(words) > 1:
        return f"UPDATE {words[1]}"
    found = re.search(r"\b(?:INTO|FROM)\s+([\w.\"]+)", statement, re.IGNORECASE)
    return f"{verb} {found[1]}" if found else verb


@contextmanager
def _quiet_dead() -> Iterator[None]:
    """What a buried thread says on its way out is no news."""

    def living(_record: logging.LogRecord) -> bool:
        me = actors.current()
        return me is None or not me.dead

    loggers = [logging.getLogger(name) for name in ("groundstate", "groundstate.store")]
    for logger in loggers:
        logger.addFilter(living)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(living)
