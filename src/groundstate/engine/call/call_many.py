"""Groups the records that one `call_many` receives together, and finds in its answer the outcome of each record. If the answer is
ambiguous, no record gets an outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from groundstate.engine.rows.in_flight import InFlightCall
from groundstate.engine.sql.safe_text import safe_repr
from groundstate.rules.specs import CallSpec

NOTHING = object()  # stands for the outcome of a record that the answer leaves out
_ASKED = "return one outcome for each record, in the records' order, NotDone(...) where surely nothing was done; or a dict by record"
_LONGEST = 60  # the most characters of a key that an error message shows


def group_calls_for_call_many(in_flights: Iterable[InFlightCall]) -> Iterator[tuple[CallSpec, list[InFlightCall]]]:
    """Yield pairs (declared call, the calls in flight that one `call_many` makes together). Leave out calls that are not declared as
    `call_many`.

    One record may make the call fail for its whole group. So each failure of a record divides the size of its next group by four, until the
    record is sent alone.
    """
    alike: dict[tuple[CallSpec, int], list[InFlightCall]] = {}
    for in_flight in in_flights:
        call = declared_call_many(in_flight)
        if call is not None:
            alike.setdefault((call, max((call.many or 1) >> (2 * in_flight.failures), 1)), []).append(in_flight)
    for (call, size), some in alike.items():
        for first in range(0, len(some), size):
            yield call, some[first : first + size]


def declared_call_many(in_flight: InFlightCall) -> CallSpec | None:
    """Return the declared call if it is a `call_many` and `in_flight` is no lookup; otherwise None."""
    call = in_flight.query.spec.call
    return call if call is not None and call.many and not in_flight.is_lookup else None


class AmbiguousAnswer(Exception):
    """Raised if an answer does not show which outcome belongs to which record. Its text says why, and what the user's function should
    return instead.
    """


def assign_outcomes_to_records(answers: Any, records: Sequence[Any]) -> list[Any]:
    """Return a list with the outcome of each record, in the order of `records`; NOTHING stands for a record that the mapping in `answers`
    leaves out. Raises AmbiguousAnswer, or what the mapping raises.
    """
    if isinstance(answers, Mapping):
        found = [answers.get(record, NOTHING) for record in records]
        if answers and all(one is NOTHING for one in found):
            key = safe_repr(next(iter(answers)))
            raise AmbiguousAnswer(
                f"the answer of call_many is a mapping by other keys than its records, such as {key[:_LONGEST]}: {_ASKED}"
            )
        return found
    if isinstance(answers, str | bytes | bytearray | memoryview) or not isinstance(answers, Sequence):
        raise AmbiguousAnswer(f"the answer of call_many is no list of outcomes but of type {type(answers).__name__}: {_ASKED}")
    if len(answers) != len(records):
        raise AmbiguousAnswer(
            f"the answer of call_many has the length {len(answers)}, and it was called for {len(records)}"
            f" record{'' if len(records) == 1 else 's'}, so that nobody knows whose outcome is whose: {_ASKED}"
        )
    return list(answers)
