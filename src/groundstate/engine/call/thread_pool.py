"""Keeps daemon threads that are reused while they are idle, and reads the stack of a thread. Knows nothing of calls."""

from __future__ import annotations

import queue
import sys
import threading
import traceback
from collections.abc import Callable

from groundstate.values import log_store


def stack_of(thread: int | None) -> str:
    """Return the stack of the thread with this identifier, outermost frame first, as in a traceback."""
    frame = None if thread is None else sys._current_frames().get(thread)  # noqa: SLF001  # the only way to read another thread's stack
    return "?" if frame is None else "".join(traceback.format_stack(frame)).rstrip()


class Threads:
    """Runs work in daemon threads, such as that of sync calls. concurrent.futures would wait for hung threads at exit, which must not
    happen.
    """

    def __init__(self, name: str = "groundstate-sync-call") -> None:
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = 0
        self._busy = 0
        self._lock = threading.Lock()
        self._none_busy = threading.Condition(self._lock)

    @property
    def busy(self) -> int:
        """Return how many threads are working."""
        return self._busy

    def wait(self) -> None:
        """Wait until no thread is working."""
        with self._none_busy:
            self._none_busy.wait_for(lambda: self._busy == 0)

    def run(self, work: Callable[[], None]) -> None:
        """Run `work` in a thread. Raises RuntimeError where the operating system starts no more threads."""
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            else:
                threading.Thread(target=log_store.keep_log_label(self._loop), name=self._name, daemon=True).start()
            self._busy += 1
        self._work.put(work)

    def _loop(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=10)
            except queue.Empty:
                with self._lock:
                    if self._idle == 0:
                        continue  # `run` counted on this thread: its work is about to arrive
                    self._idle -= 1
                return
            ended = False
            try:
                work()
                ended = True
            finally:  # where the work raised, this thread ends by that exception
                del work  # an idle thread must not keep alive what its last work referred to
                with self._none_busy:
                    self._busy -= 1
                    self._idle += ended
                    self._none_busy.notify_all()
