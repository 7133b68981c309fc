"""Which records a `call_many` is called for together, and whose outcome is whose in its answer. An answer that leaves a doubt of it says
nothing of any record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from groundstate.engine.flight import Flight
from groundstate.engine.guarded import shown
from groundstate.rules.reaction import CallSpec

NOTHING = object()  # in the place of an outcome: the answer says nothing of this record
_ASKED = "return one outcome for each record, in the records' order, NotDone(...) where surely nothing was done; or a dict by record"
_LONGEST = 60  # characters of a key, in a message


def groups_for_many(flights: Iterable[Flight]) -> Iterator[tuple[CallSpec, list[Flight]]]:
    """Those that fly together, each with its call; flights of other calls are left out.

    One record may make the whole call fail, and takes those beside it along. So what failed flies among a quarter as many each time, and
    alone in the end.
    """
    alike: dict[tuple[CallSpec, int], list[Flight]] = {}
    for flight in flights:
        call = call_for_many(flight)
        if call is not None:
            alike.setdefault((call, max((call.many or 1) >> (2 * flight.failures), 1)), []).append(flight)
    for (call, size), some in alike.items():
        for first in range(0, len(some), size):
            yield call, some[first : first + size]


def call_for_many(flight: Flight) -> CallSpec | None:
    """The call, where it is one for many records."""
    call = flight.question.spec.call
    return call if call is not None and call.many and not flight.is_find else None


class Ambiguous(Exception):
    """The answer does not tell whose outcome is whose. Its words say why, and what to return."""


def by_record(answers: Any, records: Sequence[Any]) -> list[Any]:
    """The outcome of each record, in their order; NOTHING for one that a mapping leaves out. Raises Ambiguous, or what a mapping does."""
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
