"""Comparisons of what is in JSON, which SQLite sees as JSON text, that it answers otherwise than they are meant. Pure."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, Cast, Null
from sqlalchemy.sql.sqltypes import JSON, String

from groundstate.rules import clause as look
from groundstate.rules.operand import (
    AMONG,
    ORDERS,
    SAME,
    alternatives,
    compared,
    function_name,
    inner,
    is_in_json,
    is_number,
    is_part_of_json,
    is_text,
    reads_text_as_numbers,
)

_OF_LETTERS = {
    operators.like_op, operators.not_like_op, operators.ilike_op, operators.not_ilike_op, operators.startswith_op,
    operators.not_startswith_op, operators.endswith_op, operators.not_endswith_op, operators.contains_op, operators.not_contains_op,
    operators.istartswith_op, operators.not_istartswith_op, operators.iendswith_op, operators.not_iendswith_op,
    operators.icontains_op, operators.not_icontains_op, operators.regexp_match_op, operators.not_regexp_match_op,
}  # fmt: skip


def compared_with_others(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared(one):
        if not any(map(is_in_json, alternatives(left))):
            continue
        others = list(alternatives(right))
        if is_in_json(left):
            if isinstance(right, Null):
                return f"`{one}` never finds NULL, since JSON's null is the text 'null' there: write .as_string().is_(None)"
            if one.operator in ORDERS and any(map(is_in_json, others)):
                return (
                    f"`{one}` goes by the letters of JSON text: say what is in both, by .as_integer(), .as_float(), .as_boolean() or"
                    " .as_string()"
                )
            wrong = next((other for other in others if _never_in_json(other, dialect)), None)
        else:
            wrong = None
        if wrong is None and not reads_text_as_numbers(right) and others and all(is_number(other, dialect) for other in others):
            wrong = right
        if wrong is not None:
            values = list(look.bound(wrong))
            return (
                f"`{one}` compares JSON text with {values[0] if values else wrong!s}, which it is never equal to: say what is in it, by"
                " .as_integer(), .as_float(), .as_boolean() or .as_string(), and compare the parts of lists and objects"
            )
    return None


def _never_in_json(other: Any, dialect: Dialect) -> bool:
    """Whether it is a constant that is not written as SQLite writes what is in JSON, or a text, which it writes in quotes."""
    if isinstance(other, BindParameter):
        return not isinstance(other.type, JSON) or any(map(_has_spaces, look.bound(other)))
    return (
        (isinstance(other, look.CONSTANTS) and not isinstance(other, Null))
        or is_text(other, dialect)
        or function_name(other) == "json_extract"
    )


def _has_spaces(value: object) -> bool:
    """Whether Python writes it as JSON with a space in it, which SQLite does not."""
    if isinstance(value, dict):
        return bool(value)
    return isinstance(value, list | tuple) and (len(value) > 1 or any(map(_has_spaces, value)))


def word_of_truth(one: Any, _dialect: Dialect) -> str | None:
    """What as_string() gives of a truth that is in JSON, which is its number."""
    for left, right in compared(one, SAME | AMONG):
        if not is_part_of_json(left, String):
            continue
        for value in (value for bound in alternatives(right) for value in look.bound(bound)):
            if value in ("true", "false"):
                return f"`{one}` compares JSON's {value}, which .as_string() gives as 1 or 0, with its word: write .as_boolean()"
    return None


def within_json(one: Any, _dialect: Dialect) -> str | None:
    """LIKE and its kin, which see the quotes around a text that is in JSON."""
    if isinstance(one, BinaryExpression) and one.operator in _OF_LETTERS and is_in_json(inner(one.left)):
        return f"`{one}` looks at JSON text, in which a text has quotes around it: write {inner(one.left)}.as_string()"
    return None


def json_as_text(one: Any, _dialect: Dialect) -> str | None:
    """JSON that is cast to text keeps the quotes of a text that is in it, on each database."""
    for left, right in compared(one, SAME | AMONG):
        if not (isinstance(left, Cast) and isinstance(left.type, String) and is_in_json(inner(left.clause))):
            continue
        for value in (value for bound in alternatives(right) for value in look.bound(bound)):
            if isinstance(value, str) and not _is_json(value):
                return f"`{one}` compares {value!r} with JSON text, in which a text has quotes around it: write .as_string() and no cast"
    return None


def _is_json(words: str) -> bool:
    try:
        json.loads(words)
    except ValueError:
        return False
    return True
