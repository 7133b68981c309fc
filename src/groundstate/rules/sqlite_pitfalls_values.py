"""Finds comparisons of numbers, texts and booleans whose result on SQLite is not what is meant. Pure.

SQLite may convert one side of a comparison to the type of the other side, or compare a number with a text without converting.
"""

from __future__ import annotations

from decimal import Decimal
from math import isnan
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import Cast
from sqlalchemy.sql.schema import Column
from sqlalchemy.sql.sqltypes import Boolean, DateTime, Enum, Float, Interval, NullType, Numeric, String, Time, Uuid

from groundstate.rules import sql_inspect as look
from groundstate.rules.sqlite_operand import (
    AMONG,
    NUMBERS,
    ORDERS,
    SAME,
    SUMS,
    alternatives,
    arithmetic_operands,
    compared_sides,
    function_name,
    is_boolean,
    is_computed_number,
    is_number,
    is_part_of_json,
    is_text_in_each_case,
    reads_numbers_as_text,
    reads_text_as_numbers,
    storage_type,
    underlying_type,
    unwrap_expression,
)
from groundstate.rules.stored_values import convert_for_driver

_OF_OTHER_TEXTS = (Uuid, Boolean, Numeric, Float, DateTime, Time, Interval)


def check_text_with_number(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared_sides(one):
        if not is_text_in_each_case(left, dialect) or reads_text_as_numbers(right):
            continue
        for value in alternatives(right):
            if not is_number(value, dialect):
                continue
            if reads_numbers_as_text(left):
                if isinstance(storage_type(left, dialect), Enum):
                    return f"`{one}` compares the names of an Enum, as which {left} is kept, with a number: give it one of the Enum"
                if one.operator in ORDERS:
                    return (
                        f"`{one}` goes by the letters of text and of numbers: write cast(..., Integer) around the text, or give it a text"
                    )
                if is_boolean(value):
                    return f"`{one}` compares text with 1 or 0, as a truth is kept there: give it the text that you mean"
                continue  # SQLite converts the number to text, so the comparison has the result that is meant
            return f"`{one}` compares text with a number, which is less than any text: write cast(..., Integer) around the text"
    return None


def check_number_with_text(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared_sides(one):
        flag = (isinstance(left, Column) and isinstance(left.type, Boolean)) or is_part_of_json(left, Boolean)
        number = (isinstance(left, Column) and isinstance(left.type, NUMBERS)) or is_part_of_json(left, NUMBERS)
        if not (flag or number or is_computed_number(left, dialect)):
            continue
        for bound in alternatives(right):
            for value in look.bound_values(bound):
                if flag and isinstance(value, int | float | Decimal) and value not in (0, 1):
                    return f"`{one}` compares {left}, kept as 1 or 0, with {value!r}, which is neither: give it True or False"
                if not isinstance(value, str) or not isinstance(bound.type, (String, NullType, *NUMBERS, Boolean)):
                    continue
                if not reads_text_as_numbers(left):
                    return f"`{one}` compares a number with the text {value!r}, which is more than any number: give it a number"
                if _is_numeral(value):
                    continue
                if flag:
                    return f"`{one}` compares {left}, kept as 1 or 0, with the text {value!r}, which is neither: give it True or False"
                return f"`{one}` compares the numbers of {left} with the text {value!r}, which is none of them: give it a number"
    return None


def _is_numeral(words: str) -> bool:
    try:
        return not isnan(float(words))
    except ValueError:
        return False


def check_enum_order(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared_sides(one, ORDERS):
        kind = underlying_type(left.type, dialect)
        if not (isinstance(left, Column) and isinstance(kind, Enum) and kind.native_enum):
            continue
        labels = kind.enums
        for value in (value for bound in alternatives(right) for value in look.bound_values(bound)):
            label = getattr(value, "name", value) if value not in labels else value
            if label in labels and {*labels[: labels.index(label)]} != {other for other in labels if other < label}:
                return f"`{one}` goes by the letters of the names, and not by their order in the Enum: write {left}.in_([...])"
    return None


def check_decimal_arithmetic(one: Any, dialect: Dialect) -> str | None:
    """Return why arithmetic with Numeric goes wrong; None where it does not.

    SQLite computes with floats, so that a result is rarely exactly equal to the number that is meant. Its operator % computes with integers
    only.
    """
    if getattr(one, "operator", None) is operators.mod and any(
        isinstance(storage_type(side, dialect), Numeric | Float) for side in arithmetic_operands(one)
    ):
        return f"`{one}` is computed with whole numbers alone: keep the number as an integer, as of cents"
    for left, _ in compared_sides(one, SAME | AMONG):
        if _computes_decimals(left, dialect):
            return (
                f"`{one}` compares the result of arithmetic with floats, as which Numeric is kept, so that it is seldom equal: write"
                " func.round(..., places) around both, or keep the number as an integer"
            )
    return None


def _computes_decimals(side: Any, dialect: Dialect) -> bool:
    inside = arithmetic_operands(side) or (list(side.clauses) if function_name(side) in SUMS else [])
    return any(_is_decimal_column(part, dialect) or _computes_decimals(unwrap_expression(part), dialect) for part in inside)


def _is_decimal_column(side: Any, dialect: Dialect) -> bool:
    kind = storage_type(side, dialect)
    return isinstance(unwrap_expression(side), Column) and isinstance(kind, Numeric) and not isinstance(kind, Float)


def check_cast_to_text(one: Any, dialect: Dialect) -> str | None:
    """Return why comparing a value that is cast to text goes wrong; None where it does not.

    For some types SQLite's text of a value is not the text that PostgreSQL and Python give.
    """
    for left, right in compared_sides(one):
        if not (
            isinstance(left, Cast) and isinstance(left.type, String) and isinstance(storage_type(left.clause, dialect), _OF_OTHER_TEXTS)
        ):
            continue
        for value in (value for bound in alternatives(right) for value in look.bound_values(bound)):
            if isinstance(value, str):
                kept = unwrap_expression(left.clause)
                return f"`{one}` compares {value!r} with the text by which {kept} is kept there: compare it without a cast"
    return None


def check_value_fits_type(one: Any, dialect: Dialect) -> str | None:
    """Return why the query of a clause would fail on every database: the clause compares a column with a value that the column's type
    refuses. Return None if the type accepts all values.
    """
    for _, right in compared_sides(one):
        for bound in alternatives(right):
            for value in look.bound_values(bound):
                error = None if value is None else convert_for_driver(bound.type, value, dialect)
                if isinstance(error, Exception):
                    return f"`{one}` cannot be asked with {value!r} ({type(error).__name__}: {error}): give it a value of the column's type"
    return None
