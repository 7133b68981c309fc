"""Hints inside one process: for tests, for several apps in one program, and for apps that need no hints from other processes."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from groundstate.transport.port import Finding, HintCallback

_rooms: dict[tuple[str, str], list[HintCallback]] = {}
_lock = threading.Lock()


class MemoryTransport:
    """A `port.Transport` inside one process. All instances with the same `room` and subject receive each other's hints."""

    name = "memory"

    def __init__(self, room: str = "") -> None:
        self._room = room
        self._heard: tuple[str, HintCallback] | None = None
        self._pid = os.getpid()

    def open(self, subject: str, hear: HintCallback, *, trusted: bool = False) -> None:  # noqa: ARG002  # there is no server to trust
        """Subscribe to a subject at once; a subscription made before ends."""
        self.close()
        self._heard, self._pid = (subject, hear), os.getpid()
        with _lock:
            _rooms.setdefault((self._room, subject), []).append(hear)

    def send(self, hint: bytes) -> None:
        """Call every subscriber of the subject with the hint, in this thread, and swallow what they raise."""
        if self._heard is None or self._pid != os.getpid():
            return
        with _lock:
            all_of_them = list(_rooms.get((self._room, self._heard[0]), ()))
        for hear in all_of_them:
            with suppress(Exception):  # an error of a subscriber must not reach the sender
                hear(hint)

    @property
    def up(self) -> bool:
        """Whether it is open, in the process that opened it."""
        return self._heard is not None and self._pid == os.getpid()

    def findings(self) -> list[Finding]:
        """Return an empty list: what is sent is held in memory, and nothing outlives the process."""
        return []

    def close(self) -> None:
        """End the subscription."""
        heard, self._heard = self._heard, None
        if heard is None or self._pid != os.getpid():  # a forked child inherits the lock, perhaps held, and nothing would release it there
            return
        with _lock:
            some = _rooms.get((self._room, heard[0]), [])
            if heard[1] in some:
                some.remove(heard[1])
            if not some:
                _rooms.pop((self._room, heard[0]), None)
