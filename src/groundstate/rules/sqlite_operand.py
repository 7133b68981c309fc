"""Classifies one side of a comparison on SQLite: whether it is certainly a number, a text, a time or JSON, and whether SQLite converts the
other side to its type.

SQLite converts the other side if this side has a type of its own (as a column or a CAST does). Then it compares the values of both sides by
their storage classes, and any number is less than any text: https://sqlite.org/datatype3.html#affinity_of_comparison_operands.
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
TIMES_AS_TEXT = TEXTS_OF_TIME - {"strftime"}  # strftime is left out, since it may return the digits of a number, such as seconds
CLOCKS = frozenset({"now", "current_timestamp", "datetime"})
_NOT_NUMBERS = CLOCKS | TIMES_AS_TEXT | {"current_date", "current_time"}  # functions that return a text which is never a number
_DIGITS = re.compile(r"(?:%[YmdHMSsjJwuWUVGfkl]|[0-9.])+")  # matches a format with which strftime returns only digits and dots
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


def compared_sides(one: Any, operators_: set[Any] = _COMPARED) -> Iterator[tuple[Any, Any]]:
    """Yield the pairs (left side, right side) and (right side, left side) of a comparison; nothing for other expressions.

    For IN and BETWEEN, yield the two pairs for each element of the right side.
    """
    if not isinstance(one, BinaryExpression) or one.operator not in operators_:
        return
    left, right = unwrap_expression(one.left), unwrap_expression(one.right)
    several = one.operator in _OF_SEVERAL and isinstance(right, ClauseList | ExpressionClauseList)
    for other in map(unwrap_expression, right.clauses if several else [right]):
        if hasattr(left, "type") and hasattr(other, "type"):  # SQLAlchemy's text() has no type
            yield left, other
            yield other, left


def unwrap_expression(one: Any) -> Any:
    """Return the expression without the brackets, labels and one-column subqueries around it."""
    while True:
        if isinstance(one, Grouping | Label | ScalarSelect):
            one = one.element
        elif isinstance(one, SelectBase) and len(one.selected_columns) == 1:
            (one,) = one.selected_columns
        else:
            return one


def alternatives(side: Any) -> Iterator[Any]:
    """Yield each expression whose value the side may have: each result of a CASE, each argument of coalesce; else only the side itself."""
    side = unwrap_expression(side)
    if isinstance(side, Case):
        inside = [result for _, result in side.whens] + ([] if side.else_ is None else [side.else_])
    elif isinstance(side, FunctionElement) and function_name(side) in _FIRST_OF:
        inside = list(side.clauses)[_FIRST_OF[function_name(side)]]
    else:
        yield side
        return
    for one in inside:
        yield from alternatives(one)


def non_null_alternatives(side: Any) -> list[Any]:
    return [one for one in alternatives(side) if not isinstance(one, Null)]


def arithmetic_operands(one: Any) -> list[Any]:
    """Return the operands of an arithmetic operation; return an empty list for any other expression."""
    operator = getattr(one, "operator", None)
    if operator not in _ARITHMETIC and getattr(operator, "opstring", None) not in _SIGNS:
        return []
    if isinstance(one, BinaryExpression):
        return [one.left, one.right]
    if isinstance(one, ExpressionClauseList):
        return list(one.clauses)
    return [one.element] if isinstance(one, UnaryExpression) else []


def storage_type(side: Any, dialect: Dialect) -> Any:
    """Return the SQLAlchemy type with which the database stores the value of this side; None if the side has no type."""
    kind = getattr(unwrap_expression(side), "type", None)
    return None if kind is None else underlying_type(kind, dialect)


def underlying_type(kind: Any, dialect: Dialect) -> Any:
    kind = kind.dialect_impl(dialect)
    while isinstance(kind, TypeDecorator) and not isinstance(kind, Interval):  # an Interval is kept, although it is a TypeDecorator
        kind = kind.impl_instance
    return kind


def is_bound_without_sql(side: Any, dialect: Dialect) -> bool:
    """Return whether the side's type binds a value as it is, and does not put SQL around it that could change it."""
    return side.type.dialect_impl(dialect).bind_expression(BindParameter("one", None, type_=side.type)) is None


def function_name(one: Any) -> str:
    return str(getattr(one, "name", "")).lower() if isinstance(one, FunctionElement) else ""


def reads_text_as_numbers(side: Any) -> bool:
    """Return whether SQLite reads a text that is compared with this side as a number.

    SQLite does so if the side has a type of its own. A column or a CAST has one; a function or an arithmetic operation has none.
    """
    return isinstance(side, Column | Cast | Extract) or is_part_of_json(side, (Boolean, *NUMBERS))


