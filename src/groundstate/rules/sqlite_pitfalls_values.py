"""Finds comparisons of numbers, texts and booleans that SQLite evaluates differently from what is meant, since one side converts the other.
Pure.
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
    compared,
    function_name,
    inner,
    is_computed_number,
    is_number,
    is_part_of_json,
    is_text_in_each_case,
    is_truth,
    kept_as,
    operands,
    reads_numbers_as_text,
    reads_text_as_numbers,
    unwrapped,
)
from groundstate.rules.stored_values import converted

_OF_OTHER_TEXTS = (Uuid, Boolean, Numeric, Float, DateTime, Time, Interval)


def text_with_number(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared(one):
        if not is_text_in_each_case(left, dialect) or reads_text_as_numbers(right):
            continue
        for value in alternatives(right):
            if not is_number(value, dialect):
                continue
            if reads_numbers_as_text(left):
                if isinstance(kept_as(left, dialect), Enum):
                    return f"`{one}` compares the names of an Enum, as which {left} is kept, with a number: give it one of the Enum"
                if one.operator in ORDERS:
                    return (
                        f"`{one}` goes by the letters of text and of numbers: write cast(..., Integer) around the text, or give it a text"
                    )
                if is_truth(value):
                    return f"`{one}` compares text with 1 or 0, as a truth is kept there: give it the text that you mean"
                continue  # SQLite converts the number to text here, as is meant
            return f"`{one}` compares text with a number, which is less than any text: write cast(..., Integer) around the text"
    return None


def number_with_text(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared(one):
        flag = (isinstance(left, Column) and isinstance(left.type, Boolean)) or is_part_of_json(left, Boolean)
        number = (isinstance(left, Column) and isinstance(left.type, NUMBERS)) or is_part_of_json(left, NUMBERS)
        if not (flag or number or is_computed_number(left, dialect)):
            continue
        for bound in alternatives(right):
            for value in look.bound(bound):
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


def enum(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared(one, ORDERS):
        kind = unwrapped(left.type, dialect)
        if not (isinstance(left, Column) and isinstance(kind, Enum) and kind.native_enum):
            continue
        labels = kind.enums
        for value in (value for bound in alternatives(right) for value in look.bound(bound)):
            label = getattr(value, "name", value) if value not in labels else value
            if label in labels and {*labels[: labels.index(label)]} != {other for other in labels if other < label}:
                return f"`{one}` goes by the letters of the names, and not by their order in the Enum: write {left}.in_([...])"
    return None


def decimals(one: Any, dialect: Dialect) -> str | None:
    """Return why arithmetic with Numeric does not give what is meant: SQLite computes with floats, which are rarely equal, and its % takes
    integers only.
    """
    if getattr(one, "operator", None) is operators.mod and any(
        isinstance(kept_as(side, dialect), Numeric | Float) for side in operands(one)
    ):
        return f"`{one}` is computed with whole numbers alone: keep the number as an integer, as of cents"
    for left, _ in compared(one, SAME | AMONG):
        if _computes_decimals(left, dialect):
            return (
                f"`{one}` compares the result of arithmetic with floats, as which Numeric is kept, so that it is seldom equal: write"
                " func.round(..., places) around both, or keep the number as an integer"
            )
    return None


def _computes_decimals(side: Any, dialect: Dialect) -> bool:
    inside = operands(side) or (list(side.clauses) if function_name(side) in SUMS else [])
    return any(_is_decimal(part, dialect) or _computes_decimals(inner(part), dialect) for part in inside)


def _is_decimal(side: Any, dialect: Dialect) -> bool:
    kind = kept_as(side, dialect)
    return isinstance(inner(side), Column) and isinstance(kind, Numeric) and not isinstance(kind, Float)


def cast_to_text(one: Any, dialect: Dialect) -> str | None:
    """Return why comparing a value cast to text goes wrong: SQLite's text of it is neither PostgreSQL's nor Python's."""
    for left, right in compared(one):
        if not (isinstance(left, Cast) and isinstance(left.type, String) and isinstance(kept_as(left.clause, dialect), _OF_OTHER_TEXTS)):
            continue
        for value in (value for bound in alternatives(right) for value in look.bound(bound)):
            if isinstance(value, str):
                return f"`{one}` compares {value!r} with the text by which {inner(left.clause)} is kept there: compare it without a cast"
    return None


def not_taken(one: Any, dialect: Dialect) -> str | None:
    """Return why a value cannot be bound, on any database: its type does not accept it, and the statement would raise."""
    for _, right in compared(one):
        for bound in alternatives(right):
            for value in look.bound(bound):
                error = None if value is None else converted(bound.type, value, dialect)
                if isinstance(error, Exception):
                    return f"`{one}` cannot be asked with {value!r} ({type(error).__name__}: {error}): give it a value of the column's type"
    return None
