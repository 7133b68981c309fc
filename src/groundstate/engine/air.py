"""The records for which this worker has a call in the air. In memory alone: what the table says may have been changed by hand.

Nobody takes such a record, whatever stands in `groundstate_attempt`: its row may have been deleted while the call goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from groundstate.rules.reaction import ReactionSpec

# A record of a table; for a reaction with a fact, which neither keeps others off nor is kept off by them, of that reaction alone.
Key = tuple[str, str]


@dataclass
class Air:
    """Of one worker, for its transactions' thread. Counted, since a find may be asked while the thread of a call goes on."""

    _flying: Counter[Key] = field(default_factory=Counter)
    _landing: Counter[Key] = field(default_factory=Counter)  # of those: concluded by the transaction under way
    _kept_out: frozenset[Key] = frozenset()

    def __bool__(self) -> bool:
        return bool(self._flying or self._kept_out)

    def holds(self, spec: ReactionSpec, record: str) -> bool:
        """Whether this reaction must leave the record alone."""
        key = _key(spec, record)
        return self._flying[key] > self._landing[key] or key in self._kept_out

    def sent(self, spec: ReactionSpec, record: str) -> None:
        """A call, or a find, goes out."""
        self._flying[_key(spec, record)] += 1

    def landed(self, spec: ReactionSpec, record: str) -> None:
        """What it brought is committed."""
        key = _key(spec, record)
        self._flying[key] -= 1
        if self._flying[key] <= 0:
            del self._flying[key]

    def keep_out(self, records: Iterable[Key]) -> None:
        """These, by table and record, and no others: what was done with them is not known."""
        self._kept_out = frozenset(records)

    def clear(self) -> None:
        """Nothing is waited for any more."""
        self._flying.clear()

    @contextmanager
    def landing(self) -> Iterator[None]:
        """Around a transaction, in which `lands` says what it concludes."""
        try:
            yield
        finally:
            self._landing.clear()

    def lands(self, concluded: Iterable[tuple[ReactionSpec, str]]) -> None:
        """The transaction under way has concluded these: what it takes after that may be their records."""
        self._landing.update(_key(spec, record) for spec, record in concluded)


def _key(spec: ReactionSpec, record: str) -> Key:
    return (spec.table_name if spec.fact is None else f"fact {spec.name}", record)