def reads_numbers_as_text(side: Any) -> bool:
    """Return whether SQLite reads a number that is compared with this side as a text.

    SQLite does so if the side has a type of its own. A column or a CAST has one; a function or an operation with `||` has none.
    """
    return isinstance(side, Column | Cast) or is_part_of_json(side, String)


def is_number(side: Any, dialect: Dialect) -> bool:
    """Return whether the side is certainly a number. On SQLite a boolean is a number too."""
    if isinstance(side, BindParameter):
        values = list(look.bound_values(side))
        numbers = all(isinstance(value, int | float | Decimal) for value in values)
        as_it_is = type(side.type) in (String, Text) or isinstance(storage_type(side, dialect), (*NUMBERS, NullType, Boolean))
        return bool(values) and numbers and as_it_is
    if is_boolean(side):
        return True
    if isinstance(side, Column):
        return isinstance(storage_type(side, dialect), NUMBERS) and is_bound_without_sql(side, dialect)
    if isinstance(side, Cast):
        return isinstance(storage_type(side, dialect), NUMBERS)
    return isinstance(side, Extract) or is_computed_number(side, dialect)


def is_computed_number(side: Any, dialect: Dialect) -> bool:
    """Return whether the side is certainly a number that a function or arithmetic computes.

    Such a side has no type of its own, so SQLite does not convert a text that is compared with it.
    """
    if function_name(side) in ("min", "max", "coalesce", "ifnull"):
        return all(is_number(one, dialect) for one in alternatives(side))
    return function_name(side) in _GIVING_NUMBERS or bool(arithmetic_operands(side))


def is_boolean(side: Any) -> bool:
    if isinstance(side, BindParameter):
        return any(isinstance(value, bool) for value in look.bound_values(side))
    return isinstance(side, True_ | False_)


def is_text(side: Any, dialect: Dialect) -> bool:
    """Return whether the side is certainly a text. A time does not count as a text, although SQLite stores it as one."""
    if isinstance(side, Column | Cast):
        return isinstance(storage_type(side, dialect), String) and is_bound_without_sql(side, dialect)
    if isinstance(side, BinaryExpression):
        return side.operator is operators.concat_op or is_part_of_json(side, String)
    return function_name(side) in _GIVING_TEXTS or (function_name(side) == "strftime" and isinstance(side.type, NullType))


def is_text_in_each_case(side: Any, dialect: Dialect) -> bool:
    """Return whether each expression whose value the side may have is a text, as in coalesce(a column of text, '')."""
    return not isinstance(side, BindParameter) and all(
        is_text(one, dialect) or _is_bound_text(one) for one in non_null_alternatives(side) or [side]
    )


def _is_bound_text(side: Any) -> bool:
    values = list(look.bound_values(side))
    return bool(values) and all(isinstance(value, str) for value in values) and isinstance(side.type, String | NullType)


def is_text_of_number(side: Any) -> bool:
    """Return whether the side is strftime with a format that gives the text of a number, as '%s' does."""
    if function_name(side) != "strftime":
        return False
    forms = [value for value in look.bound_values(next(iter(side.clauses), None)) if isinstance(value, str)]
    return bool(forms) and all(_DIGITS.fullmatch(form) for form in forms)


def is_time(side: Any, dialect: Dialect) -> bool:
    """Return whether the side is certainly a time or a duration that is stored as text."""
    if function_name(side) in _NOT_NUMBERS:
        return True
    if isinstance(side, BindParameter):
        values = list(look.bound_values(side))
        if not values or not all(isinstance(value, date | time | timedelta) for value in values):
            return False
    elif not isinstance(side, Column):
        return False
    kind = storage_type(side, dialect)
    # If the storage_format of the type consists of digits, SQLAlchemy makes the column a text column, and SQLite then reads a compared
    # number as text. Such a column does not count.
    return isinstance(kind, TIMES) and getattr(kind, "format_is_text_affinity", True) and is_bound_without_sql(side, dialect)


def kind_of_time(side: Any, dialect: Dialect) -> str | None:
    kind, name = storage_type(side, dialect), function_name(side)
    if isinstance(kind, Time) or name in ("time", "current_time"):
        return "a time of the day"
    if isinstance(kind, Interval):
        return "a duration"
    return "a day or a time of one" if isinstance(kind, DateTime | Date) or name in _NOT_NUMBERS else None


def is_in_json(side: Any) -> bool:
    side = unwrap_expression(side.clause) if isinstance(side, TypeCoerce) else side  # a TypeCoerce is not visible in the SQL
    return isinstance(side, BinaryExpression) and side.operator in _INSIDE_JSON and isinstance(side.type, JSON)


def is_part_of_json(side: Any, kinds: Any) -> bool:
    """Return whether the side is a value within JSON, read as one of these types by as_string(), as_boolean() or the like."""
    return isinstance(side, BinaryExpression) and side.operator in _INSIDE_JSON and isinstance(side.type, kinds)
