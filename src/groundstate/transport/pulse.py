"""Whether what one says still comes back: probes, which a process says into its own ear. A server that is frozen closes nothing.

Whoever hears anything knows that the server lives, so that of many processes few have to ask, however many there are.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

PROBE = b"groundstate probe "  # no hint: also versions that know of no probes take it for nothing
SILENT_S = 5.0  # after so long without a word, from anybody, one says something
OWN_S = 60.0  # and after so long in any case: what one says oneself goes another way than what is heard
UNHEARD_S = 10.0  # so long a server may take
LOSSES = 3  # of these times, where others are heard: a flood loses hints, and nothing is lost by that


def is_probe(said: bytes) -> bool:
    """Of any process."""
    return said.startswith(PROBE)


class Pulse:
    """Of one connection that speaks and the one that listens beside it, each in its thread. dice: [0, 1), so that not all ask at once."""

    def __init__(self, dice: Callable[[], float]) -> None:
        self.beats = False  # a probe came back
        self.saying_since: float | None = None  # set while the speaking side waits until the server has what it says
        self._own = PROBE + secrets.token_hex(6).encode()
        self._dice = dice
        self._share = 1.0
        self._said_at = self._heard_at = float("-inf")
        self._unheard_since: float | None = None

    def due(self, now: float) -> list[bytes]:
        """What the speaking side is to say now: a probe, or nothing."""
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
        """What the listening side heard, of anybody."""
        self._throw()
        self._heard_at = now
        if said == self._own:
            self._unheard_since = None
            self.beats = True

    def refuse_silence(self, listened_at: float) -> None:
        """listened_at: when it was last listened for what had come.

        Raises:
            ConnectionError: no probe has come back for too long, or the server takes nothing.
        """
        saying, unheard = self.saying_since, self._unheard_since
        if saying is not None and listened_at - saying > UNHEARD_S:
            raise ConnectionError(f"it has not taken what it was told for {listened_at - saying:.0f} s")
        if unheard is not None and listened_at - unheard > UNHEARD_S * (LOSSES if self._heard_at > unheard else 1):
            raise ConnectionError(f"nothing that it was told has come back for {listened_at - unheard:.0f} s")

    def _throw(self) -> None:
        self._share = 0.8 + 0.4 * self._dice()
