"""Finds comparisons of JSON whose result on SQLite is not what is meant, because SQLite compares the JSON as text. Pure."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, Cast, Null
from sqlalchemy.sql.schema import Column
from sqlalchemy.sql.sqltypes import JSON, String

from groundstate.rules import sql_inspect as look
from groundstate.rules.sqlite_operand import (
    AMONG,
    ORDERS,
    SAME,
    alternatives,
    compared_sides,
    function_name,
    is_in_json,
    is_number,
    is_part_of_json,
    is_text,
    reads_text_as_numbers,
    storage_type,
    unwrap_expression,
)

_OF_LETTERS = {
    operators.like_op, operators.not_like_op, operators.ilike_op, operators.not_ilike_op, operators.startswith_op,
    operators.not_startswith_op, operators.endswith_op, operators.not_endswith_op, operators.contains_op, operators.not_contains_op,
    operators.istartswith_op, operators.not_istartswith_op, operators.iendswith_op, operators.not_iendswith_op,
    operators.icontains_op, operators.not_icontains_op, operators.regexp_match_op, operators.not_regexp_match_op,
}  # fmt: skip


def check_whole_json_comparison(one: Any, dialect: Dialect) -> str | None:
    """Return why comparing a whole JSON column is wrong; None where it is not.

    SQLite compares the texts of the JSON. PostgreSQL can compare JSONB, but not JSON.
    """
    for left, right in compared_sides(one, SAME | AMONG | ORDERS):
        if not (isinstance(left, Column) and isinstance(storage_type(left, dialect), JSON)):
            continue
        if dialect.name != "sqlite":
            if storage_type(left, dialect).__visit_name__ == "JSONB":  # compared by name, so that apps on SQLite do not import JSONB
                continue
            return (
                f"`{one}` compares JSON, for which PostgreSQL has no operator: map {left} as JSONB, or compare what is in it, as in"
                f" {left}['key'].as_string() == 'x'"
            )
        if one.operator in ORDERS or any(_has_more_than_one_text(other, dialect) for other in alternatives(right)):
            return (
                f"on SQLite `{one}` goes by the letters of JSON text, so that the same object in another order or spacing is another one:"
                f" compare what is in it, as in {left}['key'].as_string() == 'x'"
            )
    return None


def _has_more_than_one_text(other: Any, dialect: Dialect) -> bool:
    """Return whether the same JSON may be stored as a text other than this side's.

    This is so if the side is a column, or a value that Python writes as JSON with a space.
    """
    if isinstance(other, BindParameter):
        return isinstance(storage_type(other, dialect), JSON) and any(map(_has_spaces_as_json, look.bound_values(other)))
    return isinstance(other, Column) and isinstance(storage_type(other, dialect), JSON)


def check_json_with_other_types(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared_sides(one):
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
            wrong = next((other for other in others if _never_equals_json_text(other, dialect)), None)
        else:
            wrong = None
        if wrong is None and not reads_text_as_numbers(right) and others and all(is_number(other, dialect) for other in others):
            wrong = right
        if wrong is not None:
            values = list(look.bound_values(wrong))
            return (
                f"`{one}` compares JSON text with {values[0] if values else wrong!s}, which it is never equal to: say what is in it, by"
                " .as_integer(), .as_float(), .as_boolean() or .as_string(), and compare the parts of lists and objects"
            )
    return None


def _never_equals_json_text(other: Any, dialect: Dialect) -> bool:
    """Return whether this side never equals JSON text.

    This is so if the side is a plain text, without the quotes that a string has in JSON, or a value for which SQLite writes another JSON
    text.
    """
    if isinstance(other, BindParameter):
        return not isinstance(other.type, JSON) or any(map(_has_spaces_as_json, look.bound_values(other)))
    return (
        (isinstance(other, look.CONSTANTS) and not isinstance(other, Null))
        or is_text(other, dialect)
        or function_name(other) == "json_extract"
    )


def _has_spaces_as_json(value: object) -> bool:
    """Return whether Python writes the value as JSON with a space, as in [1, 2]. SQLite writes no spaces in JSON."""
    if isinstance(value, dict):
        return bool(value)
    return isinstance(value, list | tuple) and (len(value) > 1 or any(map(_has_spaces_as_json, value)))


def check_json_boolean_as_word(one: Any, _dialect: Dialect) -> str | None:
    """Return why comparing .as_string() with 'true' or 'false' goes wrong, or None. SQLite returns a JSON boolean as 1 or 0."""
    for left, right in compared_sides(one, SAME | AMONG):
        if not is_part_of_json(left, String):
            continue
        for value in (value for bound in alternatives(right) for value in look.bound_values(bound)):
            if value in ("true", "false"):
                return f"`{one}` compares JSON's {value}, which .as_string() gives as 1 or 0, with its word: write .as_boolean()"
    return None


def check_like_on_json(one: Any, _dialect: Dialect) -> str | None:
    """Return why LIKE, or a similar operator, goes wrong on JSON text, or None. In JSON text a string has quotes around it."""
    if isinstance(one, BinaryExpression) and one.operator in _OF_LETTERS and is_in_json(unwrap_expression(one.left)):
        return f"`{one}` looks at JSON text, in which a text has quotes around it: write {unwrap_expression(one.left)}.as_string()"
    return None


def check_json_cast_to_text(one: Any, _dialect: Dialect) -> str | None:
    """Return why comparing JSON that is cast to text goes wrong, on any database; None where it does not. A string in JSON keeps its
    quotes.
    """
    for left, right in compared_sides(one, SAME | AMONG):
        if not (isinstance(left, Cast) and isinstance(left.type, String) and is_in_json(unwrap_expression(left.clause))):
            continue
        for value in (value for bound in alternatives(right) for value in look.bound_values(bound)):
            if isinstance(value, str) and not _is_json(value):
                return f"`{one}` compares {value!r} with JSON text, in which a text has quotes around it: write .as_string() and no cast"
    return None


def _is_json(words: str) -> bool:
    try:
        json.loads(words)
    except ValueError:
        return False
    return True
