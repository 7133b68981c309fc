"""The thread scheduler of a run: it decides which thread runs next and when time passes. Its decisions are the same in each repetition of a
run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from groundstate.testing.simulate.cooperative_threads import Actor
from groundstate.testing.simulate.fake_environment import Stuck, Time
from groundstate.testing.simulate.sim_process import Process, Task

BLOCKED_S = 0.02  # seconds after which the scheduler asks PostgreSQL whether a running statement waits for a lock


class LockingDatabase(Protocol):
    """A database in which statements may wait for locks."""

    locks_rows: bool

    def waits_for_lock(self, connection: Any) -> bool:
        """Return whether the statement on this driver connection waits for a lock."""


class ThreadScheduler:
    """The thread scheduler of one run. after: a function that is called whenever a thread has paused or ended, or a task has run."""

    def __init__(self, time: Time, place: LockingDatabase, after: Callable[[], None]) -> None:
        self.alive: list[Process] = []
        self.preferred: Process | None = None
        self.tasks: list[Task] = []
        self._time = time
        self._place = place
        self._after = after
        self._running: Actor | None = None
        self._blocked: set[Actor] = set()  # threads whose statement waits for a lock that another thread holds

    @property
    def is_alone(self) -> bool:
        """Return whether only one process is alive, and no process is preferred as the next to run."""
        return len(self.alive) == 1 and self.preferred is None

    def next_task_s(self) -> float | None:
        """Return when the next task is due, in seconds since the run began; None if there is none."""
        return min((_earliest_s(task) for task in self.tasks if task.outlives or not task.process.dead), default=None)

    def run_next_thread(self, end: float | None) -> bool:
        """Run one thread or task, or let time pass if none can run.

        Return False if none can run and the monotonic clock has reached `end` seconds. If `end` is None, there is no limit.
        """
        now = self._time.now_s
        # A request that a worker was about to send when it was stopped is sent before the worker checks whether it still holds its lock.
        if any(0 < task.process.frozen_until_s <= now for task in self.tasks) and self.run_due_task():
            return True
        actor = self._next_actor()
        if actor is not None:
            self._resume_actor(actor)
            return True
        if self.run_due_task():
            return True
        if end is not None and self._time.monotonic_s >= end:
            return False
        times = [*self._next_times_s(), *([self._time.run_time_of_monotonic_s(end)] if end is not None else [])]
        if not times:
            raise Stuck("all threads wait, and no event that could wake one of them is to come")
        self._time.forward(min(times) - now)
        return True

    def _next_times_s(self) -> Sequence[float]:
        in_air = [_earliest_s(task) for task in self.tasks]
        waiting = [
            max(self._time.run_time_of_monotonic_s(actor.until), process.frozen_until_s)
            for process in self.alive
            for actor in process.actors
            if actor.until is not None and not actor.done
        ]
        frozen = [process.frozen_until_s for process in self.alive if process.frozen_until_s > self._time.now_s]
        return [*(in_air or waiting), *frozen]

    def suspend(self, seconds: float) -> None:
        """Suspend the host of all processes for this many seconds. Requests that have left the host arrive meanwhile; all other tasks are
        postponed.
        """
        time, end = self._time, self._time.now_s + seconds
        for task in self.tasks:
            if not task.outlives and task.at_s > time.now_s:
                task.at_s += seconds
        while (at_s := min((task.at_s for task in self.tasks if task.outlives), default=end)) < end:
            time.suspend(at_s - time.now_s)
            self.run_due_task(gone=True)
        time.suspend(end - time.now_s)

    def run_due_task(self, *, gone: bool = False) -> bool:
        """Run one task that is due, and return False if none is. gone: whether only requests that have left their process may be run."""
        ready = next((task for task in self.tasks if _earliest_s(task) <= self._time.now_s and (task.outlives or not gone)), None)
        if ready is None:
            return False
        self.tasks.remove(ready)
        if ready.outlives or not ready.process.dead:
            ready.run()
            self._after()
        return True

    def _next_actor(self) -> Actor | None:
        """Return the thread to run next: the thread that ran last if it can, unless another process is preferred. Return None if no thread
        can run.
        """
        if self._blocked:
            self._recheck_blocked_threads()
        moving = [process for process in self.alive if process.frozen_until_s <= self._time.now_s]
        order = sorted(moving, key=lambda process: process is not self.preferred)
        actors = [actor for process in order for actor in process.actors if not actor.done and actor not in self._blocked]
        if self._running in actors and self.preferred is None:
            actors.remove(self._running)
            actors.insert(0, self._running)
        return next(
            (actor for actor in actors if actor.ready() or (actor.until is not None and actor.until <= self._time.monotonic_s)), None
        )

    def _resume_actor(self, actor: Actor) -> None:
        self._running = actor
        if actor.run_until_parked(BLOCKED_S if self._place.locks_rows else None) or self._wait_unless_blocked(actor):
            self._after()
        else:
            self._blocked.add(actor)

    def _wait_unless_blocked(self, actor: Actor) -> bool:
        """Wait until this running thread pauses or ends. Return False if its statement waits for a lock, so that another thread must run
        first.
        """
        while not actor.wait_until_parked(BLOCKED_S):
            if self._waits_for_lock(actor):
                return False
        return True

    def _waits_for_lock(self, actor: Actor) -> bool:
        process = next(one for one in self.alive if actor in one.actors)
        return any(self._place.waits_for_lock(connection) for connection in process.connections)

    def _recheck_blocked_threads(self) -> None:
        for actor in sorted(self._blocked, key=lambda one: one.name):
            if actor.dead:
                self._blocked.discard(actor)
            elif not self._waits_for_lock(actor) and self._wait_unless_blocked(actor):
                self._blocked.discard(actor)
                self._running = actor
                self._after()


def _earliest_s(task: Task) -> float:
    """Return when the task can be run, in seconds since the run began.

    While its process stands still, the task waits, unless the task is a request that has left the process.
    """
    return task.at_s if task.outlives else max(task.at_s, task.process.frozen_until_s)
