"""The fake provider of a call, with a ledger of what it did (its effects). As the schedule says, it refuses requests, loses them, or
answers late.

It uses no database. All it knows of the engine is which attempt a call belongs to.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from groundstate.rules.specs import CallSpec

A = TypeVar("A")
Identity = tuple[str, str, str, str]  # (app, reaction, record, occurrence): which attempt a call belongs to


class Mood(enum.Enum):
    """What happens to a call. The value is the mood's name in a schedule. `Schedule.lookups_lag` says when a lookup sees the effect."""

    DONE = "done"
    REFUSED = "refused"  # the call raises NotDone: surely nothing was done
    BUSY = "busy"  # the call raises Throttled: surely nothing was done
    LOST = "lost"  # the request never arrives, and the caller gets an error that leaves the call in doubt
    ANSWER_LOST = "answer-lost"  # the request is carried out, and the caller gets an error that leaves the call in doubt
    LATE = "late"  # the caller times out, and the request is carried out as late as `settle_after` allows
    LATE_ANSWER = "late-answer"  # the request is carried out; a sync call's thread brings the outcome after the timeout
    STUCK = "stuck"  # a sync call's thread hangs, and sends the request long after the deadline; for an async call this is LATE_ANSWER


@dataclass(eq=False)
class Effect(Generic[A]):
    """One effect at the fake provider: what it did for a call."""

    number: int
    identity: Identity
    key: str
    argument: A
    answer: Any
    done_s: float
    visible_s: float  # seconds after the run began from which on a lookup sees the effect
    taken: int = 0  # how many committed transactions wrote the outcome of the effect to the record
    taken_in: int = 0  # how often the record's condition had become true when the outcome was written last


@dataclass(eq=False)
class Ledger(Generic[A]):
    """The ledger of one fake provider in the current or the last run, for the assertions of a test."""

    entries: list[Effect[A]] = field(default_factory=list)
    requests: int = 0  # number of calls that were sent
    asked: int = 0  # number of lookups that were made

    @property
    def effects(self) -> list[A]:
        """Return the call's argument for each effect (for each time that the provider acted), in order."""
        return [one.argument for one in self.entries]

    @property
    def keys(self) -> list[str]:
        """Return the idempotency key of each effect (of each time that the provider acted), in order."""
        return [one.key for one in self.entries]


class Client:
    """Gives access to the fake provider. The function `through`, an argument of `lab.fake`, receives it and makes the client for the
    user's own call and lookup.
    """

    def __init__(self, request: Callable[[str, Any], Any], seen: Callable[[], list[Effect[Any]]]) -> None:
        self._request = request
        self._seen = seen

    def request(self, key: str, argument: Any) -> Any:
        """Carry out a request at the fake provider under this key, and return its answer.

        Raises:
            NotDone, Throttled: surely nothing was done.
            ConnectionError, TimeoutError: the request may have been carried out.
        """
        return self._request(key, argument)

    @property
    def seen(self) -> list[Effect[Any]]:
        """Return the effects (what the provider did) that a lookup can see now, oldest first. Each has `key`, `argument` and `answer`."""
        return self._seen()


@dataclass(eq=False)
class Fake:
    """Stands in for one call and its lookup. through: makes the client for the user's own call and lookup; None if these are not run."""

    name: str
    spec: CallSpec
    answer: Any
    through: Callable[[Client], Any] | None = None
    ledger: Ledger[Any] = field(default_factory=Ledger)

    def reset(self) -> None:
        self.ledger.entries.clear()
        self.ledger.requests = self.ledger.asked = 0

    @property
    def has_deduplication(self) -> bool:
        """Return whether the provider acts only once for an idempotency key, as the policy `same_key` requires."""
        return self.spec.in_doubt.kind == "same_key"

    def carry_out(self, identity: Identity, key: str, argument: Any, now_s: float, visible_s: float) -> Effect[Any]:
        """Carry out a request and return its effect. If the provider remembers the key, return the earlier effect under the key instead.

        A key is remembered for exactly `kept_for`. now_s: the time now, in seconds since the run began. visible_s: the time from which on
        a lookup sees the effect, in the same seconds.
        """
        if self.has_deduplication:
            kept_for = self.spec.in_doubt.kept_for
            for known in self.ledger.entries:
                if known.key == key and (kept_for is None or now_s < known.done_s + kept_for.total_seconds()):
                    return known
        answer = self.answer(argument) if callable(self.answer) else self.answer
        made = Effect(len(self.ledger.entries) + 1, identity, key, argument, answer, now_s, visible_s)
        self.ledger.entries.append(made)
        return made

    def look_up(self, key: str, now_s: float) -> Effect[Any] | None:
        """Answer a lookup made `now_s` seconds after the run began: return the first effect under the key that is visible then; None
        if there is none.
        """
        self.ledger.asked += 1
        return next((one for one in self.ledger.entries if one.key == key and one.visible_s <= now_s), None)
