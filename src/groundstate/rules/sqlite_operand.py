"""Classifies one side of a comparison as SQLite sees it: whether it is certainly a number, a text, a time or JSON, and to what it converts
the other side.

SQLite compares two sides by their storage classes, in which any number is less than any text, after a side with a type of its own (a
column, a CAST) has converted the other to that type: https://sqlite.org/datatype3.html#affinity_of_comparison_operands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    Case,
    Cast,
    ClauseList,
    ExpressionClauseList,
    Extract,
    False_,
    Grouping,
    Label,
    Null,
    True_,
    TypeCoerce,
    UnaryExpression,
)
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.schema import Column
from sqlalchemy.sql.selectable import ScalarSelect, SelectBase
from sqlalchemy.sql.sqltypes import JSON, Boolean, Date, DateTime, Float, Integer, Interval, NullType, Numeric, String, Text, Time
from sqlalchemy.types import TypeDecorator

from groundstate.rules import sql_inspect as look

TIMES = (DateTime, Date, Time, Interval)
NUMBERS = (Integer, Numeric, Float)
_ARITHMETIC = (operators.add, operators.sub, operators.mul, operators.truediv, operators.floordiv, operators.mod, operators.neg)
_SIGNS = frozenset("+-*/%")
SUMS = frozenset({"sum", "avg", "total"})
TEXTS_OF_TIME = frozenset({"date", "time", "datetime", "strftime"})
TIMES_AS_TEXT = TEXTS_OF_TIME - {"strftime"}  # strftime may give a number's text, such as that of seconds
CLOCKS = frozenset({"now", "current_timestamp", "datetime"})
_NOT_NUMBERS = CLOCKS | TIMES_AS_TEXT | {"current_date", "current_time"}  # functions whose text is never that of a number
_DIGITS = re.compile(r"(?:%[YmdHMSsjJwuWUVGfkl]|[0-9.])+")  # a format of strftime that gives a number's text
_GIVING_TEXTS = frozenset(
    {"lower", "upper", "trim", "ltrim", "rtrim", "substr", "substring", "replace", "printf", "format", "hex", "concat", "concat_ws"}
)
_GIVING_NUMBERS = frozenset({"julianday", "unixepoch", "abs", "count", "instr", "length", "round"}) | SUMS
_FIRST_OF = {
    "coalesce": slice(None),
    "ifnull": slice(None),
    "min": slice(None),
    "max": slice(None),
    "nullif": slice(1),
    "iif": slice(1, None),
}
ORDERS = {operators.lt, operators.le, operators.gt, operators.ge, operators.between_op, operators.not_between_op}
SAME = {operators.eq, operators.ne, operators.is_distinct_from, operators.is_not_distinct_from}
_NULL = {operators.is_, operators.is_not}
AMONG = {operators.in_op, operators.not_in_op}
_OF_SEVERAL = AMONG | {operators.between_op, operators.not_between_op}
_COMPARED = ORDERS | SAME | _NULL | AMONG
_INSIDE_JSON = (operators.json_getitem_op, operators.json_path_getitem_op)


def compared(one: Any, operators_: set[Any] = _COMPARED) -> Iterator[tuple[Any, Any]]:
    """Yield (left, right) and (right, left) of a comparison; for IN and BETWEEN, yield both for each element of the right side."""
    if not isinstance(one, BinaryExpression) or one.operator not in operators_:
        return
    left, right = inner(one.left), inner(one.right)
    several = one.operator in _OF_SEVERAL and isinstance(right, ClauseList | ExpressionClauseList)
    for other in map(inner, right.clauses if several else [right]):
        if hasattr(left, "type") and hasattr(other, "type"):  # text() has no type
            yield left, other
            yield other, left


def inner(one: Any) -> Any:
    """Return what is within brackets, a label, or a subquery of one column, which SQLite treats as that column."""
    while True:
        if isinstance(one, Grouping | Label | ScalarSelect):
            one = one.element
        elif isinstance(one, SelectBase) and len(one.selected_columns) == 1:
            (one,) = one.selected_columns
        else:
            return one


def alternatives(side: Any) -> Iterator[Any]:
    """Yield the expressions from which the side takes its value, such as the results of CASE and the arguments of coalesce; most sides
    yield only themselves.
    """
    side = inner(side)
    if isinstance(side, Case):
        inside = [result for _, result in side.whens] + ([] if side.else_ is None else [side.else_])
    elif isinstance(side, FunctionElement) and function_name(side) in _FIRST_OF:
        inside = list(side.clauses)[_FIRST_OF[function_name(side)]]
    else:
        yield side
        return
    for one in inside:
        yield from alternatives(one)


def not_null(side: Any) -> list[Any]:
    return [one for one in alternatives(side) if not isinstance(one, Null)]


def operands(one: Any) -> list[Any]:
    """Return the operands of an arithmetic operation; return an empty list for anything else."""
    operator = getattr(one, "operator", None)
    if operator not in _ARITHMETIC and getattr(operator, "opstring", None) not in _SIGNS:
        return []
    if isinstance(one, BinaryExpression):
        return [one.left, one.right]
    if isinstance(one, ExpressionClauseList):
        return list(one.clauses)
    return [one.element] if isinstance(one, UnaryExpression) else []


def kept_as(side: Any, dialect: Dialect) -> Any:
    """Return the type by which the database stores the value of this side."""
    kind = getattr(inner(side), "type", None)
    return None if kind is None else unwrapped(kind, dialect)


def unwrapped(kind: Any, dialect: Dialect) -> Any:
    kind = kind.dialect_impl(dialect)
    while isinstance(kind, TypeDecorator) and not isinstance(kind, Interval):  # Interval is a TypeDecorator itself
        kind = kind.impl_instance
    return kind


def is_bound_as_it_is(side: Any, dialect: Dialect) -> bool:
    """Return whether the type binds a value without SQL around it, which could turn the value into anything."""
    return side.type.dialect_impl(dialect).bind_expression(BindParameter("one", None, type_=side.type)) is None


def function_name(one: Any) -> str:
    return str(getattr(one, "name", "")).lower() if isinstance(one, FunctionElement) else ""


def reads_text_as_numbers(side: Any) -> bool:
    """Return whether SQLite reads a text beside this side as a number: the side has its own type, which functions and arithmetic lack."""
    return isinstance(side, Column | Cast | Extract) or is_part_of_json(side, (Boolean, *NUMBERS))


def reads_numbers_as_text(side: Any) -> bool:
    """Return whether SQLite reads a number beside this side as text: the side has its own type, which functions and `||` lack."""
    return isinstance(side, Column | Cast) or is_part_of_json(side, String)


def is_number(side: Any, dialect: Dialect) -> bool:
    """Return whether the side is certainly a number; on SQLite a boolean is one."""
    if isinstance(side, BindParameter):
        values = list(look.bound(side))
        numbers = all(isinstance(value, int | float | Decimal) for value in values)
        as_it_is = type(side.type) in (String, Text) or isinstance(kept_as(side, dialect), (*NUMBERS, NullType, Boolean))
        return bool(values) and numbers and as_it_is
    if is_truth(side):
        return True
    if isinstance(side, Column):
        return isinstance(kept_as(side, dialect), NUMBERS) and is_bound_as_it_is(side, dialect)
    if isinstance(side, Cast):
        return isinstance(kept_as(side, dialect), NUMBERS)
    return isinstance(side, Extract) or is_computed_number(side, dialect)


def is_computed_number(side: Any, dialect: Dialect) -> bool:
    """Return whether the side is certainly a number without a type of its own, so that SQLite does not read text beside it as numbers."""
    if function_name(side) in ("min", "max", "coalesce", "ifnull"):
        return all(is_number(one, dialect) for one in alternatives(side))
    return function_name(side) in _GIVING_NUMBERS or bool(operands(side))


def is_truth(side: Any) -> bool:
    if isinstance(side, BindParameter):
        return any(isinstance(value, bool) for value in look.bound(side))
    return isinstance(side, True_ | False_)


def is_text(side: Any, dialect: Dialect) -> bool:
    """Return whether the side is certainly a text, and not the text of a time."""
    if isinstance(side, Column | Cast):
        return isinstance(kept_as(side, dialect), String) and is_bound_as_it_is(side, dialect)
    if isinstance(side, BinaryExpression):
        return side.operator is operators.concat_op or is_part_of_json(side, String)
    return function_name(side) in _GIVING_TEXTS or (function_name(side) == "strftime" and isinstance(side.type, NullType))


def is_text_in_each_case(side: Any, dialect: Dialect) -> bool:
    """Return whether each of the side's alternatives is a text, as in coalesce(a column of text, '')."""
    return not isinstance(side, BindParameter) and all(is_text(one, dialect) or _is_text_given(one) for one in not_null(side) or [side])


