"""The cursors of the passes over the records of one reaction: in which order a pass reads the records, and where it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from sqlalchemy import ColumnElement, tuple_

from groundstate.engine.sql.due_expression import Timing
from groundstate.engine.sql.record_keys import PrimaryKey, RecordKeys

PassCursor = tuple[Any, ...]  # (key columns), or (due time as stored, key columns) if the reaction has a due time


class PassCursors:
    """Makes and reads the cursors of a reaction's passes, and compares records with them in SQL."""

    def __init__(self, keys: RecordKeys, timing: Timing | None) -> None:
        self._keys = keys
        self._timing = timing

    @cached_property
    def cursor_columns(self) -> tuple[Any, ...]:
        """Return the columns by which a pass sorts the records: the due column, if there is one, so that the oldest records come first, and
        then the key.
        """
        return self._keys.key_attributes if self._timing is None else (self._timing.base, *self._keys.key_attributes)

    @cached_property
    def due_time_for_cursor(self) -> tuple[Any, ...]:
        """Return a tuple with the column that a SELECT needs for the due time of a cursor. Empty if the reaction has no due time."""
        return () if self._timing is None else (self._timing.base_time_as_text.label("groundstate_due"),)

    def cursor_after_row(self, row: Any) -> PassCursor:
        """Return the cursor from which a pass goes on after this row of `RecordSelects.select_records_after`."""
        return tuple(row[1:]) if self._keys.may_store_other_key_forms else (*row[1:], *self._keys.key_of_record(row[0]))

    def key_in_cursor(self, cursor: Sequence[Any]) -> PrimaryKey:
        """Return the primary key that a cursor contains."""
        return tuple(cursor[len(cursor) - len(self._keys.key_attributes) :])

    def is_record_after_cursor(self, cursor: PassCursor) -> ColumnElement[bool]:
        """Return the SQL condition that the record comes after this cursor in the order of a pass."""
        if self._timing is None:
            return self._keys.has_key_after(cursor)
        return tuple_(*self.cursor_columns) > tuple_(
            self._timing.base_time_from_text(cursor[0]), *self._keys.key_values_in_sql(self.key_in_cursor(cursor))
        )
