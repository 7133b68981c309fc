"""The interface through which a run reports its events to the judge. `invariants.InvariantJudge` implements it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from groundstate.engine.rows.in_flight import InFlightCall
from groundstate.testing.simulate.fake_provider import Effect
from groundstate.testing.simulate.sim_process import Process


class Judge(Protocol):
    """The judge: it is told the events of a run, and checks the invariants."""

    def on_commit(self, *, ours_alone: bool) -> None:
        """Called after a commit. ours_alone: whether the transaction wrote only to groundstate's own tables."""

    def on_calls_leave(self, in_flights: Sequence[InFlightCall]) -> None:
        """Called when the worker has handed over these calls, so that their requests may arrive at the service from now on."""

    def on_effect(self, effect: Effect[Any]) -> None:
        """Called when an external service has carried out a request; the effect is what it did."""

    def on_outcome_delivered(self, process: Process, effect: Effect[Any]) -> None:
        """Called when the process has received the outcome of this effect (what a service did for its call)."""

    def state_for_next_checks(self) -> object:
        """Return what the judge remembers that later checks depend on. The states of the database and of the services are not part of
        it.
        """

    def snapshot(self) -> Any:
        """Return what the judge knows of the database's content. When the database is restored from a copy, `restore_snapshot` gets what
        was returned at the time of the copy.
        """

    def restore_snapshot(self, known: Any) -> None:
        """Called when the database was restored from a copy. known: what `snapshot` returned when the copy was made."""
