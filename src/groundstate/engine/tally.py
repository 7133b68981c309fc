"""What one worker did since it was started, counted in memory: calls, records, sweeps, lives. Decides nothing, and asks no database."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from groundstate.engine.flight import Flight, FoundAbsent, FoundUnknown, NothingHappened, NotSent, Returned, Unclear, Word

CallOf = tuple[str, str, str]  # outside, reaction, "call" or "find"
EndOf = tuple[str, str, str, str]  # the same, and how it ended
ENDINGS = ("outcome", "not_done", "busy", "in_doubt", "absent", "unknown", "not_sent")


@dataclass
class Tally:
    """Written by the transactions' thread alone. Who reads it from another one sees a state that may be a turn old."""

    begun: Counter[CallOf] = field(default_factory=Counter)
    ended: Counter[EndOf] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)  # records of reactions without a call, and of what is too late
    failed: Counter[str] = field(default_factory=Counter)
    expired: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    lives: int = 1
    sweeps: int = 0  # that came to their end
    sweeps_s: float = 0.0  # what they took together, from the first look to the last
    sweep_s: float = 0.0  # what the last one took
    swept_at: float = field(default_factory=time.monotonic)  # when it ended
    _sweep_began: float | None = None

    def sent(self, flights: Sequence[Flight]) -> None:
        """These go out."""
        for flight in flights:
            self.begun[call_of(flight)] += 1

    def heard(self, word: Word) -> None:
        """A word came back. A call that was given up has ended then, whatever its thread says later."""
        flight = word.flight
        if not flight.counted:
            flight.counted = True
            self.ended[(*call_of(flight), ending_of(word))] += 1

    def sweep_begins(self, now: float) -> None:
        """Everything is asked from now on; a sweep that is on goes on."""
        if self._sweep_began is None:
            self._sweep_began = now

    def sweep_ends(self, now: float) -> None:
        """No pass is on any more."""
        if self._sweep_began is not None:
            self.sweep_s = now - self._sweep_began
            self.sweeps_s += self.sweep_s
            self.sweeps += 1
            self.swept_at = now
            self._sweep_began = None


def call_of(flight: Flight) -> CallOf:
    """What it is counted under."""
    spec = flight.question.spec
    return spec.call.outside.name if spec.call else "", spec.name, "find" if flight.is_find else "call"


def ending_of(word: Word) -> str:
    """How a call or a find ended, in a word for metrics and traces."""
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
