"""Notifies systemd about services of `Type=notify`: datagrams of a few lines to the socket that it named. Silent if it named none.

The watchdog is answered only while each worker's own thread and the event loop of its calls go on. systemd kills a process that hangs, and
the next worker settles what it left.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress

from groundstate.cli.health import Health

STATUS_S = 5.0  # seconds between two checks whether the status has changed
SEND_S = 1.0  # seconds that a datagram may take, since a service manager may not read


class Notifier:
    """Tells the service manager how the process does, from a thread of its own."""

    def __init__(self, health: Health, environment: Mapping[str, str] = os.environ) -> None:
        self._health = health
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._watchdog_s = _watchdog_s(environment)
        self._said = ""
        self._ended = threading.Event()

    def stuck_s(self, given_s: float) -> float:
        """Return after how many seconds a worker counts as stuck: the given time, or less if the watchdog would end the process before."""
        return given_s if self._watchdog_s is None else min(given_s, self._watchdog_s / 2)

    def ready(self) -> None:
        """Report that the app is up, and answer the watchdog from now on."""
        if self._address is None:
            return
        self._said = self._status()
        self._send("READY=1", f"STATUS={self._said}")
        threading.Thread(target=self._go_on, name="groundstate-systemd", daemon=True).start()

    def stopping(self) -> None:
        """Report that the process is stopping, after a signal came."""
        self._send("STOPPING=1", f"STATUS={self._status()}")

    def end(self) -> None:
        """Stop notifying."""
        self._ended.set()

    def _go_on(self) -> None:
        every = STATUS_S if self._watchdog_s is None else min(self._watchdog_s / 4, STATUS_S)
        while not self._ended.wait(every):
            lines = []
            if self._watchdog_s is not None and not self._health.stuck(self._watchdog_s / 2):
                lines.append("WATCHDOG=1")
            status = self._status()
            if status != self._said:
                self._said = status
                lines.append(f"STATUS={status}")
            if lines:
                self._send(*lines)

    def _status(self) -> str:
        words = self._health.in_words(STATUS_S if self._watchdog_s is None else self._watchdog_s / 2)
        return words.replace("\n", " ")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.settimeout(SEND_S)
            line.sendto("\n".join(lines).encode(), self._address)


def _address(named: str) -> str | None:
    """Return the address of the socket: a path, or a name in Linux's abstract namespace, which is written with an @."""
    if named.startswith("@"):
        return f"\0{named[1:]}"
    return named if named.startswith("/") else None


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """Return after how many seconds without an answer systemd kills this process. Returns None if it does not."""
    with suppress(ValueError):
        if int(environment.get("WATCHDOG_PID", os.getpid())) == os.getpid():
            return int(environment.get("WATCHDOG_USEC", "")) / 1e6 or None
    return None
