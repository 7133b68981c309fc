"""Threads of which one runs at a time: each resumes only when the director resumes it, and parks where it must wait.

The thread of a dead actor stays parked, so that nothing of it runs any more: no `finally`, no commit, no clean-up. After the run an
exception ends the thread, when its effects count no more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Buried(BaseException):
    """Raised in the thread of a dead actor to end the thread after the run."""


_here = threading.local()


def current() -> Actor | None:
    """Return the actor whose thread is the current one, or None."""
    return getattr(_here, "actor", None)


class Actor:
    """One thread that runs only on command. The director calls `go_on`, `arrived` and `bury`; the thread itself calls `park`."""

    def __init__(self, name: str, run: Callable[[], object]) -> None:
        self.name = name
        self.done = False
        self.dead = False
        self.ready: Callable[[], bool] = _at_once  # whether the condition is true for which it waits
        self.until: float | None = None  # it may also resume when the monotonic clock shows this (seconds)
        self._run = run
        # Plain locks are far quicker signals than semaphores. Each is released only by the side that lets the other resume.
        self._go, self._parked = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._parked.acquire()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread, which waits for the first `go_on`."""
        self._thread.start()

    def go_on(self, patience_s: float | None = None) -> bool:
        """Let the thread run until it parks or ends. Return False where it still runs after `patience_s` seconds; then ask `arrived`."""
        self.ready, self.until = _at_once, None
        self._go.release()
        return self._parked.acquire(timeout=-1 if patience_s is None else patience_s)

    def arrived(self, patience_s: float) -> bool:
        """Wait up to `patience_s` seconds, and return whether a thread that was left running has parked or ended."""
        return self._parked.acquire(timeout=patience_s)

    def park(self, ready: Callable[[], bool] | None = None, until: float | None = None) -> None:
        """Pause the calling thread and give control back to the director; return when it may resume."""
        self.ready, self.until = ready or _at_once, until
        self._parked.release()
        self._go.acquire()
        if self.dead:
            raise Buried

    def bury(self) -> None:
        """End the thread of a dead actor; nothing that it does while it ends has an effect."""
        self.dead = True
        while self._thread.ident is not None and not self.done:
            self.go_on()
        if self.done:
            self._thread.join()

    def _main(self) -> None:
        _here.actor = self
        self._go.acquire()
        try:
            if not self.dead:
                self._run()
        except Buried:
            pass
        finally:
            self.done = True
            self._parked.release()


def _at_once() -> bool:
    return True


@contextmanager
def quiet_dead() -> Iterator[None]:
    """Drop what dead actors log while their threads are ended."""

    def living(_record: logging.LogRecord) -> bool:
        me = current()
        return me is None or not me.dead

    loggers = [logging.getLogger(name) for name in ("groundstate", "groundstate.store")]
    for logger in loggers:
        logger.addFilter(living)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(living)
