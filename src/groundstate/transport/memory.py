"""Hints inside one process: for tests, for several apps in one program, and where no other process is to be told."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from groundstate.transport.port import Finding, Hear

_rooms: dict[tuple[str, str], list[Hear]] = {}
_lock = threading.Lock()


class MemoryTransport:
    """By the promises of `port.Transport`; all of one name in this process hear each other."""

    name = "memory"

    def __init__(self, room: str = "") -> None:
        self._room = room
        self._heard: tuple[str, Hear] | None = None
        self._pid = os.getpid()

    def open(self, subject: str, hear: Hear, *, trusted: bool = False) -> None:  # noqa: ARG002  # there is nothing to be trusted
        """Subscribes at once."""
        self.close()
        self._heard, self._pid = (subject, hear), os.getpid()
        with _lock:
            _rooms.setdefault((self._room, subject), []).append(hear)

    def send(self, hint: bytes) -> None:
        """Calls everybody who is subscribed."""
        if self._heard is None or self._pid != os.getpid():
            return
        with _lock:
            all_of_them = list(_rooms.get((self._room, self._heard[0]), ()))
        for hear in all_of_them:
            with suppress(Exception):  # whoever sent it must not hear of it
                hear(hint)

    @property
    def up(self) -> bool:
        """While it is open."""
        return self._heard is not None and self._pid == os.getpid()

    def findings(self) -> list[Finding]:
        """None: it dies with the process."""
        return []

    def close(self) -> None:
        """Hears nothing more."""
        heard, self._heard = self._heard, None
        if heard is None or self._pid != os.getpid():  # the lock that a child inherits may be held for ever
            return
        with _lock:
            some = _rooms.get((self._room, heard[0]), [])
            if heard[1] in some:
                some.remove(heard[1])
            if not some:
                _rooms.pop((self._room, heard[0]), None)
