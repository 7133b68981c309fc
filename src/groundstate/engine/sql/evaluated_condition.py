"""The condition of one reaction as SQL, for one order of evaluation: whether it holds, whether its due time has come, and whether a record
may be taken.

A database evaluates clauses in any order. So if one clause fails for one row, the whole query fails. After such a failure the clauses are
evaluated in turn: one after another, and not at all for the rows for which they are known to fail (raising rows).
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, case, not_, true

from groundstate.engine.sql.clause_parts import compares_only_columns, split_conjunctions_reversed
from groundstate.engine.sql.due_expression import Timing


class EvaluatedCondition:
    """The SQL conditions of one reaction in one order of evaluation. They never change: another order gets another object.

    `holds` is true if all clauses hold. `holds_and_is_due` adds that the due time has come. `is_ready` adds that it is not too late, and
    that the record meets the narrowing conditions; it is checked for records that are to be taken. For a record whose call has begun, only
    `holds` and the occurrence are checked. The due time is not compared with the clock again, since a host's clock may step back while the
    call is in flight.

    clauses: The reaction's clauses and the user's ORM filters. narrowing: Conditions that records must also meet to be taken.
    is_raising_row: The SQL condition that the record is a raising row, if clauses are to be evaluated in turn; None lets the database
        choose the order.
    """

    def __init__(
        self,
        clauses: Sequence[ColumnElement[bool]],
        timing: Timing | None,
        narrowing: Sequence[ColumnElement[bool]] = (),
        is_raising_row: ColumnElement[bool] | None = None,
    ) -> None:
        self._is_raising_row = is_raising_row
        self.in_turn = is_raising_row is not None
        self.was_narrowed = bool(narrowing)
        due, valid = ((), ()) if timing is None else ((timing.is_due,), (timing.is_due_and_valid,))
        # The conditions for rows given by key. The caller chose these rows, so raising rows are not excluded.
        self.holds_for_given_row = self._conjunction(*clauses)
        self._is_due_for_given_row = self._conjunction(*clauses, *due)
        self._is_ready_for_given_row = self._conjunction(*clauses, *valid, *narrowing)
        self.holds = self._false_for_raising_rows(self.holds_for_given_row)
        self.holds_and_is_due = self._false_for_raising_rows(self._is_due_for_given_row)
        self.is_ready = self._false_for_raising_rows(self._is_ready_for_given_row)

    def _false_for_raising_rows(self, which: ColumnElement[bool]) -> ColumnElement[bool]:
        """Return the condition in a form that is false for each raising row. For these rows, the condition itself is not evaluated."""
        return which if self._is_raising_row is None else case((self._is_raising_row, not_(true())), else_=which)

    def _conjunction(self, *parts: ColumnElement[bool]) -> ColumnElement[bool]:
        """Return the SQL condition that all parts hold.

        If clauses are evaluated in turn, parts that cannot raise an error are evaluated first, and after a false part the rest is not
        evaluated.
        """
        if not self.in_turn:
            return and_(true(), *parts)
        found: ColumnElement[bool] = true()
        # The last part in this loop makes the outermost of the nested CASEs, which the database evaluates first.
        for part in sorted(split_conjunctions_reversed(parts), key=compares_only_columns):
            found = self.short_circuit_and(part, found)
        return found

    def short_circuit_and(self, first: ColumnElement[bool], second: ColumnElement[bool]) -> ColumnElement[bool]:
        """Return the SQL condition that `first` and `second` hold.

        If clauses are evaluated in turn, `second` is never evaluated for a row for which `first` is false.
        """
        return case((first, second), else_=not_(true())) if self.in_turn else and_(first, second)

    def clauses_checked_after_ready(self, *clauses: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
        """Return these clauses in a form that a WHERE may combine with `is_ready`.

        If clauses are evaluated in turn, the database evaluates the returned clauses only for rows that are ready.
        """
        return tuple(self.short_circuit_and(self.is_ready, one) for one in clauses) if self.in_turn else clauses

    def clauses_for_holding(self, these: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
        """Return the clauses of a WHERE that selects rows for which `these` is true and the condition holds."""
        return self._clauses_for_rows(these, self.holds_for_given_row)

    def clauses_for_due(self, these: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
        """Return the clauses of a WHERE that selects rows for which `these` is true, the condition holds, and the due time has come."""
        return self._clauses_for_rows(these, self._is_due_for_given_row)

    def clauses_for_ready(self, these: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
        """Return the clauses of a WHERE that selects rows that are ready and for which `these` is true."""
        return self._clauses_for_rows(these, self._is_ready_for_given_row)

    def _clauses_for_rows(self, these: ColumnElement[bool], which: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
        """Return the clauses of a WHERE that selects rows for which both `these` and the condition `which` hold.

        If clauses are evaluated in turn, `which` is evaluated only for the rows for which `these` holds. Otherwise the database chooses the
        order, and may evaluate `which` for all rows.
        """
        return (self.short_circuit_and(these, which), these) if self.in_turn else (which, these)
