"""Checks the clauses of a condition for errors, and for what is legal but probably not meant. It returns messages that name the cure.

`reason_to_refuse_clause` reports errors, and `suspicious_clause_warnings` reports what is legal. The functions are pure.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time
from typing import Any

from sqlalchemy import JSON, Boolean, Enum
from sqlalchemy.orm import Mapper
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ColumnElement,
    FunctionFilter,
    Grouping,
    Null,
    Over,
    TextClause,
    UnaryExpression,
    WithinGroup,
)
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.schema import Column

from groundstate.rules import sql_inspect as look

_AGGREGATES = {
    "count", "sum", "avg", "min", "max", "total", "array_agg", "string_agg", "group_concat", "bool_and", "bool_or", "every",
    "json_agg", "jsonb_agg", "json_group_array", "json_group_object", "aggregate_strings", "stddev", "variance",
}  # fmt: skip
_CLOCKS = {"now", "current_timestamp", "current_date", "localtimestamp", "clock_timestamp", "statement_timestamp", "sysdate"}
_OF_SQLITE = {"date", "time", "datetime", "julianday", "unixepoch", "strftime"}  # SQLite functions that read the clock if given 'now'
_TRUTHS = (operators.inv, operators.is_true, operators.is_false)
_NEGATIVE = (operators.ne, operators.not_in_op, operators.not_like_op, operators.not_ilike_op)
_OF_NULL = (operators.is_, operators.is_not)
_NULL_SAFE = (operators.is_, operators.is_not, operators.is_distinct_from, operators.is_not_distinct_from)


def reason_to_refuse_clause(clause: Any, mapper: Mapper[Any], outer: Sequence[Any] = ()) -> str | None:
    """Return why this clause cannot be part of a condition on the mapper's records, as a text that names the cure; None if it can.

    outer: tables that the clause may name besides the mapper's own table, such as the parent's table in a clause of `every_child`.
    """
    return (
        _reason_not_a_condition(clause)
        or _reason_foreign_column(clause, mapper, outer)
        or _reason_unconnected_subquery(clause, mapper, outer)
        or _reason_wrong_value(clause)
    )


def reason_to_refuse_immediate_clause(clause: Any, mapper: Mapper[Any]) -> str | None:
    """Return why this clause is wrong for a query that runs only once, at once. The reason names the cure; it is None if nothing is wrong.

    Unlike a clause of a reaction, it may compare a column with the present time, given as a Python value.
    """
    return (
        _reason_not_a_condition(clause)
        or _reason_foreign_column(clause, mapper, ())
        or _reason_unconnected_subquery(clause, mapper, ())
        or _reason_wrong_value(clause, now=True)
    )


def reason_to_refuse_expression(expression: Any, mapper: Mapper[Any]) -> str | None:
    """Return why this expression, of any SQL type, cannot be computed for one record of the mapper; None if it can."""
    for one in look.iterate_without_subqueries(expression):
        if isinstance(one, (Over, FunctionFilter, WithinGroup)) or _is_aggregate(one):
            return f"{one} is of many rows, and a due time is of one record: put it into a subquery that names the record"
    return (
        _reason_foreign_column(expression, mapper, ())
        or _reason_unconnected_subquery(expression, mapper, ())
        or _reason_wrong_value(expression)
    )


def _reason_not_a_condition(clause: Any) -> str | None:
    if isinstance(clause, bool) or clause is None:
        return (
            f"a clause is Python's {clause}, and not SQL: `is None`, `is not None`, `not`, `in`, `and` and `or` are carried out by Python,"
            " before the database is asked; write .is_(None), .is_not(None), ~(...), .in_([...]), and join clauses by commas or & and |"
        )
    if isinstance(clause, (str, TextClause)):
        return f"a clause is text ({str(clause)!r}), and what it names cannot be seen: write it as an expression of columns"
    if not isinstance(clause, ColumnElement):
        return f"a clause is a {type(clause).__name__}: write an expression of columns, such as Order.status == 'placed'"
    for one in _joined_clauses(clause):
        if isinstance(one, look.CONSTANTS):
            return (
                f"the condition has the constant {str(one).upper()} in it: was `is None` written for .is_(None), `is not None` for"
                " .is_not(None), or `not` for ~? Python carries those out, and not the database"
            )
    if isinstance(clause, Column) and not isinstance(clause.type, Boolean):
        return f"{clause.key} is a column and no condition: compare it with something"
    for one in look.iterate_without_subqueries(clause):
        if isinstance(one, (Over, FunctionFilter, WithinGroup)) or _is_aggregate(one):
            return (
                f"{one} is of many rows, and a condition is asked of one record: put it into a subquery that names the record, as in"
                " select(func.count(Item.id)).where(Item.order_id == Order.id).scalar_subquery() > 3"
            )
    return None


def _joined_clauses(clause: Any) -> Iterator[Any]:
    """Yield the clause itself, and every operand of AND, OR and NOT within it."""
    yield clause
    if isinstance(clause, BooleanClauseList):
        for inner in clause.clauses:
            yield from _joined_clauses(inner)
    elif isinstance(clause, Grouping) or (isinstance(clause, UnaryExpression) and clause.operator in _TRUTHS):
        yield from _joined_clauses(clause.element)


def _is_aggregate(one: Any) -> bool:
    if not isinstance(one, FunctionElement):
        return False
    name = str(getattr(one, "name", "")).lower()
    return name in _AGGREGATES and not (name in ("min", "max") and len(one.clauses) > 1)


def _reason_foreign_column(clause: Any, mapper: Mapper[Any], outer: Sequence[Any]) -> str | None:
    allowed = {*mapper.tables, *outer}
    for column in look.only_columns(look.iterate_without_subqueries(clause)):
        if column.table not in allowed:
            name = mapper.class_.__name__
            return (
                f"{column} is not of {name}, so that each {name} would be joined with every row of {column.table}: ask by"
                f" relationship.any(...) or .has(...), or by exists().where(...) that names a column of {name}"
            )
    return None


def _reason_unconnected_subquery(clause: Any, mapper: Mapper[Any], outer: Sequence[Any]) -> str | None:
    own = {*mapper.tables, *outer}
    name = mapper.class_.__name__
    compared = look.subqueries_compared_with(clause, own)
    for subquery in look.outermost_subqueries(clause):
        if any(subquery is one for one in compared):
            continue
        froms = look.from_elements(subquery)
        if froms and froms <= own:
            return f"a subquery is over {name} itself, so that it is the same for all of them: ask it over another = aliased({name})"
        named = {column.table for column in look.only_columns(look.all_parts(subquery))} & own
        if not named - look.tables_joined_in(subquery):
            return (
                f"a subquery says nothing of the {name} in question, so that it is the same for all of them: add what connects them,"
                " such as"
                f" .where(Item.order_id == {name}.{mapper.primary_key[0].key})"
            )
    return None


def _reason_wrong_value(clause: Any, *, now: bool = False) -> str | None:
    for one in look.all_parts(clause):
        if isinstance(one, BindParameter) and one.required and one.value is None and one.callable is None:
            return f"nobody gives the parameter {one.key!r} of the condition its value: write the value into it"
        refuses = getattr(getattr(one, "type", None), "reason_to_refuse", None)  # found by name: UtcDateTime must not be imported here
        for value in look.bound_values(one):
            why = refuses(value) if refuses is not None and isinstance(value, date) else None
            if why is not None:
                return f"the condition compares with a value that is refused: {why}"
            if now:
                continue
            if (isinstance(value, datetime) and value.microsecond) or (isinstance(value, time) and value.microsecond):
                return (
                    f"the condition compares with {value.isoformat()}, which is the clock of the import and stays so for as long as the"
                    " worker"
                    " runs: say it by due=after(Order.placed_at, timedelta(...)), or compare with the"
                    " database's clock: Order.placed_at < func.now()"
                )
    for column, operator, right in look.comparisons_in(look.all_parts(clause)):
        if isinstance(column.type, Enum) and operator in (operators.eq, operators.ne, operators.in_op, operators.not_in_op):
            for value in look.bound_values(right):
                if not _is_enum_value(column.type, value):
                    listed = ", ".join(repr(known) for known in column.type.enums)
                    return f"{column} is never {value!r}: it is one of {listed}"
    return None


def _is_enum_value(kind: Enum, value: Any) -> bool:
    members: list[Any] = list(kind.enum_class) if kind.enum_class is not None and issubclass(kind.enum_class, enum.Enum) else []
    if isinstance(value, enum.Enum):
        return not members or value in members
    return value in kind.enums or value in members


# ---- what is legal and probably not meant --------------------------------------------------------------------------------------
def suspicious_clause_warnings(clauses: Sequence[ColumnElement[bool]]) -> Iterator[str]:
    """Yield one message, which names the cure, for each thing in the clauses that is legal but probably not meant."""
    safe = {
        look.base_column(column)
        for clause in clauses
        for column, operator, _ in look.comparisons_in(look.iterate_without_subqueries(clause))
        if operator in _NULL_SAFE or (operator not in _NEGATIVE and not _is_boolean_list(clause))
    }
    for clause in clauses:
        for column, operator, right in look.comparisons_in(look.iterate_without_subqueries(clause)):
            base = look.base_column(column)
            if operator in _NEGATIVE and getattr(base, "nullable", False) and base not in safe and not _names_a_column(right):
                yield (
                    f"{column} can be NULL, and `{clause}` holds for no row where it is: write {column}.is_distinct_from(...), or add"
                    f" {column}.is_not(None) where such rows are not meant"
                )
            if operator in _OF_NULL and isinstance(right, Null) and isinstance(base.type, JSON) and not base.type.none_as_null:
                yield (
                    f"{column} is JSON, as which a None that is assigned is written as JSON's null, and `{clause}` asks for SQL's NULL"
                    f" alone: map it as {type(base.type).__name__}(none_as_null=True)"
                )


def _is_boolean_list(clause: Any) -> bool:
    return isinstance(clause, BooleanClauseList)


def _names_a_column(right: Any) -> bool:
    return next(look.only_columns(look.iterate_without_subqueries(right)), None) is not None


def column_compared_with_clock(clauses: Sequence[ColumnElement[bool]]) -> str | None:
    """Return the key of a column that the condition compares with the clock. Such a condition can hold again and again for one record.

    Return None if no column is compared with the clock, or if a clause such as `column IS NULL` can keep the condition from holding again.
    """
    found: str | None = None
    for clause in clauses:
        for column, operator, right in look.comparisons_in(look.iterate_without_subqueries(clause)):
            if operator is operators.is_ and isinstance(right, look.CONSTANTS):
                return None
            if operator in (operators.lt, operators.le) and any(_is_clock(one) for one in look.iterate_without_subqueries(right)):
                found = str(column.key)
    return found


def attributes_compared_with_each_other(
    clauses: Sequence[ColumnElement[bool]], mapper: Mapper[Any]
) -> tuple[tuple[str, ...], frozenset[str]] | None:
    """Return a pair: the record's attributes that a clause compares with each other, and the attributes that are named only in other
    clauses.

    Return None where no clause compares two attributes. A clause that compares two attributes, even within an OR or a CASE, can hold again
    whenever one of the two changes.
    """
    by_column = {column: one.key for one in mapper.column_attrs for column in one.columns}

    def own(part: Any) -> dict[str, None]:
        return {
            by_column[base]: None
            for one in look.only_columns(look.iterate_without_subqueries(part))
            if (base := look.base_column(one)) in by_column
        }

    found: dict[str, None] = {}
    others: set[str] = set()
    for clause in clauses:
        comparisons = [
            one
            for one in look.iterate_without_subqueries(clause)
            if isinstance(one, BinaryExpression) and operators.is_comparison(one.operator)
        ]
        compared = [names for names in map(own, comparisons) if len(names) > 1]
        for names in compared:
            found.update(names)
        if not compared:
            others |= set(own(clause))
    return (tuple(found), frozenset(others - set(found))) if found else None


def depends_on_clock(clause: ColumnElement[bool]) -> bool:
    """Return whether the clause reads the database's clock, so that it can become true or false though no row is written."""
    return any(_is_clock(one) for one in look.iterate_without_subqueries(clause))


def _is_clock(one: Any) -> bool:
    if not isinstance(one, FunctionElement):
        return False
    name = str(getattr(one, "name", "")).lower()
    return name in _CLOCKS or (name in _OF_SQLITE and any("now" in look.bound_values(part) for part in one.clauses))
