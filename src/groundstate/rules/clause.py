"""Looking into SQL expressions: the operands of an AND, what they name, and what their subqueries name. Compiles and runs nothing."""

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
    """The operands of the AND of all of these (rules.md 1); an OR stays one."""
    return tuple(operand for clause in clauses for operand in _operands(element(clause)))


def element(clause: Any) -> Any:
    """The SQL expression of a mapped attribute, or what was given."""
    return clause.__clause_element__() if hasattr(clause, "__clause_element__") else clause


def _operands(clause: Any) -> Iterator[ColumnElement[bool]]:
    inner = clause.element if isinstance(clause, Grouping) else clause
    if isinstance(inner, BooleanClauseList) and inner.operator is operators.and_:
        for operand in inner.clauses:
            yield from _operands(operand)
    else:
        yield clause


def does_not_hold(clause: ColumnElement[bool]) -> ColumnElement[bool]:
    """The clause is false or NULL: SQL's IS NOT TRUE (rules.md 1)."""
    return clause.is_not(true())


def parts(clause: ClauseElement) -> Iterator[Any]:
    """The clause and all in it, subqueries too."""
    yield from visitors.iterate(clause)


def own_parts(clause: ClauseElement) -> Iterator[Any]:
    """The clause and all in it but the inside of subqueries."""
    waiting: list[Any] = [clause]
    while waiting:
        one = waiting.pop()
        yield one
        if not isinstance(one, (Exists, ScalarSelect, SelectBase)):
            waiting.extend(one.get_children())


def subqueries(clause: ClauseElement) -> Iterator[Any]:
    """The outermost subqueries of the clause."""
    for one in own_parts(clause):
        if isinstance(one, (Exists, ScalarSelect, SelectBase)):
            yield one


def columns(found: Iterable[Any]) -> Iterator[Any]:
    """The columns among these parts, of tables and of their aliases alike."""
    for one in found:
        if getattr(one, "table", None) is not None and hasattr(one, "key"):
            yield one


def compared_with(clause: ClauseElement, tables: set[Any]) -> list[Any]:
    """Subqueries other than EXISTS that are compared with columns of these tables: that connects them, as `Order.id.in_(select(...))`."""
    found: list[Any] = []
    for one in own_parts(clause):
        if isinstance(one, BinaryExpression) and any(column.table in tables for column in columns(own_parts(one))):
            found.extend(subquery for subquery in subqueries(one) if not isinstance(subquery, Exists))
    return found


def froms(subquery: ClauseElement) -> set[Any]:
    """What the outermost SELECT of a subquery is over; empty where that cannot be told."""
    inner = next((one for one in parts(subquery) if isinstance(one, Select)), None)
    return set() if inner is None else set(inner.get_final_froms())


def joined(subquery: ClauseElement) -> set[Any]:
    """Tables that a subquery joins itself, and so never takes from around it."""
    return {inner for one in parts(subquery) if isinstance(one, Join) for side in (one.left, one.right) for inner in _tables(side)}


def _tables(side: Any) -> Iterator[Any]:
    if isinstance(side, Join):
        yield from _tables(side.left)
        yield from _tables(side.right)
    else:
        yield side


def base_column(column: Any) -> Any:
    """The table's own column, without what the mapper noted on it."""
    found = column.table.c.get(column.key) if hasattr(column.table, "c") else None
    return column if found is None else found


def operands_of(found: Iterable[Any]) -> Iterator[tuple[Any, Any, Any]]:
    """(column, operator, other side) of each comparison with a column at its left."""
    for one in found:
        if isinstance(one, BinaryExpression):
            left = one.left.element if isinstance(one.left, Grouping) else one.left
            if isinstance(left, Column) or next(columns([left]), None) is not None:
                yield left, one.operator, one.right


def bound(one: Any) -> Iterator[Any]:
    """The values of a bind parameter, each of an expanding one; nothing where it is made late."""
    if isinstance(one, BindParameter) and one.callable is None and one.value is not None:
        yield from one.value if one.expanding and isinstance(one.value, (list, tuple)) else [one.value]


def same(one: ClauseElement, other: ClauseElement) -> bool:
    """Whether both ask the same, values included.

    SQLAlchemy's comparison fails where one tree names a mapped class and the other, at the same place, none: those are not the same.
    """
    try:
        return bool(one.compare(other))
    except AttributeError:
        return False


def same_all(these: tuple[ColumnElement[bool], ...], those: tuple[ColumnElement[bool], ...]) -> bool:
    """Whether both are the same clauses, in any order."""
    covers = all(any(same(one, other) for other in those) for one in these)
    return covers and all(any(same(one, other) for one in these) for other in those)
