"""Finds values in a condition that cannot be sent to the database: their column type raises for them, or they exceed 64 bits.

Each value is converted as the database's dialect would convert it. Values that are computed only when the query runs are not checked.
The functions are pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Dialect, Integer
from sqlalchemy.sql.elements import BindParameter

from groundstate.rules import sql_inspect as look
from groundstate.rules.specs import ReactionSpec

_BITS = 63


def reason_to_refuse_reaction(spec: ReactionSpec, dialect: Dialect) -> str | None:
    """Return why the reaction's query would fail for a value in it, as a text that names the cure; None where no value is surely wrong."""
    found = _first_reason_to_refuse(spec.clauses, dialect)
    if found is None and spec.due is not None and spec.due.attribute is None:
        found = _first_reason_to_refuse([spec.due.base], dialect)
    return None if found is None else f"reaction {spec.name}: {found}"


def reason_to_refuse_expression(expression: Any, dialect: Dialect) -> str | None:
    """Return why a query with this expression would fail for a value in it, as a text that names the cure. Return None where no value is
    surely wrong.
    """
    for one in look.all_parts(expression):
        if isinstance(one, BindParameter):
            why = _reason_to_refuse_values(one, dialect)
            if why is not None:
                return why
    return None


def _first_reason_to_refuse(expressions: Iterable[Any], dialect: Dialect) -> str | None:
    return next((why for one in expressions if (why := reason_to_refuse_expression(one, dialect)) is not None), None)


def _reason_to_refuse_values(parameter: BindParameter[Any], dialect: Dialect) -> str | None:
    kind: Any = parameter.type
    process = kind.dialect_impl(dialect).bind_processor(dialect)
    for value in look.bound_values(parameter):
        try:
            given = value if process is None else process(value)
        except Exception as error:  # noqa: BLE001  # a column type that the user wrote may raise any exception
            raised = f"{type(error).__name__}: {error}"
            return (
                f"its condition cannot be asked with {value!r}, of the type {type(kind).__name__} ({raised}): give it a value of the"
                " column's type, or compare the column as text, as in cast(column, String)"
            )
        if _is_too_large(given, kind, dialect):
            return f"its condition cannot be asked with {value}, since integers have 64 bits: give it one between -2**63 and 2**63 - 1"
    return None


def _is_too_large(given: object, kind: Any, dialect: Dialect) -> bool:
    if not isinstance(given, int) or -(2**_BITS) <= given < 2**_BITS:
        return False
    return dialect.name == "sqlite" or isinstance(kind, Integer)
