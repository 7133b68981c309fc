"""Groups the records that one `call_many` is called for, and assigns the outcomes in its answer to them. An ambiguous answer is used for no
record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from groundstate.engine.rows.in_flight import InFlightCall
from groundstate.engine.sql.safe_text import shown
from groundstate.rules.specs import CallSpec

NOTHING = object()  # stands in for an outcome where the answer leaves a record out
_ASKED = "return one outcome for each record, in the records' order, NotDone(...) where surely nothing was done; or a dict by record"
_LONGEST = 60  # characters: the longest excerpt of a key in an error message


def groups_for_many(in_flights: Iterable[InFlightCall]) -> Iterator[tuple[CallSpec, list[InFlightCall]]]:
    """Yield the groups of in-flight calls that go out together, each with its declared call; calls for single records are left out.

    One record may make the whole call fail, and with it all others of its group. So a record that failed goes out in a group of a quarter
    of the size each time, and by itself in the end.
    """
    alike: dict[tuple[CallSpec, int], list[InFlightCall]] = {}
    for in_flight in in_flights:
        call = call_for_many(in_flight)
        if call is not None:
            alike.setdefault((call, max((call.many or 1) >> (2 * in_flight.failures), 1)), []).append(in_flight)
    for (call, size), some in alike.items():
        for first in range(0, len(some), size):
            yield call, some[first : first + size]


def call_for_many(in_flight: InFlightCall) -> CallSpec | None:
    """Return the declared call if it is a `call_many` and this is no lookup; otherwise None."""
    call = in_flight.query.spec.call
    return call if call is not None and call.many and not in_flight.is_lookup else None


class Ambiguous(Exception):
    """Raised where an answer does not show which outcome is for which record. Its text says why, and what to return."""


def by_record(answers: Any, records: Sequence[Any]) -> list[Any]:
    """Return the outcome of each record, in their order; NOTHING for one that a mapping leaves out. Raises Ambiguous, or what the mapping
    raises.
    """
    if isinstance(answers, Mapping):
        found = [answers.get(record, NOTHING) for record in records]
        if answers and all(one is NOTHING for one in found):
            key = shown(next(iter(answers)))
            raise Ambiguous(f"the answer of call_many is a mapping by other keys than its records, such as {key[:_LONGEST]}: {_ASKED}")
        return found
    if isinstance(answers, str | bytes | bytearray | memoryview) or not isinstance(answers, Sequence):
        raise Ambiguous(f"the answer of call_many is no list of outcomes but of type {type(answers).__name__}: {_ASKED}")
    if len(answers) != len(records):
        raise Ambiguous(
            f"the answer of call_many has the length {len(answers)}, and it was called for {len(records)}"
            f" record{'' if len(records) == 1 else 's'}, so that nobody knows whose outcome is whose: {_ASKED}"
        )
    return list(answers)
