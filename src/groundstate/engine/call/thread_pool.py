"""A pool of daemon threads that are reused while they are idle, and a function that reads the stack of a thread."""

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
    """Runs functions, such as sync calls, in daemon threads. Unlike with concurrent.futures, a function that hangs does not keep the
    process from ending.
    """

    def __init__(self, name: str = "groundstate-sync-call") -> None:
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = 0
        self._busy = 0
        self._lock = threading.Lock()
        self._none_busy = threading.Condition(self._lock)

    @property
    def number_busy(self) -> int:
        """Return how many threads are running a function."""
        return self._busy

    def wait_until_none_works(self) -> None:
        """Wait until no thread is running a function."""
        with self._none_busy:
            self._none_busy.wait_for(lambda: self._busy == 0)

    def run(self, work: Callable[[], None]) -> None:
        """Run this function in a thread of the pool, and do not wait for it. Raises RuntimeError if the operating system starts no more
        threads.
        """
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            else:
                threading.Thread(target=log_store.keep_log_label(self._run_work_until_idle), name=self._name, daemon=True).start()
            self._busy += 1
        self._work.put(work)

    def _run_work_until_idle(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=10)
            except queue.Empty:
                with self._lock:
                    if self._idle == 0:
                        continue  # `run` has assigned work to this thread, and the work is about to arrive
                    self._idle -= 1
                return
            ended = False
            try:
                work()
                ended = True
            finally:  # also reached if the work raised an exception; in that case this thread ends
                del work  # an idle thread must not keep the objects of its last work alive
                with self._none_busy:
                    self._busy -= 1
                    self._idle += ended
                    self._none_busy.notify_all()
