"""The outside, as the lab plays it: a ledger of what was done, kept by key, that refuses, loses, delays and answers late as it is told.

Touches no database, and knows nothing of the engine but whose call it was.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from groundstate.rules.reaction import CallSpec

A = TypeVar("A")
Identity = tuple[str, str, str, str]  # app, reaction, record, occurrence


class Mood(enum.Enum):
    """What happens to a call. The value is its name in a schedule; a find is told by the lab when it may see."""

    DONE = "done"
    REFUSED = "refused"  # NotDone: surely nothing happened
    BUSY = "busy"
    LOST = "lost"  # it never arrives, and the caller is told what says nothing
    ANSWER_LOST = "answer-lost"  # done, and the caller is told what says nothing
    LATE = "late"  # the caller gave up; it is done as late as `settle_after` allows
    LATE_ANSWER = "late-answer"  # done; a sync call whose thread went on past its timeout brings the outcome late, an async one never
    STUCK = (
        "stuck"  # a sync call's thread hangs before its request goes out, and sends it long after the deadline; an async one is LATE_ANSWER
    )


@dataclass(eq=False)
class Effect(Generic[A]):
    """Something that was done."""

    number: int
    identity: Identity
    key: str
    argument: A
    answer: Any
    done_s: float
    visible_s: float  # from when on a find sees it
    taken: int = 0  # how often its outcome was written to the record, in a transaction that committed
    taken_in: int = 0  # which time the record had then entered its condition


@dataclass(eq=False)
class Ledger(Generic[A]):
    """What one fake has done in the run under way, or in the last one: for the assertions of a test."""

    entries: list[Effect[A]] = field(default_factory=list)
    requests: int = 0  # calls that were sent
    asked: int = 0  # finds

    @property
    def effects(self) -> list[A]:
        """The arguments of all that was done, in order."""
        return [one.argument for one in self.entries]

    @property
    def keys(self) -> list[str]:
        """Their keys."""
        return [one.key for one in self.entries]


class Client:
    """A line to the fake outside, of which `lab.fake(..., through=...)` makes the client that the user's own call and find are given."""

    def __init__(self, request: Callable[[str, Any], Any], seen: Callable[[], list[Effect[Any]]]) -> None:
        self._request = request
        self._seen = seen

    def request(self, key: str, argument: Any) -> Any:
        """Acts on the outside under this key, and returns its answer.

        Raises:
            NotDone, Busy: surely nothing happened.
            ConnectionError, TimeoutError: it may have happened.
        """
        return self._request(key, argument)

    @property
    def seen(self) -> list[Effect[Any]]:
        """What was done, as far as a find can see it now, in order: each with `key`, `argument` and `answer`."""
        return self._seen()


@dataclass(eq=False)
class Fake:
    """Stands in for one call and its find. through: makes the client for the user's own functions, which are run then."""

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
        """A provider under `same_key` answers a key that it knows with what it did then."""
        return self.spec.in_doubt.kind == "same_key"

    def do(self, identity: Identity, key: str, argument: Any, now_s: float, visible_s: float) -> Effect[Any]:
        """The request has arrived. A key is kept for as long as was promised, and then forgotten at once."""
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
        """What a find answers: the first effect under the key that it can see yet."""
        self.ledger.asked += 1
        return next((one for one in self.ledger.entries if one.key == key and one.visible_s <= now_s), None)
