"""Notifies systemd, for services of `Type=notify`, by datagrams to the socket in $NOTIFY_SOCKET. Does nothing if $NOTIFY_SOCKET is not set.

The watchdog is notified only while each worker's thread, and the event loop of its calls, run. So systemd kills a process that hangs, and
the next worker settles the calls that the killed process left in doubt.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress

from groundstate.cli.health import Health

STATUS_S = 5.0  # seconds between two checks whether the status has changed
SEND_S = 1.0  # seconds that sending a datagram may take, since the service manager may not be reading


class Notifier:
    """Notifies the service manager of the health of the process, from a thread of its own."""

    def __init__(self, health: Health, environment: Mapping[str, str] = os.environ) -> None:
        self._health = health
        self._address = _socket_address(environment.get("NOTIFY_SOCKET", ""))
        self._watchdog_s = _watchdog_timeout_s(environment)
        self._said = ""
        self._ended = threading.Event()

    def stuck_limit_s(self, given_s: float) -> float:
        """Return the number of seconds after which a worker counts as stuck: `given_s`, or half the watchdog's timeout if that is less."""
        return given_s if self._watchdog_s is None else min(given_s, self._watchdog_s / 2)

    def notify_ready(self) -> None:
        """Report that the app is up, and notify the watchdog from now on."""
        if self._address is None:
            return
        self._said = self._status_line()
        self._send_to_manager("READY=1", f"STATUS={self._said}")
        threading.Thread(target=self._notify_repeatedly, name="groundstate-systemd", daemon=True).start()

    def notify_stopping(self) -> None:
        """Report that the process is stopping."""
        self._send_to_manager("STOPPING=1", f"STATUS={self._status_line()}")

    def end(self) -> None:
        """Stop notifying."""
        self._ended.set()

    def _notify_repeatedly(self) -> None:
        every = STATUS_S if self._watchdog_s is None else min(self._watchdog_s / 4, STATUS_S)
        while not self._ended.wait(every):
            lines = []
            if self._watchdog_s is not None and not self._health.find_stuck_workers(self._watchdog_s / 2):
                lines.append("WATCHDOG=1")
            status = self._status_line()
            if status != self._said:
                self._said = status
                lines.append(f"STATUS={status}")
            if lines:
                self._send_to_manager(*lines)

    def _status_line(self) -> str:
        words = self._health.describe(STATUS_S if self._watchdog_s is None else self._watchdog_s / 2)
        return words.replace("\n", " ")

    def _send_to_manager(self, *lines: str) -> None:
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.settimeout(SEND_S)
            line.sendto("\n".join(lines).encode(), self._address)


def _socket_address(named: str) -> str | None:
    """Return the socket's address from the text in $NOTIFY_SOCKET: a path, or @NAME for a name in Linux's abstract namespace."""
    if named.startswith("@"):
        return f"\0{named[1:]}"
    return named if named.startswith("/") else None


def _watchdog_timeout_s(environment: Mapping[str, str]) -> float | None:
    """Return the number of seconds without a notification after which systemd kills this process. Returns None if no watchdog is set."""
    with suppress(ValueError):
        if int(environment.get("WATCHDOG_PID", os.getpid())) == os.getpid():
            return int(environment.get("WATCHDOG_USEC", "")) / 1e6 or None
    return None
