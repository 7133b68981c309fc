"""The Transport protocol: what the engine requires of an object that carries hints between processes. Other modules here implement it.

A hint is a message of a few hundred bytes that says where a worker should look for rows. Correctness never depends on hints: a hint that
arrives only makes a worker look earlier, and a lost hint only costs time, since the sweep (a regular query) finds the rows later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

HintCallback = Callable[[bytes], None]
HINT_MOST = 7_000  # maximum size of a hint in bytes, since PostgreSQL limits the payload of NOTIFY to 8,000 bytes


@dataclass(frozen=True)
class Finding:
    """A Finding is one reason against a transport: its server stores messages, or nobody can tell whether the server stores messages.

    Attributes:
        surely: True if the server certainly stores messages; False if it may.
        found: What was seen, with the names of the settings, streams or queues.
        cure: The commands that remove the reason.
    """

    surely: bool
    found: str
    cure: str


class Transport(Protocol):
    """A Transport carries hints to every process that is subscribed when they are sent. It may lose, repeat or reorder hints.

    It works in its own threads and, while it is open, reconnects by itself, with backoff and jitter. It must not use a server that stores
    hints, so for each new connection it checks the server before it subscribes. If nobody can tell whether the server stores hints, the
    Transport subscribes only if the caller of `open` trusts the server.
    """

    name: str  # kind of the transport: "memory", "postgresql", "nats", "redis" or "amqp"

    def open(self, subject: str, hear: HintCallback, *, trusted: bool = False) -> None:
        """Begin to connect, and wait a few seconds at most for the subscription.

        If the server cannot be reached, nothing is raised: `is_usable` becomes True later, or never.

        Args:
            subject: The name of the channel: letters, digits, `_`, `-` and `.`. Processes with one subject receive each other's hints.
            hear: The function to call with each hint, also with hints of this process, on a thread of the transport. It must return at once
                and must not raise.
            trusted: Whether to use a server although nobody can tell whether it stores messages. A server that certainly stores messages is
                refused all the same.

        Raises:
            TransportRefusedError: The server stores messages, or may store messages and is not trusted. The message names the cure.
        """

    def send(self, hint: bytes) -> None:
        """Pass a hint to the sending thread, and return at once; never raise. The hint is lost if the transport is slow or not usable."""

    @property
    def is_usable(self) -> bool:
        """Return whether hints can be sent and received now, as far as this process knows."""
        ...

    def findings(self) -> list[Finding]:
        """Check on a separate connection whether the server stores messages, and return one Finding for each reason against the server.

        The list is empty if the server stores no messages. The transport need not be open.

        Raises:
            TransportDownError: The server cannot be reached.
        """
        ...

    def close(self) -> None:
        """End the threads and connections, also those that wait for the server.

        A second call does nothing. A call in a forked child does nothing either.
        """
