"""Who is told what happened in a run, and judges it. A promise only; the judge is `book`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from groundstate.engine.flight import Flight
from groundstate.testing.process import Process
from groundstate.testing.provider import Effect


class Judge(Protocol):
    """Who is told what happened."""

    def committed(self, *, ours_alone: bool) -> None:
        """Somebody's transaction was committed. ours_alone: it wrote to groundstate's own tables and no others."""

    def leave(self, flights: Sequence[Flight]) -> None:
        """From now on these may reach the outside at any moment."""

    def acted(self, effect: Effect[Any]) -> None:
        """The outside was acted on."""

    def brought(self, process: Process, effect: Effect[Any]) -> None:
        """The outcome of this effect has come back to the process."""

    def left(self) -> object:
        """What it knows of the run so far, beside the database and the outside, for what is judged later."""

    def copied(self) -> Any:
        """What is known of the database's state, to be given back with it."""

    def put_back(self, known: Any) -> None:
        """The database went back."""
