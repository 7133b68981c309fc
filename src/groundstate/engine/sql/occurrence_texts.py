"""The texts of the occurrences of one reaction's records. An attempt stores such a text, so that it counts only for that occurrence of the
record, and not for a later one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from groundstate.rules import occurrences
from groundstate.rules.specs import ReactionSpec
from groundstate.values import keys


class OccurrenceTexts:
    """Makes and reads the occurrence texts of one reaction's records. It sends no query."""

    def __init__(self, spec: ReactionSpec) -> None:
        self._spec = spec
        self._getters = [column.key for column in spec.occurrence]

    def occurrence_text(self, record: Any) -> str:
        """Return the text of the record's present occurrence (the values that change when the record becomes a new event). Empty for a
        reaction without `occurrence=`.
        """
        if not self._getters:
            return ""
        return self.occurrence_text_of_values([getattr(record, name) for name in self._getters])

    def occurrence_text_of_values(self, values: Sequence[Any]) -> str:
        """Return the text of the occurrence that these values make."""
        return occurrences.occurrence_text(self._spec, values)

    def means_occurrence(self, written: str, occurrence: str) -> bool:
        """Return whether `written`, the occurrence text stored in an attempt, means the occurrence with the text `occurrence`."""
        return keys.belongs_to_occurrence(written, occurrence, len(self._spec.occurrence))

    def due_time_in_occurrence(self, occurrence: str) -> datetime | None:
        """Return the due time that is part of this occurrence text; None if no due time is part of it.

        The record itself is not read, since its due time may have changed in the meantime (rules.md 6).
        """
        due = self._spec.due
        if due is None or due.attribute is None or self._getters != [due.attribute.key]:
            return None
        try:
            return due.due_at(keys.parse_value(occurrence, datetime if "T" in occurrence else date))
        except (ValueError, OverflowError):  # a person has edited the text
            return None
