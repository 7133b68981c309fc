"""The Transport protocol: what the engine requires of a carrier of hints between processes. The drivers are in the modules beside it.

A hint is a message of a few hundred bytes that names where a worker should look for rows. Correctness never depends on hints: one that
arrives only makes a worker look earlier, and one that is lost costs only time, since the sweep finds the rows later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

HintCallback = Callable[[bytes], None]
HINT_MOST = 7_000  # bytes of one hint at most: a payload of PostgreSQL's NOTIFY is limited to 8,000


@dataclass(frozen=True)
class Finding:
    """One reason against the use of a transport: its server stores messages, or it cannot be verified whether it does.

    Attributes:
        surely: True if the server certainly stores messages; False if that could not be verified.
        found: What was seen, with the names of the settings, streams or queues.
        cure: The commands that remove the reason.
    """

    surely: bool
    found: str
    cure: str


class Transport(Protocol):
    """Carries hints to every process that is subscribed at the moment. It may lose, repeat or reorder hints, and must not store them.

    It works in threads of its own and, while it is open, reconnects by itself, with backoff and jitter. On each connection it first checks
    whether the server stores messages, and subscribes only if there is no `Finding`, or if all findings are unverified and it is `trusted`.
    """

    name: str  # the kind of its URL: "memory", "postgresql", "nats", "redis", "amqp"

    def open(self, subject: str, hear: HintCallback, *, trusted: bool = False) -> None:
        """Begin to connect, and wait a few seconds at most for the subscription.

        A server that cannot be reached is no error: the transport becomes `up` later, or never.

        Args:
            subject: The name of the channel: letters, digits, `_`, `-` and `.`. Processes that use the same subject receive each other's
                hints.
            hear: Called with each hint, also with this process's own, on a thread of the transport. It must return at once and must not
                raise.
            trusted: Whether to accept a server of which it cannot be verified whether it stores messages. One that certainly does is still
                refused.

        Raises:
            TransportRefusedError: The server stores messages, or this cannot be verified and it is not trusted. The message has the cure.
        """

    def send(self, hint: bytes) -> None:
        """Pass a hint to the sending thread and return at once, without waiting or raising. Hints are lost while the transport is slow or
        not `up`.
        """

    @property
    def up(self) -> bool:
        """Whether hints are sent and received at the moment, as far as this process knows."""
        ...

    def findings(self) -> list[Finding]:
        """Check now, on a separate connection, whether the server stores messages, and return the findings; none means that it does not.

        The transport need not be open.

        Raises:
            TransportDownError: The server cannot be reached.
        """
        ...

    def close(self) -> None:
        """End the threads and connections, even one that waits for the server. Idempotent; does nothing in a forked child process."""
