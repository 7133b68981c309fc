"""A transport that carries hints (messages that say where to look) only within one process.

It is for tests, for several apps in one program, and for apps that need no hints from other processes.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from groundstate.transport.port import Finding, HintCallback

_rooms: dict[tuple[str, str], list[HintCallback]] = {}
_lock = threading.Lock()


class MemoryTransport:
    """A `port.Transport` within one process. Instances with equal `room` and subject receive each other's hints."""

    name = "memory"

    def __init__(self, room: str = "") -> None:
        self._room = room
        self._heard: tuple[str, HintCallback] | None = None
        self._pid = os.getpid()

    def open(self, subject: str, hear: HintCallback, *, trusted: bool = False) -> None:  # noqa: ARG002  # `trusted` is unused, since there is no server
        """Subscribe to a subject at once, and end an earlier subscription of this instance."""
        self.close()
        self._heard, self._pid = (subject, hear), os.getpid()
        with _lock:
            _rooms.setdefault((self._room, subject), []).append(hear)

    def send(self, hint: bytes) -> None:
        """Call every subscriber of the subject with the hint, in this thread, and ignore exceptions that subscribers raise."""
        if self._heard is None or self._pid != os.getpid():
            return
        with _lock:
            all_of_them = list(_rooms.get((self._room, self._heard[0]), ()))
        for hear in all_of_them:
            with suppress(Exception):  # the error of one subscriber must not reach the sender or the other subscribers
                hear(hint)

    @property
    def is_usable(self) -> bool:
        """Return whether this process has opened the transport, and not closed it. False in a forked child."""
        return self._heard is not None and self._pid == os.getpid()

    def findings(self) -> list[Finding]:
        """Return an empty list (no reasons against the transport), since hints are only held in memory and end with the process."""
        return []

    def close(self) -> None:
        """End the subscription, if there is one. In a forked child, only make `is_usable` False."""
        heard, self._heard = self._heard, None
        if heard is None or self._pid != os.getpid():  # a forked child must not use the lock, which the parent may have held at the fork
            return
        with _lock:
            some = _rooms.get((self._room, heard[0]), [])
            if heard[1] in some:
                some.remove(heard[1])
            if not some:
                _rooms.pop((self._room, heard[0]), None)