def _is_text_given(side: Any) -> bool:
    values = list(look.bound(side))
    return bool(values) and all(isinstance(value, str) for value in values) and isinstance(side.type, String | NullType)


def is_text_of_number(side: Any) -> bool:
    """Return whether the side is strftime with a format that gives only digits, as '%s' does."""
    if function_name(side) != "strftime":
        return False
    forms = [value for value in look.bound(next(iter(side.clauses), None)) if isinstance(value, str)]
    return bool(forms) and all(_DIGITS.fullmatch(form) for form in forms)


def is_time(side: Any, dialect: Dialect) -> bool:
    """Return whether the side is certainly a time or a duration that is stored as text."""
    if function_name(side) in _NOT_NUMBERS:
        return True
    if isinstance(side, BindParameter):
        values = list(look.bound(side))
        if not values or not all(isinstance(value, date | time | timedelta) for value in values):
            return False
    elif not isinstance(side, Column):
        return False
    kind = kept_as(side, dialect)
    # A storage_format of digits only makes the column one of text, so that SQLite reads a number beside it as text.
    return isinstance(kind, TIMES) and getattr(kind, "format_is_text_affinity", True) and is_bound_as_it_is(side, dialect)


def kind_of_time(side: Any, dialect: Dialect) -> str | None:
    kind, name = kept_as(side, dialect), function_name(side)
    if isinstance(kind, Time) or name in ("time", "current_time"):
        return "a time of the day"
    if isinstance(kind, Interval):
        return "a duration"
    return "a day or a time of one" if isinstance(kind, DateTime | Date) or name in _NOT_NUMBERS else None


def is_in_json(side: Any) -> bool:
    side = inner(side.clause) if isinstance(side, TypeCoerce) else side  # TypeCoerce adds no SQL
    return isinstance(side, BinaryExpression) and side.operator in _INSIDE_JSON and isinstance(side.type, JSON)


def is_part_of_json(side: Any, kinds: Any) -> bool:
    """Return whether the side is what as_string(), as_boolean() and similar give, with one of these types."""
    return isinstance(side, BinaryExpression) and side.operator in _INSIDE_JSON and isinstance(side.type, kinds)
