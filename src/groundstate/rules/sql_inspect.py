"""Inspects SQL expressions: the operands of an AND, and the columns and tables that a clause and its subqueries name. It runs no SQL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import ColumnElement, false, true
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, ClauseElement, Grouping, Null
from sqlalchemy.sql.schema import Column
from sqlalchemy.sql.selectable import Exists, Join, ScalarSelect, Select, SelectBase

CONSTANTS = (type(true()), type(false()), Null)


def flatten_ands(clauses: Iterable[Any]) -> tuple[ColumnElement[bool], ...]:
    """Return one tuple with the clauses, where each clause that is an AND is replaced by its operands (rules.md 1). An OR is kept whole."""
    return tuple(operand for clause in clauses for operand in _and_operands(sql_element(clause)))


def sql_element(clause: Any) -> Any:
    """Return the SQL expression of a mapped attribute such as `Order.id`; return any other argument as it is."""
    return clause.__clause_element__() if hasattr(clause, "__clause_element__") else clause


def _and_operands(clause: Any) -> Iterator[ColumnElement[bool]]:
    inner = clause.element if isinstance(clause, Grouping) else clause
    if isinstance(inner, BooleanClauseList) and inner.operator is operators.and_:
        for operand in inner.clauses:
            yield from _and_operands(operand)
    else:
        yield clause


def is_not_true(clause: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return the clause followed by IS NOT TRUE, which holds where the clause is false or NULL (rules.md 1)."""
    return clause.is_not(true())


def all_parts(clause: ClauseElement) -> Iterator[Any]:
    """Yield the clause and every expression within it, also the expressions within its subqueries."""
    yield from visitors.iterate(clause)


def iterate_without_subqueries(clause: ClauseElement) -> Iterator[Any]:
    """Yield the clause and every expression within it, also its subqueries, but not the expressions within the subqueries."""
    waiting: list[Any] = [clause]
    while waiting:
        one = waiting.pop()
        yield one
        if not isinstance(one, (Exists, ScalarSelect, SelectBase)):
            waiting.extend(one.get_children())


def outermost_subqueries(clause: ClauseElement) -> Iterator[Any]:
    """Yield the subqueries of the clause, but not the subqueries within them."""
    for one in iterate_without_subqueries(clause):
        if isinstance(one, (Exists, ScalarSelect, SelectBase)):
            yield one


def only_columns(found: Iterable[Any]) -> Iterator[Any]:
    """Yield the given expressions that are columns of a table or of an alias, and leave out the rest."""
    for one in found:
        if getattr(one, "table", None) is not None and hasattr(one, "key"):
            yield one


def subqueries_compared_with(clause: ClauseElement, tables: set[Any]) -> list[Any]:
    """Return the subqueries that the clause compares with columns of these tables, as in `Order.id.in_(select(...))`.

    The comparison ties the subquery's result to the row, so the subquery need not name a column of the row. EXISTS is left out.
    """
    found: list[Any] = []
    for one in iterate_without_subqueries(clause):
        if isinstance(one, BinaryExpression) and any(column.table in tables for column in only_columns(iterate_without_subqueries(one))):
            found.extend(subquery for subquery in outermost_subqueries(one) if not isinstance(subquery, Exists))
    return found


def from_elements(subquery: ClauseElement) -> set[Any]:
    """Return the FROM elements of the outermost SELECT of a subquery; return an empty set where no SELECT is found."""
    inner = next((one for one in all_parts(subquery) if isinstance(one, Select)), None)
    return set() if inner is None else set(inner.get_final_froms())


def tables_joined_in(subquery: ClauseElement) -> set[Any]:
    """Return the tables in the JOINs of a subquery. Within the subquery their names do not refer to the enclosing statement."""
    return {
        inner for one in all_parts(subquery) if isinstance(one, Join) for side in (one.left, one.right) for inner in _tables_of_join(side)
    }


def _tables_of_join(side: Any) -> Iterator[Any]:
    if isinstance(side, Join):
        yield from _tables_of_join(side.left)
        yield from _tables_of_join(side.right)
    else:
        yield side


def base_column(column: Any) -> Any:
    """Return the table's own column, without the annotations that the mapper added; if the table has none, return the argument itself."""
    found = column.table.c.get(column.key) if hasattr(column.table, "c") else None
    return column if found is None else found


def comparisons_in(found: Iterable[Any]) -> Iterator[tuple[Any, Any, Any]]:
    """Yield one triple (column, operator, right side) for each of the expressions that is a comparison with a column on its left."""
    for one in found:
        if isinstance(one, BinaryExpression):
            left = one.left.element if isinstance(one.left, Grouping) else one.left
            if isinstance(left, Column) or next(only_columns([left]), None) is not None:
                yield left, one.operator, one.right


def bound_values(one: Any) -> Iterator[Any]:
    """Yield the value of a bind parameter, or each of its values in an IN.

    Yield nothing for other expressions, and where the value is computed only when the statement runs.
    """
    if isinstance(one, BindParameter) and one.callable is None and one.value is not None:
        yield from one.value if one.expanding and isinstance(one.value, (list, tuple)) else [one.value]


def is_same_clause(one: ClauseElement, other: ClauseElement) -> bool:
    """Return whether both clauses are the same expression with the same values.

    SQLAlchemy's comparison raises AttributeError where one clause names a mapped class and the other does not: then the clauses differ.
    """
    try:
        return bool(one.compare(other))
    except AttributeError:
        return False


def are_same_clauses(these: tuple[ColumnElement[bool], ...], those: tuple[ColumnElement[bool], ...]) -> bool:
    """Return whether both tuples contain the same clauses, in any order."""
    covers = all(any(is_same_clause(one, other) for other in those) for one in these)
    return covers and all(any(is_same_clause(one, other) for one in these) for other in those)
