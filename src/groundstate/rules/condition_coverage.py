"""Decides whether one condition implies another, by comparing the constants, bounds and ORs in their clauses.

The answer is True only where it is certain. A clause without constants, bounds or ORs is implied only by an identical clause. The
functions are pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, TypeDecorator
from sqlalchemy.orm import Mapper
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList, ExpressionClauseList, Grouping, Null

from groundstate.rules import column_demands
from groundstate.rules import sql_inspect as look


def condition_is_implied(wide: Sequence[ColumnElement[bool]], narrow: Sequence[ColumnElement[bool]], mapper: Mapper[Any]) -> bool:
    """Return whether every row that meets all `narrow` clauses certainly meets all `wide` clauses."""
    return all(_is_implied(one, narrow, mapper) for one in wide)


def _is_implied(wide: Any, narrow: Sequence[Any], mapper: Mapper[Any]) -> bool:
    """Return whether the clause `wide` certainly holds for every row for which all `narrow` clauses hold."""
    alike = any(look.is_same_clause(form, one) for form in _equivalent_forms(wide) for one in narrow)
    if alike or _is_implied_by_demands(wide, narrow, mapper) or _is_implied_by_bounds(wide, narrow) or _is_implied_not_null(wide, narrow):
        return True
    if any(condition_is_implied(look.flatten_ands([one]), narrow, mapper) for one in _or_operands(wide)):
        return True
    each_or = [found for found in map(_or_operands, narrow) if found]
    return any(all(_is_implied(wide, look.flatten_ands([one]), mapper) for one in found) for found in each_or)


def _or_operands(clause: Any) -> Sequence[Any]:
    """Return the operands of an OR. For `x IN (1, 2)` return the clauses `x = 1` and `x = 2`; for any other clause, an empty sequence."""
    inner = clause.element if isinstance(clause, Grouping) else clause
    if isinstance(inner, BooleanClauseList) and inner.operator is operators.or_:
        return inner.clauses
    if isinstance(inner, BinaryExpression) and inner.operator is operators.in_op:
        values = list(look.bound_values(inner.right))
        return [inner.left == value for value in values] if len(values) > 1 else ()
    return ()


def _equivalent_forms(clause: Any) -> Iterator[Any]:
    """Yield the clause itself and then, if it is a comparison, the equivalent comparison with its sides swapped."""
    yield clause
    if isinstance(clause, BinaryExpression) and clause.operator in _MIRRORED:
        yield BinaryExpression(clause.right, clause.left, _MIRRORED[clause.operator], type_=clause.type)


_MIRRORED: dict[Any, Any] = {
    operators.lt: operators.gt, operators.gt: operators.lt, operators.le: operators.ge, operators.ge: operators.le,
    operators.eq: operators.eq, operators.ne: operators.ne,
}  # fmt: skip


def _is_implied_not_null(wide: Any, narrow: Sequence[Any]) -> bool:
    """Return whether `wide` is `x IS NOT NULL`, and a `narrow` clause compares x. A comparison with NULL never holds, so x is not NULL."""
    if not (isinstance(wide, BinaryExpression) and wide.operator is operators.is_not and isinstance(wide.right, Null)):
        return False
    compared = (operators.in_op, operators.between_op, *_MIRRORED)
    asked = [one for one in narrow if isinstance(one, BinaryExpression) and one.operator in compared]
    return any(look.is_same_clause(wide.left, side) for one in asked for side in (one.left, one.right))


# ---- constants ---------------------------------------------------------------------------------------------------------------------
def _is_implied_by_demands(wide: Any, narrow: Sequence[Any], mapper: Mapper[Any]) -> bool:
    wanted = column_demands.demand_of_clause(wide, mapper)
    return wanted is not None and any(one.implies(wanted) for one in column_demands.demands_of_clauses(narrow, mapper)[0])


# ---- bounds ------------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Bound:
    """A _Bound says that the expression `left` is at least `value` if `is_least`, and otherwise at most `value`. If `is_open`, the
    expression does not equal `value`.
    """

    left: Any
    is_least: bool
    value: Any
    is_open: bool

    def implies(self, other: _Bound) -> bool:
        if self.is_least is not other.is_least or not look.is_same_clause(self.left, other.left):
            return False
        try:
            beyond = self.value > other.value if self.is_least else self.value < other.value
        except TypeError:  # Python cannot compare an aware datetime with a naive one
            return False
        return bool(beyond or (self.value == other.value and (self.is_open or not other.is_open)))


def _is_implied_by_bounds(wide: Any, narrow: Sequence[Any]) -> bool:
    wanted = list(_bounds_in_clause(wide)) if _is_comparison(wide) else []
    told = [bound for one in narrow for bound in _bounds_in_clause(one)]
    return bool(wanted) and all(any(one.implies(bound) for one in told) for bound in wanted)


def _is_comparison(clause: Any) -> bool:
    """Return whether the clause is a comparison other than `==` and IN.

    The bounds of an IN allow more values than the IN itself: the bounds of `x IN (1, 3)` also allow 2.
    """
    return isinstance(clause, BinaryExpression) and clause.operator not in (operators.eq, operators.in_op)


def _bounds_in_clause(clause: Any) -> Iterator[_Bound]:
    if not isinstance(clause, BinaryExpression) or isinstance(
        clause.left.type, TypeDecorator
    ):  # a TypeDecorator may convert values so that the stored values have another order
        return
    left, right = clause.left, clause.right
    if clause.operator is operators.between_op and isinstance(right, ExpressionClauseList):
        low, high = (list(look.bound_values(one)) for one in right.clauses)
        least, most, is_open = low, high, False
    else:
        values = list(look.bound_values(right))
        least = values if clause.operator in (operators.gt, operators.ge, operators.eq, operators.in_op) else []
        most = values if clause.operator in (operators.lt, operators.le, operators.eq, operators.in_op) else []
        is_open = clause.operator in (operators.gt, operators.lt)
    if all(_is_ordered(value) for value in (*least, *most)) and len({type(value) for value in (*least, *most)}) <= 1:
        if least:
            yield _Bound(left, True, min(least), is_open)
        if most:
            yield _Bound(left, False, max(most), is_open)


def _is_ordered(value: object) -> bool:
    """Return whether Python and the database order values of this type in the same way. For texts they may not, since the database uses a
    collation.
    """
    return isinstance(value, int | float | Decimal | date) and not isinstance(value, bool)
