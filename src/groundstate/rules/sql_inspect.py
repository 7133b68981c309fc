"""Inspects SQL expressions: the operands of an AND, and the columns and tables that a clause and its subqueries name. Runs no statement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import ColumnElement, false, true
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, ClauseElement, Grouping, Null
from sqlalchemy.sql.schema import Column
from sqlalchemy.sql.selectable import Exists, Join, ScalarSelect, Select, SelectBase

CONSTANTS = (type(true()), type(false()), Null)


def split(clauses: Iterable[Any]) -> tuple[ColumnElement[bool], ...]:
    """Return the operands of the AND of all these clauses (rules.md 1); an OR stays one operand."""
    return tuple(operand for clause in clauses for operand in _operands(element(clause)))


def element(clause: Any) -> Any:
    """Return the SQL expression of a mapped attribute, or the argument itself where it is no mapped attribute."""
    return clause.__clause_element__() if hasattr(clause, "__clause_element__") else clause


def _operands(clause: Any) -> Iterator[ColumnElement[bool]]:
    inner = clause.element if isinstance(clause, Grouping) else clause
    if isinstance(inner, BooleanClauseList) and inner.operator is operators.and_:
        for operand in inner.clauses:
            yield from _operands(operand)
    else:
        yield clause


def does_not_hold(clause: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return a clause that holds where the given one is false or NULL: SQL's IS NOT TRUE (rules.md 1)."""
    return clause.is_not(true())


def parts(clause: ClauseElement) -> Iterator[Any]:
    """Yield the clause and every expression within it, those in subqueries included."""
    yield from visitors.iterate(clause)


def own_parts(clause: ClauseElement) -> Iterator[Any]:
    """Yield the clause and every expression within it; a subquery is yielded, but not its content."""
    waiting: list[Any] = [clause]
    while waiting:
        one = waiting.pop()
        yield one
        if not isinstance(one, (Exists, ScalarSelect, SelectBase)):
            waiting.extend(one.get_children())


def subqueries(clause: ClauseElement) -> Iterator[Any]:
    """Yield the outermost subqueries of the clause."""
    for one in own_parts(clause):
        if isinstance(one, (Exists, ScalarSelect, SelectBase)):
            yield one


def columns(found: Iterable[Any]) -> Iterator[Any]:
    """Yield those of the given expressions that are columns of a table or of an alias."""
    for one in found:
        if getattr(one, "table", None) is not None and hasattr(one, "key"):
            yield one


def compared_with(clause: ClauseElement, tables: set[Any]) -> list[Any]:
    """Return the subqueries other than EXISTS that the clause compares with columns of these tables, as `Order.id.in_(select(...))` does.
    Such a comparison connects the subquery with the row.
    """
    found: list[Any] = []
    for one in own_parts(clause):
        if isinstance(one, BinaryExpression) and any(column.table in tables for column in columns(own_parts(one))):
            found.extend(subquery for subquery in subqueries(one) if not isinstance(subquery, Exists))
    return found


def froms(subquery: ClauseElement) -> set[Any]:
    """Return the FROM elements of the outermost SELECT of a subquery; return an empty set where no SELECT is found."""
    inner = next((one for one in parts(subquery) if isinstance(one, Select)), None)
    return set() if inner is None else set(inner.get_final_froms())


def joined(subquery: ClauseElement) -> set[Any]:
    """Return the tables that a subquery joins itself, so that it never takes them from the enclosing statement."""
    return {inner for one in parts(subquery) if isinstance(one, Join) for side in (one.left, one.right) for inner in _tables(side)}


def _tables(side: Any) -> Iterator[Any]:
    if isinstance(side, Join):
        yield from _tables(side.left)
        yield from _tables(side.right)
    else:
        yield side


def base_column(column: Any) -> Any:
    """Return the plain column of the table, without the annotations that the mapper added to it."""
    found = column.table.c.get(column.key) if hasattr(column.table, "c") else None
    return column if found is None else found


def operands_of(found: Iterable[Any]) -> Iterator[tuple[Any, Any, Any]]:
    """Yield (column, operator, right side) of each comparison that has a column on its left."""
    for one in found:
        if isinstance(one, BinaryExpression):
            left = one.left.element if isinstance(one.left, Grouping) else one.left
            if isinstance(left, Column) or next(columns([left]), None) is not None:
                yield left, one.operator, one.right


def bound(one: Any) -> Iterator[Any]:
    """Yield the value of a bind parameter, or each value of an expanding one; yield nothing where the value is computed at execution."""
    if isinstance(one, BindParameter) and one.callable is None and one.value is not None:
        yield from one.value if one.expanding and isinstance(one.value, (list, tuple)) else [one.value]


def same(one: ClauseElement, other: ClauseElement) -> bool:
    """Return whether both clauses are the same expression with the same values.

    SQLAlchemy's comparison raises AttributeError where one tree names a mapped class and the other names none at the same place: those are
    not the same.
    """
    try:
        return bool(one.compare(other))
    except AttributeError:
        return False


def same_all(these: tuple[ColumnElement[bool], ...], those: tuple[ColumnElement[bool], ...]) -> bool:
    """Return whether both tuples contain the same clauses, in any order."""
    covers = all(any(same(one, other) for other in those) for one in these)
    return covers and all(any(same(one, other) for one in these) for other in those)
