"""Remembers the records for which this worker has an in-flight call. Kept in memory only, since the table may have been changed by hand.

No transaction takes such a record, whatever `groundstate_attempt` says: its row may have been deleted while the call goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from groundstate.rules.specs import ReactionSpec

# (table name, record). A reaction with a done column neither excludes others nor is excluded by them, so it has a name of its own here.
RecordKey = tuple[str, str]


@dataclass
class CallsInAir:
    """The in-flight calls of one worker, by record, for its transactions' thread. Counted, since a lookup may run beside the thread of its
    call.
    """

    _flying: Counter[RecordKey] = field(default_factory=Counter)
    _landing: Counter[RecordKey] = field(default_factory=Counter)  # those of them that the open transaction has concluded
    _kept_out: frozenset[RecordKey] = frozenset()

    def __bool__(self) -> bool:
        return bool(self._flying or self._kept_out)

    def holds(self, spec: ReactionSpec, record: str) -> bool:
        """Whether this reaction must leave the record alone, since a call for it is in flight, or it is excluded by `keep_out`."""
        key = _key(spec, record)
        return self._flying[key] > self._landing[key] or key in self._kept_out

    def sent(self, spec: ReactionSpec, record: str) -> None:
        """Count a call or a lookup that is sent for this record."""
        self._flying[_key(spec, record)] += 1

    def landed(self, spec: ReactionSpec, record: str) -> None:
        """Remove a call or a lookup whose result is committed."""
        key = _key(spec, record)
        self._flying[key] -= 1
        if self._flying[key] <= 0:
            del self._flying[key]

    def keep_out(self, records: Iterable[RecordKey]) -> None:
        """Exclude exactly these records, by table and record, from being taken, since it is unknown what was done with them."""
        self._kept_out = frozenset(records)

    def clear(self) -> None:
        """Forget all in-flight calls, since no result is waited for any more."""
        self._flying.clear()

    @contextmanager
    def landing(self) -> Iterator[None]:
        """Wrap a transaction in which `lands` notes the calls that it concludes."""
        try:
            yield
        finally:
            self._landing.clear()

    def lands(self, concluded: Iterable[tuple[ReactionSpec, str]]) -> None:
        """Note that the open transaction has concluded these calls, so that it may take their records again."""
        self._landing.update(_key(spec, record) for spec, record in concluded)


def _key(spec: ReactionSpec, record: str) -> RecordKey:
    return (spec.table_name if spec.done_column is None else f"done column {spec.name}", record)
