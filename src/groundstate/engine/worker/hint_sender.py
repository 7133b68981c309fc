"""Sends a worker's hints to the other workers of its app."""

from __future__ import annotations

from dataclasses import replace

from groundstate.engine.watch.hint_publisher import HintPublisher
from groundstate.rules.hint_codec import Hint


class HintSender:
    """Sends hints about one database. store: name of the database in hints; empty if the app has only one."""

    def __init__(self, publisher: HintPublisher | None, store: str) -> None:
        self._publisher = publisher
        self._store = store

    @property
    def is_up(self) -> bool:
        """Return whether hints can be sent and received now."""
        return self._publisher is not None and self._publisher.is_up

    def send_hint(self, hint: Hint) -> None:
        """Send a hint to the other workers, provided that there is a hint publisher."""
        if self._publisher is not None:
            self._publisher.send_message(replace(hint, store=self._store))
