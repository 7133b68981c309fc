"""A call or a find on its way to the outside, and the word that comes back. Values alone: `calling` makes them fly."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from groundstate.engine.attempts import Identity
from groundstate.engine.leaps import boot_s
from groundstate.engine.question import Question
from groundstate.engine.snapshot import Given
from groundstate.rules.leap import NOTICED
from groundstate.rules.policy import MARGIN
from groundstate.rules.reaction import ReactionSpec
from groundstate.values import keys
from groundstate.values.answers import Key, Moment, Occurrence


def clocks() -> tuple[float, float]:
    """Seconds by two clocks: one that goes on while the host is suspended, and the wall clock (hazard 5)."""
    return boot_s(), time.time()


def since(before: tuple[float, float]) -> float:
    """Seconds since then, by whichever clock went further."""
    boot, wall = clocks()
    return max(boot - before[0], wall - before[1])


@dataclass(eq=False)
class Flight:
    """One call (or, with `asked_at`, one find) for one attempt."""

    question: Question
    identity: Identity
    call: int  # the fence
    argument: Any
    key: Key
    moment: Moment
    occurrence: Occurrence
    begun: tuple[float, float]  # `clocks()` before its begin was sent to the database
    asked_at: datetime | None = None  # a find: the database's clock, read before asking
    life: int = 0  # whose begin it was
    failures: int = 0  # how often this attempt failed before
    together: int = 0  # careful mode: among at most how many it may be in the air; 0 outside it
    ends_s: float | None = None  # the monotonic time at which it is given up; None before it went out
    given_up: bool = False  # it went on past that, in its thread, or in its task in spite of its cancellation
    answered: bool = False  # what it said is in hand, though perhaps not yet in the database
    counted: bool = False  # its end was counted
    cut_off: bool = False  # ended by ourselves: that says nothing of its endpoint
    part: str | None = None  # of the outside, by `per`
    line: str | None = None  # `in_order`: of whose value there is one at a time
    given: Given | None = None  # the snapshot, as it was before it went out; None before that, and where `sends` made something else

    @property
    def is_find(self) -> bool:
        return self.asked_at is not None

    @property
    def subject(self) -> tuple[ReactionSpec, str]:
        """Whose call it is, and for which record."""
        return self.question.spec, self.identity[2]

    @property
    def timeout(self) -> timedelta:
        call = self.question.spec.call
        return call.timeout if call else timedelta()

    def asked_by(self, now: datetime) -> datetime:
        """When a find was asked, by a clock of the database that shows this now: it may have been set back since."""
        asked_at, at_latest = self.asked_at or now, now - timedelta(seconds=boot_s() - self.begun[0])
        return at_latest if asked_at - at_latest > NOTICED else asked_at

    def may_go_out(self) -> bool:
        """Whether its deadline leaves room for its whole timeout."""
        return self.is_find or since(self.begun) <= MARGIN.total_seconds()


def part_of(question: Question, record: Any) -> str | None:
    """The part of the outside that this record talks to; None for none, and where the record is gone."""
    per = question.spec.per
    value = None if per is None or record is None else getattr(record, per.key)
    return None if value is None else f"={keys.text(value)}"


@dataclass(eq=False)
class Word:
    """What became of a flight, on its way back to the transactions' thread."""

    flight: Flight


@dataclass(eq=False)
class Returned(Word):
    """It returned; for a find: what it found. `value` is the outcome."""

    value: Any


@dataclass(eq=False)
class NothingHappened(Word):
    """NotDone, Busy or a listed type: surely not done."""

    error: str
    counts: bool = True
    retry_after: timedelta | None = None


@dataclass(eq=False)
class Unclear(Word):
    """It timed out or raised what says nothing. `running`: its thread or task goes on."""

    error: str
    running: bool = False


@dataclass(eq=False)
class NotSent(Word):
    """It did not go out: a stop, a lost lock, a deadline past."""


@dataclass(eq=False)
class ThreadEnded(Word):
    """A call that was given up has ended without an outcome."""


@dataclass(eq=False)
class FoundAbsent(Word):
    """A find answered Absent."""


@dataclass(eq=False)
class FoundUnknown(Word):
    """A find answered Unknown, or raised."""

    error: str | None = None
