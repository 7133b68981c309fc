"""Heartbeats of a transport: probe messages that a process sends to its own subscription, to notice a server that hangs.

A server that hangs closes no connection. A process that receives any message knows that the server works, so that each needs to send few
probes if many processes are subscribed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

PROBE = b"groundstate probe "  # cannot be decoded as a hint, so that also versions of groundstate without probes ignore it
SILENT_S = 5.0  # seconds without any message, received or sent, after which a probe is sent
OWN_S = 60.0  # seconds after which a probe is sent in any case: messages of others don't prove that our own sending side works
UNHEARD_S = 10.0  # seconds that a server may take to return a probe or to accept a message
LOSSES = 3  # multiple of UNHEARD_S that is allowed while messages of others arrive: under load a server may drop our probe


def is_probe(said: bytes) -> bool:
    """Whether a received message is a probe, of this process or of any other."""
    return said.startswith(PROBE)


class Heartbeat:
    """Decides when to send a probe, and when the server counts as hanging, for one sending and one listening connection.

    Each of the two connections has its own thread. `dice` returns a number in [0, 1), which spreads the probes of many processes over time.
    """

    def __init__(self, dice: Callable[[], float]) -> None:
        self.beats = False  # whether a probe has come back
        self.saying_since: float | None = None  # set while the sending side waits for the server to accept a message
        self._own = PROBE + secrets.token_hex(6).encode()
        self._dice = dice
        self._share = 1.0
        self._said_at = self._heard_at = float("-inf")
        self._unheard_since: float | None = None

    def due(self, now: float) -> list[bytes]:
        """Return what the sending side must send now: a list with one probe, or an empty list. `now` is in seconds of time.monotonic()."""
        silent_s = now - max(self._heard_at, self._said_at)
        longest_s = OWN_S if self._unheard_since is None else SILENT_S
        if silent_s < SILENT_S * self._share and now - self._said_at < longest_s * self._share:
            return []
        self._throw()
        if self._unheard_since is None:
            self._unheard_since = now
        self._said_at = now
        return [self._own]

    def hear(self, said: bytes, now: float) -> None:
        """Record that the listening side received a message `said`, of this or another process, at `now` (time.monotonic())."""
        self._throw()
        self._heard_at = now
        if said == self._own:
            self._unheard_since = None
            self.beats = True

    def raise_if_server_silent(self, listened_at: float) -> None:
        """Raise if the server has been silent for too long. `listened_at` is when the listening side last began to wait.

        Raises:
            ConnectionError: A probe has not come back in time, or the server does not accept what is sent to it.
        """
        saying, unheard = self.saying_since, self._unheard_since
        if saying is not None and listened_at - saying > UNHEARD_S:
            raise ConnectionError(f"it has not taken what it was told for {listened_at - saying:.0f} s")
        if unheard is not None and listened_at - unheard > UNHEARD_S * (LOSSES if self._heard_at > unheard else 1):
            raise ConnectionError(f"nothing that it was told has come back for {listened_at - unheard:.0f} s")

    def _throw(self) -> None:
        self._share = 0.8 + 0.4 * self._dice()
