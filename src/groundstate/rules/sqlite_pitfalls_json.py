"""Finds comparisons of JSON content, which SQLite sees as JSON text, that it evaluates differently from what is meant. Pure."""

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
    compared,
    function_name,
    inner,
    is_in_json,
    is_number,
    is_part_of_json,
    is_text,
    kept_as,
    reads_text_as_numbers,
)

_OF_LETTERS = {
    operators.like_op, operators.not_like_op, operators.ilike_op, operators.not_ilike_op, operators.startswith_op,
    operators.not_startswith_op, operators.endswith_op, operators.not_endswith_op, operators.contains_op, operators.not_contains_op,
    operators.istartswith_op, operators.not_istartswith_op, operators.iendswith_op, operators.not_iendswith_op,
    operators.icontains_op, operators.not_icontains_op, operators.regexp_match_op, operators.not_regexp_match_op,
}  # fmt: skip


def whole(one: Any, dialect: Dialect) -> str | None:
    """Refuse to compare a column of JSON as a whole: SQLite compares its text, and PostgreSQL compares JSONB alone."""
    for left, right in compared(one, SAME | AMONG | ORDERS):
        if not (isinstance(left, Column) and isinstance(kept_as(left, dialect), JSON)):
            continue
        if dialect.name != "sqlite":
            if kept_as(left, dialect).__visit_name__ == "JSONB":  # its class is not imported for apps on SQLite
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
    """Whether the same JSON has several texts: it is a column, or a value that Python writes with a space in it."""
    if isinstance(other, BindParameter):
        return isinstance(kept_as(other, dialect), JSON) and any(map(_has_spaces, look.bound(other)))
    return isinstance(other, Column) and isinstance(kept_as(other, dialect), JSON)


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
    """Return whether the other side never equals JSON text: a constant not written as SQLite writes JSON, or a text, which SQLite puts in
    quotes.
    """
    if isinstance(other, BindParameter):
        return not isinstance(other.type, JSON) or any(map(_has_spaces, look.bound(other)))
    return (
        (isinstance(other, look.CONSTANTS) and not isinstance(other, Null))
        or is_text(other, dialect)
        or function_name(other) == "json_extract"
    )


def _has_spaces(value: object) -> bool:
    """Return whether Python writes the value as JSON with a space in it, which SQLite does not."""
    if isinstance(value, dict):
        return bool(value)
    return isinstance(value, list | tuple) and (len(value) > 1 or any(map(_has_spaces, value)))


def word_of_truth(one: Any, _dialect: Dialect) -> str | None:
    """Return why comparing .as_string() with 'true' or 'false' goes wrong: SQLite gives a JSON boolean as 1 or 0."""
    for left, right in compared(one, SAME | AMONG):
        if not is_part_of_json(left, String):
            continue
        for value in (value for bound in alternatives(right) for value in look.bound(bound)):
            if value in ("true", "false"):
                return f"`{one}` compares JSON's {value}, which .as_string() gives as 1 or 0, with its word: write .as_boolean()"
    return None


def within_json(one: Any, _dialect: Dialect) -> str | None:
    """Return why LIKE and similar operators go wrong on JSON text: they see the quotes around a text in it."""
    if isinstance(one, BinaryExpression) and one.operator in _OF_LETTERS and is_in_json(inner(one.left)):
        return f"`{one}` looks at JSON text, in which a text has quotes around it: write {inner(one.left)}.as_string()"
    return None


def json_as_text(one: Any, _dialect: Dialect) -> str | None:
    """Return why comparing JSON that is cast to text goes wrong on each database: a text in it keeps its quotes."""
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
