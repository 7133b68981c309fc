"""The fake provider of a call: a ledger of effects by idempotency key, which refuses, loses, delays and answers late as its schedule says.

It touches no database, and knows nothing of the engine except which attempt a call belongs to.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from groundstate.rules.specs import CallSpec

A = TypeVar("A")
Identity = tuple[str, str, str, str]  # app, reaction, record, occurrence


class Mood(enum.Enum):
    """What happens to a call; the value is its name in a schedule. The schedule decides separately when a lookup sees the effect."""

    DONE = "done"
    REFUSED = "refused"  # raises NotDone: it surely did not happen
    BUSY = "busy"  # raises Throttled: it surely did not happen
    LOST = "lost"  # the request never arrives, and the caller gets an error that leaves it in doubt
    ANSWER_LOST = "answer-lost"  # it is done, and the caller gets an error that leaves it in doubt
    LATE = "late"  # the caller gives up; the request is carried out as late as `settle_after` allows
    LATE_ANSWER = "late-answer"  # it is done; the thread of a sync call brings the outcome after its timeout, an async call never
    STUCK = "stuck"  # the thread of a sync call hangs, and sends its request long after the deadline; an async call is as LATE_ANSWER


@dataclass(eq=False)
class Effect(Generic[A]):
    """One effect of a call at the fake provider."""

    number: int
    identity: Identity
    key: str
    argument: A
    answer: Any
    done_s: float
    visible_s: float  # seconds of the run from which on a lookup sees it
    taken: int = 0  # how often a committed transaction wrote its outcome to the record
    taken_in: int = 0  # how often the record had entered its condition when the outcome was written


@dataclass(eq=False)
class Ledger(Generic[A]):
    """What one fake provider did in the current or the last run, for the assertions of a test."""

    entries: list[Effect[A]] = field(default_factory=list)
    requests: int = 0  # calls that were sent
    asked: int = 0  # lookups that were made

    @property
    def effects(self) -> list[A]:
        """Return the arguments of all effects, in order."""
        return [one.argument for one in self.entries]

    @property
    def keys(self) -> list[str]:
        """Return the idempotency keys of all effects, in order."""
        return [one.key for one in self.entries]


class Client:
    """Access to the fake provider, from which `lab.fake(..., through=...)` makes the client for the user's own call and lookup."""

    def __init__(self, request: Callable[[str, Any], Any], seen: Callable[[], list[Effect[Any]]]) -> None:
        self._request = request
        self._seen = seen

    def request(self, key: str, argument: Any) -> Any:
        """Carry out a request at the fake provider under this key, and return its answer.

        Raises:
            NotDone, Throttled: surely nothing happened.
            ConnectionError, TimeoutError: it may have happened.
        """
        return self._request(key, argument)

    @property
    def seen(self) -> list[Effect[Any]]:
        """Return the effects that a lookup can see now, in order: each with `key`, `argument` and `answer`."""
        return self._seen()


@dataclass(eq=False)
class Fake:
    """Stands in for one call and its lookup. through: makes the client for the user's own functions, which are run then."""

    name: str
    spec: CallSpec
    answer: Any
    through: Callable[[Client], Any] | None = None
    ledger: Ledger[Any] = field(default_factory=Ledger)

    def begin_anew(self) -> None:
        self.ledger.entries.clear()
        self.ledger.requests = self.ledger.asked = 0

    @property
    def keeps_keys(self) -> bool:
        """Return whether the provider answers a known key with what it did before, as one under `same_key` does."""
        return self.spec.in_doubt.kind == "same_key"

    def do(self, identity: Identity, key: str, argument: Any, now_s: float, visible_s: float) -> Effect[Any]:
        """Carry out a request that has arrived. A key is kept for as long as `kept_for` promises, and then forgotten at once."""
        if self.keeps_keys:
            kept_for = self.spec.in_doubt.kept_for
            for known in self.ledger.entries:
                if known.key == key and (kept_for is None or now_s < known.done_s + kept_for.total_seconds()):
                    return known
        answer = self.answer(argument) if callable(self.answer) else self.answer
        made = Effect(len(self.ledger.entries) + 1, identity, key, argument, answer, now_s, visible_s)
        self.ledger.entries.append(made)
        return made

    def find(self, key: str, now_s: float) -> Effect[Any] | None:
        """Answer a lookup: return the first visible effect under the key, or None."""
        self.ledger.asked += 1
        return next((one for one in self.ledger.entries if one.key == key and one.visible_s <= now_s), None)
