"""Whose turn it is: which thread of which process goes on, and when time does. The same every time. Knows nothing of what they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from groundstate.testing.actors import Actor
from groundstate.testing.ambient import Stuck, Time
from groundstate.testing.process import Process, Task

BLOCKED_S = 0.02  # a statement on PostgreSQL that took longer is looked at: does it wait for a lock?


class Locking(Protocol):
    """Where statements may wait for each other's locks."""

    locks_rows: bool

    def waits(self, connection: Any) -> bool:
        """Whether the statement on this driver's connection waits for a lock."""


class Turns:
    """Of one run. `after` is called when a thread has parked or ended."""

    def __init__(self, time: Time, place: Locking, after: Callable[[], None]) -> None:
        self.alive: list[Process] = []
        self.preferred: Process | None = None
        self.tasks: list[Task] = []
        self._time = time
        self._place = place
        self._after = after
        self._running: Actor | None = None
        self._beyond: set[Actor] = set()  # in a statement that waits for another's lock

    @property
    def is_alone(self) -> bool:
        """Whether nobody but who runs could go on."""
        return len(self.alive) == 1 and self.preferred is None

    def next_task_s(self) -> float | None:
        """When something that is in the air arrives."""
        return min((_when(task) for task in self.tasks if task.outlives or not task.process.dead), default=None)

    def step(self, end: float | None) -> bool:
        """Lets somebody go on, or time where nobody can; False when the end has come, by the monotonic clock."""
        now = self._time.now_s
        # What a worker that stood still was about to send goes out before the worker has looked who it is.
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
        """The host of all processes is suspended for so long. What has left it arrives meanwhile; what it was about to do waits."""
        time, end = self._time, self._time.now_s + seconds
        for task in self.tasks:
            if not task.outlives and task.at_s > time.now_s:
                task.at_s += seconds
        while (at_s := min((task.at_s for task in self.tasks if task.outlives), default=end)) < end:
            time.suspend(at_s - time.now_s)
            self.let_arrive(gone=True)
        time.suspend(end - time.now_s)

    def let_arrive(self, *, gone: bool = False) -> bool:
        """Carries out a step whose time has come of what is in the air; False where there is none. gone: of what has left its process."""
        ready = next((task for task in self.tasks if _when(task) <= self._time.now_s and (task.outlives or not gone)), None)
        if ready is None:
            return False
        self.tasks.remove(ready)
        if ready.outlives or not ready.process.dead:
            ready.run()
            self._after()
        return True

    def _next_actor(self) -> Actor | None:
        """The one that ran before, unless another is preferred or it waits."""
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
        """Waits for a thread that neither parked nor ended. False where it is in a statement that waits for a lock: others go on."""
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
    """A process that stands still does nothing; what has left it goes its way."""
    return task.at_s if task.outlives else max(task.at_s, task.process.frozen_until_s)
