"""What the engine asks of whatever carries hints between processes. A promise, and what is not promised; the drivers are beside it.

A hint is a few hundred bytes that say where to look. Nothing is right because one arrived, and nothing is wrong because one did not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

Hear = Callable[[bytes], None]
HINT_MOST = 7_000  # bytes: PostgreSQL's NOTIFY takes 8,000


@dataclass(frozen=True)
class Finding:
    """What speaks against a transport: it persists (`surely`), or it cannot be seen whether it does.

    found: what was seen, with the names of settings, streams, queues. cure: the commands that end it.
    """

    surely: bool
    found: str
    cure: str


class Transport(Protocol):
    """Carries hints to every process that is subscribed just now. May lose, double or reorder them; keeps nothing, on disk or for later.

    Works in threads of its own, and connects again by itself, with backoff and jitter, for as long as it is open. At each connection it
    first asks whether what it talks to persists, and subscribes only where nothing speaks against it, or what does was trusted.
    """

    name: str  # as its URL begins: "memory", "postgresql", "nats", "redis", "amqp"

    def open(self, subject: str, hear: Hear, *, trusted: bool = False) -> None:
        """Begins to connect, and waits a few seconds at most until it is subscribed.

        A transport that cannot be reached is no error: it is `up` later, or never. `hear` is called with each hint, one's own included, on
        a thread of the transport: it returns at once and does not raise. subject: letters, digits, `_`, `-` and `.`, the same for
        all who are to hear each other. trusted: what cannot be seen is taken for well; what surely persists is not.

        Raises:
            TransportRefused: it persists, or it cannot be seen and is not trusted; with what was found and the cure.
        """

    def send(self, hint: bytes) -> None:
        """Hands a hint over, and returns at once. Never raises and never waits: while it is not `up`, or is slow, hints are lost."""

    @property
    def up(self) -> bool:
        """Whether hints come and go just now, as far as is known."""
        ...

    def findings(self) -> list[Finding]:
        """Asks now, by a connection of its own, whether what it talks to persists. Empty: it forgets. Needs no `open`.

        Raises:
            TransportDown: it cannot be reached.
        """
        ...

    def close(self) -> None:
        """Ends threads and connections, also while one waits. Idempotent. In a forked child it does nothing."""
