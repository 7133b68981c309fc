"""Daemon threads, kept for the next work while they are idle; and where a thread stands. Knows nothing of calls."""

from __future__ import annotations

import queue
import sys
import threading
import traceback
from collections.abc import Callable

from groundstate.values import lines


def stack_of(thread: int | None) -> str:
    """Where another thread stands, by its number: from its beginning on, as in a traceback."""
    frame = None if thread is None else sys._current_frames().get(thread)  # noqa: SLF001  # the one way to see where another thread is
    return "?" if frame is None else "".join(traceback.format_stack(frame)).rstrip()


class Threads:
    """Daemon threads, such as those of sync calls. Not concurrent.futures: its exit hook waits for hung threads, and ours must not."""

    def __init__(self, name: str = "groundstate-sync-call") -> None:
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = 0
        self._busy = 0
        self._lock = threading.Lock()
        self._none_busy = threading.Condition(self._lock)

    @property
    def busy(self) -> int:
        """How many have work in hand."""
        return self._busy

    def wait(self) -> None:
        """Until none has."""
        with self._none_busy:
            self._none_busy.wait_for(lambda: self._busy == 0)

    def run(self, work: Callable[[], None]) -> None:
        """In a thread. Raises RuntimeError where the system gives no more of them."""
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            else:
                threading.Thread(target=lines.as_here(self._loop), name=self._name, daemon=True).start()
            self._busy += 1
        self._work.put(work)

    def _loop(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=10)
            except queue.Empty:
                with self._lock:
                    if self._idle == 0:
                        continue  # work was promised to this thread
                    self._idle -= 1
                return
            ended = False
            try:
                work()
                ended = True
            finally:  # where it raised, this thread ends with it
                del work  # whatever it holds on to may go while this thread waits for more
                with self._none_busy:
                    self._busy -= 1
                    self._idle += ended
                    self._none_busy.notify_all()
