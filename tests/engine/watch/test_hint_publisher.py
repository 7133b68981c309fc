"""What a process takes for a hint, of all that comes over its transport."""

from __future__ import annotations

from typing import Any

from groundstate.engine.watch.hint_publisher import HintPublisher
from groundstate.rules.hint_codec import Hint
from groundstate.transport.memory import MemoryTransport
from groundstate.transport.port import HINT_MOST

HINT = b'{"v":1,"r":["packed"],"n":1,"d":1}'


class Ear:
    def __init__(self) -> None:
        self.heard: list[Hint] = []

    def receive_remote_hint(self, hint: Hint) -> None:
        self.heard.append(hint)

    def resign_if_stuck(self) -> None:
        """Not asked here."""


def test_what_is_longer_than_any_hint_or_no_bytes_is_none_and_is_not_read() -> None:
    messenger, ear = HintPublisher("shop", MemoryTransport(), []), Ear()
    messenger.add_receiver(ear)
    strange: list[Any] = [HINT + b" " * HINT_MOST, b"[" * 1_000_000, HINT.decode(), None, 5]
    for words in strange:
        messenger._receive_payload(words)
    assert ear.heard == []
    messenger._receive_payload(HINT.ljust(HINT_MOST))
    assert [one.reactions for one in ear.heard] == [("packed",)]
