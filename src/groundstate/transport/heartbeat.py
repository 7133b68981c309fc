"""Heartbeats of a transport: probe messages that a process sends to its own subscription, to notice a server that hangs.

A server that hangs closes no connection. Any message that arrives proves that the server works, even a probe of another process. So if
many processes subscribe, each of them needs to send only few probes.
"""

from __future__ import annotations

from groundstate.clock import Dice

PROBE = b"groundstate probe "  # first bytes of a probe; it is no valid hint, so versions of groundstate without probes ignore it
SILENT_S = 5.0  # seconds without any message, received or sent, after which a probe is sent
OWN_S = 60.0  # longest time between two probes, in seconds: messages of others do not prove that this process can send
UNHEARD_S = 10.0  # seconds that a server may take to return a probe or to accept a message
LOSSES = 3  # UNHEARD_S is multiplied by this while messages of others arrive, since a server under load may drop a probe


def is_probe(message: bytes) -> bool:
    """Return whether a received message is a probe, sent by this process or by another."""
    return message.startswith(PROBE)


class Heartbeat:
    """A Heartbeat decides when to send a probe, and when the server counts as hanging, for one publishing and one subscribed connection.

    Each of the two connections has its own thread. dice: random numbers that spread the probes of many processes over time.
    """

    def __init__(self, dice: Dice) -> None:
        self.has_probe_returned = False  # whether any probe of this process has come back
        # when the present call of `publish` began, in seconds by `Clock.monotonic`; None if no call of it is running
        self.sending_since: float | None = None
        self._own = PROBE + dice.randbytes(6).hex().encode()
        self._dice = dice
        self._share = 1.0
        self._said_at = self._heard_at = float("-inf")
        self._unheard_since: float | None = None

    def probes_due(self, now: float) -> list[bytes]:
        """Return a list with the probe to send now, or an empty list if none is due. now: the time in seconds, by `Clock.monotonic`."""
        silent_s = now - max(self._heard_at, self._said_at)
        longest_s = OWN_S if self._unheard_since is None else SILENT_S
        if silent_s < SILENT_S * self._share and now - self._said_at < longest_s * self._share:
            return []
        self._draw_jitter()
        if self._unheard_since is None:
            self._unheard_since = now
        self._said_at = now
        return [self._own]

    def record_message(self, message: bytes, now: float) -> None:
        """Record that the subscribed connection received this message. now: the time in seconds, by `Clock.monotonic`."""
        self._draw_jitter()
        self._heard_at = now
        if message == self._own:
            self._unheard_since = None
            self.has_probe_returned = True

    def raise_if_server_silent(self, listened_at: float) -> None:
        """Raise ConnectionError if the server has not returned a probe in time, or has not accepted a message in time.

        listened_at: when the subscribed connection last began to wait for messages, in seconds by `Clock.monotonic`.
        """
        saying, unheard = self.sending_since, self._unheard_since
        if saying is not None and listened_at - saying > UNHEARD_S:
            raise ConnectionError(f"the server has not accepted a message for {listened_at - saying:.0f} s")
        if unheard is not None and listened_at - unheard > UNHEARD_S * (LOSSES if self._heard_at > unheard else 1):
            raise ConnectionError(f"the server has not returned a probe for {listened_at - unheard:.0f} s")

    def _draw_jitter(self) -> None:
        self._share = 0.8 + 0.4 * self._dice.random()
