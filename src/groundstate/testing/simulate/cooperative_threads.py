"""Cooperative threads, of which one runs at a time. A thread runs only when the director (the thread that directs the run) resumes it, and
pauses (parks) where it must wait.

The thread of a killed process stays parked, so that none of its code runs any more: no `finally`, no commit, no clean-up. After the run,
when effects no longer count, an exception ends the thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class DeadThreadExit(BaseException):
    """Raised in the parked thread of a killed process, to end the thread after the run."""


_here = threading.local()


def current_actor() -> Actor | None:
    """Return the actor whose thread is the current one; None if that is no thread of an actor."""
    return getattr(_here, "actor", None)


class Actor:
    """One thread of a simulated process. The director calls `run_until_parked`, `wait_until_parked` and `end_dead_thread`; the thread calls
    `park`.
    """

    def __init__(self, name: str, run: Callable[[], object]) -> None:
        self.name = name
        self.done = False
        self.dead = False
        self.ready: Callable[[], bool] = _always_ready  # returns whether the parked thread can be resumed
        self.until: float | None = None  # monotonic seconds after which the thread can be resumed even if not `ready`; None if never
        self._run = run
        # Plain locks serve as signals, since they are far quicker than semaphores. A thread waits for its lock, and the other thread
        # releases it.
        self._go, self._parked = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._parked.acquire()
        self._thread = threading.Thread(target=self._run_in_thread, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread, which then waits for the first `run_until_parked`."""
        self._thread.start()

    def run_until_parked(self, patience_s: float | None = None) -> bool:
        """Let the thread run until it parks or ends. Return False if it still runs after `patience_s` seconds. With None, wait for ever."""
        self.ready, self.until = _always_ready, None
        self._go.release()
        return self._parked.acquire(timeout=-1 if patience_s is None else patience_s)

    def wait_until_parked(self, patience_s: float) -> bool:
        """Wait up to `patience_s` seconds, and return whether the thread has parked or ended.

        Call it after `run_until_parked` has returned False.
        """
        return self._parked.acquire(timeout=patience_s)

    def park(self, ready: Callable[[], bool] | None = None, until: float | None = None) -> None:
        """Pause the calling thread and let the director run; return when the director resumes the thread. ready, until: see the
        attributes.
        """
        self.ready, self.until = ready or _always_ready, until
        self._parked.release()
        self._go.acquire()
        if self.dead:
            raise DeadThreadExit

    def end_dead_thread(self) -> None:
        """Mark the actor as dead, and end its parked thread."""
        self.dead = True
        while self._thread.ident is not None and not self.done:
            self.run_until_parked()
        if self.done:
            self._thread.join()

    def _run_in_thread(self) -> None:
        _here.actor = self
        self._go.acquire()
        try:
            if not self.dead:
                self._run()
        except DeadThreadExit:
            pass
        finally:
            self.done = True
            self._parked.release()


def _always_ready() -> bool:
    return True


@contextmanager
def suppress_logs_of_dead_actors() -> Iterator[None]:
    """In the block, in which threads of dead actors are ended, drop the log records of these threads."""

    def is_not_from_dead_actor(_record: logging.LogRecord) -> bool:
        me = current_actor()
        return me is None or not me.dead

    loggers = [logging.getLogger(name) for name in ("groundstate", "groundstate.store")]
    for logger in loggers:
        logger.addFilter(is_not_from_dead_actor)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_not_from_dead_actor)
