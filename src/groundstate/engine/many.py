"""Whose outcome is whose in the answer of a `call_many`. An answer that leaves a doubt of it says nothing of any record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from groundstate.engine.guarded import shown

NOTHING = object()  # in the place of an outcome: the answer says nothing of this record
_ASKED = "return one outcome for each record, in the records' order, NotDone(...) where surely nothing was done; or a dict by record"
_LONGEST = 60  # characters of a key, in a message


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
