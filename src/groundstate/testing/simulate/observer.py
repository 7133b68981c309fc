"""The interface by which the stage reports what happens in a run to the judge; `invariants.Book` implements it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from groundstate.engine.rows.in_flight import InFlightCall
from groundstate.testing.simulate.fake_provider import Effect
from groundstate.testing.simulate.sim_process import Process


class Judge(Protocol):
    """The judge, which is notified of what happens in a run."""

    def committed(self, *, ours_alone: bool) -> None:
        """A transaction was committed. ours_alone: it wrote only to groundstate's own tables."""

    def leave(self, in_flights: Sequence[InFlightCall]) -> None:
        """These in-flight calls leave the worker's thread, so their requests may arrive at any moment from now on."""

    def acted(self, effect: Effect[Any]) -> None:
        """An external service has carried out a request."""

    def brought(self, process: Process, effect: Effect[Any]) -> None:
        """The outcome of this effect has come back to the process."""

    def left(self) -> object:
        """Return what the judge knows of the run beside the database and the external services, and will use later."""

    def copied(self) -> Any:
        """Return what the judge knows of the database's content, to be given to `put_back` with the copy."""

    def put_back(self, known: Any) -> None:
        """The database was restored from its copy; `known` is what `copied` returned then."""
