"""Remembers in memory for which records a call of this worker is in flight.

No transaction of this worker takes such a record, whatever `groundstate_attempt` says: a person may have deleted the attempt's row while
the call still runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from groundstate.rules.specs import ReactionSpec

# (table name, text of the record's key). A reaction with a done column runs beside other reactions, so its own name replaces the table's.
RecordKey = tuple[str, str]


@dataclass
class InFlightCalls:
    """The calls of one worker that are in flight, counted for each record. Only the thread that runs the worker's transactions may use it.

    A record may have two calls: a lookup may run while the thread of the call itself still runs.
    """

    _flying: Counter[RecordKey] = field(default_factory=Counter)
    _landing: Counter[RecordKey] = field(default_factory=Counter)  # calls per record that the open transaction has concluded
    _kept_out: frozenset[RecordKey] = frozenset()

    def __bool__(self) -> bool:
        return bool(self._flying or self._kept_out)

    def must_leave_alone(self, spec: ReactionSpec, record: str) -> bool:
        """Return whether this reaction must not take the record, since a call for it is in flight, or since `set_excluded_records` has
        excluded it.
        """
        key = _record_key(spec, record)
        return self._flying[key] > self._landing[key] or key in self._kept_out

    def add_call(self, spec: ReactionSpec, record: str) -> None:
        """Count a call or a lookup that is about to be sent for this record."""
        self._flying[_record_key(spec, record)] += 1

    def remove_call(self, spec: ReactionSpec, record: str) -> None:
        """Reduce the count of this record's calls and lookups by one. Call it once the result of the call or lookup is committed."""
        key = _record_key(spec, record)
        self._flying[key] -= 1
        if self._flying[key] <= 0:
            del self._flying[key]

    def set_excluded_records(self, records: Iterable[RecordKey]) -> None:
        """Set which records are excluded, so that this worker must not take them. They replace the records that were excluded before.

        Exclude a record if it is unknown what was done with it.
        """
        self._kept_out = frozenset(records)

    def clear(self) -> None:
        """Forget all in-flight calls. Call it when their results are no longer awaited."""
        self._flying.clear()

    @contextmanager
    def concluding_transaction(self) -> Iterator[None]:
        """Wrap a transaction that may conclude calls. At the end of the block, forget what `note_concluded` has noted in it."""
        try:
            yield
        finally:
            self._landing.clear()

    def note_concluded(self, concluded: Iterable[tuple[ReactionSpec, str]]) -> None:
        """Note that the open transaction has concluded these calls, so that it may take their records again at once."""
        self._landing.update(_record_key(spec, record) for spec, record in concluded)


def _record_key(spec: ReactionSpec, record: str) -> RecordKey:
    return (spec.table_name if spec.done_column is None else f"done column {spec.name}", record)
