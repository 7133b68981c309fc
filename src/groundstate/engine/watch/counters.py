"""Counters in memory of what one worker did since it was started: calls, records, sweeps, incarnations. No decision depends on them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from groundstate.engine.rows.in_flight import (
    CallResult,
    FoundAbsent,
    FoundUnknown,
    InFlightCall,
    NothingHappened,
    NotSent,
    Returned,
    Unclear,
)

CallOf = tuple[str, str, str]  # external service, reaction, "call" or "lookup"
EndOf = tuple[str, str, str, str]  # the fields of CallOf, then how the call ended
ENDINGS = ("outcome", "not_done", "busy", "in_doubt", "absent", "unknown", "not_sent")


@dataclass
class Tally:
    """The counters of one worker. Only the worker's own thread writes them; other threads may read values one loop iteration old."""

    begun: Counter[CallOf] = field(default_factory=Counter)
    ended: Counter[EndOf] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)  # records that handlers of DB-only reactions carried out, by reaction
    failed: Counter[str] = field(default_factory=Counter)
    expired: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    workers: int = 1
    sweeps: int = 0  # sweeps that have ended
    sweeps_s: float = 0.0  # seconds that all sweeps took together
    sweep_s: float = 0.0  # seconds that the last sweep took
    swept_at: float = field(default_factory=time.monotonic)  # monotonic time at which the last sweep ended
    _sweep_began: float | None = None

    def sent(self, in_flights: Sequence[InFlightCall]) -> None:
        """Count calls and lookups that go out."""
        for in_flight in in_flights:
            self.begun[call_of(in_flight)] += 1

    def heard(self, word: CallResult) -> None:
        """Count the end of a call. A call that was given up ended at that moment, whatever its thread returns later."""
        in_flight = word.in_flight
        if not in_flight.counted:
            in_flight.counted = True
            self.ended[(*call_of(in_flight), ending_of(word))] += 1

    def sweep_begins(self, now: float) -> None:
        """Record that a sweep begins; a sweep that is already running goes on."""
        if self._sweep_began is None:
            self._sweep_began = now

    def sweep_ends(self, now: float) -> None:
        """Record that the running sweep has ended, since no backlog pass is running any more."""
        if self._sweep_began is not None:
            self.sweep_s = now - self._sweep_began
            self.sweeps_s += self.sweep_s
            self.sweeps += 1
            self.swept_at = now
            self._sweep_began = None


def call_of(in_flight: InFlightCall) -> CallOf:
    """Return the key under which a call is counted."""
    spec = in_flight.query.spec
    return spec.call.service.name if spec.call else "", spec.name, "lookup" if in_flight.is_lookup else "call"


def ending_of(word: CallResult) -> str:
    """Return how a call or a lookup ended, as one word for metrics and traces."""
    match word:
        case Returned():
            return "outcome"
        case NothingHappened(counts=False):
            return "busy"
        case NothingHappened():
            return "not_done"
        case FoundAbsent():
            return "absent"
        case FoundUnknown():
            return "unknown"
        case NotSent():
            return "not_sent"
        case Unclear():
            return "in_doubt"
        case _:
            return "thread_ended"
