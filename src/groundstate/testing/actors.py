"""Threads of which one runs at a time: each goes on only when it is told to, and parks where it must not. Knows no databases.

A dead one stays parked, so that nothing of it runs any more: no `finally`, no commit, no clean-up. When all is over it is buried, by an
exception that ends its thread while nothing that it does counts any more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Buried(BaseException):
    """Ends the thread of an actor that died before."""


_here = threading.local()


def current() -> Actor | None:
    """The actor whose thread this is."""
    return getattr(_here, "actor", None)


class Actor:
    """One thread. `go_on` is for who directs; the rest for the thread itself."""

    def __init__(self, name: str, run: Callable[[], object]) -> None:
        self.name = name
        self.done = False
        self.dead = False
        self.ready: Callable[[], bool] = _at_once  # whether it may go on: what it waits for
        self.until: float | None = None  # or goes on when the monotonic clock shows this
        self._run = run
        # Locks as signals: what semaphores are made of, and far quicker. Each is released only by who lets the other go on.
        self._go, self._parked = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._parked.acquire()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Begins its thread, which waits for the first `go_on`."""
        self._thread.start()

    def go_on(self, patience_s: float | None = None) -> bool:
        """Lets it run until it parks or ends. False where it did neither within the patience, and runs still: see `arrived`."""
        self.ready, self.until = _at_once, None
        self._go.release()
        return self._parked.acquire(timeout=-1 if patience_s is None else patience_s)

    def arrived(self, patience_s: float) -> bool:
        """Whether one that ran on has parked or ended by now."""
        return self._parked.acquire(timeout=patience_s)

    def park(self, ready: Callable[[], bool] | None = None, until: float | None = None) -> None:
        """Called by the thread itself: gives the word back, and returns when it may go on."""
        self.ready, self.until = ready or _at_once, until
        self._parked.release()
        self._go.acquire()
        if self.dead:
            raise Buried

    def bury(self) -> None:
        """Ends the thread of a dead one. What it does on its way out reaches nothing."""
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
    """What a buried thread says on its way out is no news."""

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
