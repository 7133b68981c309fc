"""Decides which thread of which process of a run goes on, and when time passes; it decides the same in each repetition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from groundstate.testing.simulate.cooperative_threads import Actor
from groundstate.testing.simulate.fake_environment import Stuck, Time
from groundstate.testing.simulate.sim_process import Process, Task

BLOCKED_S = 0.02  # seconds: a statement on PostgreSQL that takes longer is checked for waiting for a lock


class Locking(Protocol):
    """The database server, where statements may wait for each other's locks."""

    locks_rows: bool

    def waits(self, connection: Any) -> bool:
        """Return whether the statement on this driver connection waits for a lock."""


class Turns:
    """The thread scheduler of one run. `after` is called when a thread has parked or ended."""

    def __init__(self, time: Time, place: Locking, after: Callable[[], None]) -> None:
        self.alive: list[Process] = []
        self.preferred: Process | None = None
        self.tasks: list[Task] = []
        self._time = time
        self._place = place
        self._after = after
        self._running: Actor | None = None
        self._beyond: set[Actor] = set()  # threads in a statement that waits for a lock of another

    @property
    def is_alone(self) -> bool:
        """Return whether no other process than the one that runs could go on."""
        return len(self.alive) == 1 and self.preferred is None

    def next_task_s(self) -> float | None:
        """Return when the next step of a call in flight is due, as `now_s`, or None."""
        return min((_when(task) for task in self.tasks if task.outlives or not task.process.dead), default=None)

    def step(self, end: float | None) -> bool:
        """Let one thread run, or time pass where none can; return False when the monotonic clock has reached `end`."""
        now = self._time.now_s
        # A request that a frozen worker was about to send goes out before the worker checks that it still has its lock.
        if any(0 < task.process.frozen_until_s <= now for task in self.tasks) and self.let_arrive():
            return True
        actor = self._next_actor()
        if actor is not None:
            self._lead(actor)
            return True
        if self.let_arrive():
            return True
        if end is not None and self._time.awake_s >= end:
            return False
        times = [*self._soon(), *([self._time.real_s(end)] if end is not None else [])]
        if not times:
            raise Stuck("everybody waits, and for nothing that could come")
        self._time.forward(min(times) - now)
        return True

    def _soon(self) -> Sequence[float]:
        in_air = [_when(task) for task in self.tasks]
        waiting = [
            max(self._time.real_s(actor.until), process.frozen_until_s)
            for process in self.alive
            for actor in process.actors
            if actor.until is not None and not actor.done
        ]
        frozen = [process.frozen_until_s for process in self.alive if process.frozen_until_s > self._time.now_s]
        return [*(in_air or waiting), *frozen]

    def suspend(self, seconds: float) -> None:
        """Suspend the host of all processes. Requests that have left it arrive meanwhile; its own steps wait."""
        time, end = self._time, self._time.now_s + seconds
        for task in self.tasks:
            if not task.outlives and task.at_s > time.now_s:
                task.at_s += seconds
        while (at_s := min((task.at_s for task in self.tasks if task.outlives), default=end)) < end:
            time.suspend(at_s - time.now_s)
            self.let_arrive(gone=True)
        time.suspend(end - time.now_s)

    def let_arrive(self, *, gone: bool = False) -> bool:
        """Carry out one due step of a call in flight; return False where none is due. gone: only a step that has left its process."""
        ready = next((task for task in self.tasks if _when(task) <= self._time.now_s and (task.outlives or not gone)), None)
        if ready is None:
            return False
        self.tasks.remove(ready)
        if ready.outlives or not ready.process.dead:
            ready.run()
            self._after()
        return True

    def _next_actor(self) -> Actor | None:
        """Return the thread to run next: the one that ran before, unless it waits or another process is preferred."""
        if self._beyond:
            self._look_beyond()
        moving = [process for process in self.alive if process.frozen_until_s <= self._time.now_s]
        order = sorted(moving, key=lambda process: process is not self.preferred)
        actors = [actor for process in order for actor in process.actors if not actor.done and actor not in self._beyond]
        if self._running in actors and self.preferred is None:
            actors.remove(self._running)
            actors.insert(0, self._running)
        return next((actor for actor in actors if actor.ready() or (actor.until is not None and actor.until <= self._time.awake_s)), None)

    def _lead(self, actor: Actor) -> None:
        self._running = actor
        if actor.go_on(BLOCKED_S if self._place.locks_rows else None) or self._is_back(actor):
            self._after()
        else:
            self._beyond.add(actor)

    def _is_back(self, actor: Actor) -> bool:
        """Wait for a thread that neither parked nor ended. Return False where its statement waits for a lock, so that others may run."""
        while not actor.arrived(BLOCKED_S):
            if self._waits(actor):
                return False
        return True

    def _waits(self, actor: Actor) -> bool:
        process = next(one for one in self.alive if actor in one.actors)
        return any(self._place.waits(connection) for connection in process.connections)

    def _look_beyond(self) -> None:
        for actor in sorted(self._beyond, key=lambda one: one.name):
            if actor.dead:
                self._beyond.discard(actor)
            elif not self._waits(actor) and self._is_back(actor):
                self._beyond.discard(actor)
                self._running = actor
                self._after()


def _when(task: Task) -> float:
    """Return when the step can be carried out: the steps of a frozen process wait, a request that has left it does not."""
    return task.at_s if task.outlives else max(task.at_s, task.process.frozen_until_s)
