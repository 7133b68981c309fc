"""Counts, in memory, the calls, records and sweeps of one worker since it was started. No decision depends on these counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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

CallOf = tuple[str, str, str]  # name of the external service, name of the reaction, and "call" or "lookup"
EndOf = tuple[str, str, str, str]  # the fields of CallOf, then one of ENDINGS
ENDINGS = ("outcome", "not_done", "busy", "in_doubt", "absent", "unknown", "not_sent")


@dataclass
class Tally:
    """The counters of one worker. Only the worker's own thread writes them; other threads may read slightly old values."""

    begun: Counter[CallOf] = field(default_factory=Counter)
    ended: Counter[EndOf] = field(default_factory=Counter)
    # By name of a reaction without a call: number of records that the handler carried out.
    done: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)  # by reaction name: number of records whose handler failed
    expired: Counter[str] = field(default_factory=Counter)  # by reaction name: number of expired records carried out
    batches: int = 0  # batches of handlers that have ended
    workers: int = 1  # number of incarnations of this worker: 1, and one more for each time that it lost its lock for good
    sweeps: int = 0  # sweeps that have ended
    sweeps_s: float = 0.0  # seconds that all ended sweeps took together
    sweep_s: float = 0.0  # seconds that the last sweep took
    swept_at: float = 0.0  # monotonic time at which the last sweep ended; before the first sweep, the time at which the worker was created
    _sweep_began: float | None = None  # monotonic time at which the running sweep began; None if none is running

    def count_begun(self, in_flights: Sequence[InFlightCall]) -> None:
        """Count calls and lookups that begin now."""
        for in_flight in in_flights:
            self.begun[counter_key_of(in_flight)] += 1

    def count_ended(self, result: CallResult) -> None:
        """Count the end of a call, unless it was counted before. A call that the worker gives up is counted at that moment. The result that
        the call's thread may still return later is not counted.
        """
        in_flight = result.in_flight
        if not in_flight.counted:
            in_flight.counted = True
            self.ended[(*counter_key_of(in_flight), name_of_ending(result))] += 1

    def count_incarnation(self) -> None:
        """Count that this worker has begun as a new incarnation."""
        self.workers += 1

    def count_batch(self, name: str, done: int, failed: int, *, expired: bool) -> None:
        """Count a batch of handlers that has ended.

        name: the reaction. done, failed: records whose handler succeeded or failed. expired: whether these records had expired.
        """
        self.batches += 1
        if not expired:
            self.done[name] += done
        self.failed[name] += failed

    def count_expired(self, numbers: Mapping[str, int]) -> None:
        """Count expired records that were carried out, by reaction name."""
        self.expired.update(numbers)

    def record_sweep_start(self, now: float) -> None:
        """Record that a sweep begins at the monotonic time `now`; if one is already running, change nothing."""
        if self._sweep_began is None:
            self._sweep_began = now

    def record_sweep_end(self, now: float) -> None:
        """Record that the running sweep, if there is one, ended at the monotonic time `now`."""
        if self._sweep_began is not None:
            self.sweep_s = now - self._sweep_began
            self.sweeps_s += self.sweep_s
            self.sweeps += 1
            self.swept_at = now
            self._sweep_began = None


def counter_key_of(in_flight: InFlightCall) -> CallOf:
    """Return the key under which a call is counted: (external service, reaction, "call" or "lookup")."""
    spec = in_flight.query.spec
    return spec.call.service.name if spec.call else "", spec.name, "lookup" if in_flight.is_lookup else "call"


def name_of_ending(result: CallResult) -> str:
    """Return how a call or a lookup ended, as one word for metrics and traces: one of ENDINGS, or "thread_ended"."""
    match result:
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
