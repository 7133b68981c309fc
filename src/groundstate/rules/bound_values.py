"""Values in a condition that no driver can be given: their type raises for them, or they are integers that no column can hold. Pure.

Each is put to its type as the database's dialect would do it. Nothing is asked of what is made late, or of what the type takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Dialect, Integer
from sqlalchemy.sql.elements import BindParameter

from groundstate.rules import sql_inspect as look
from groundstate.rules.specs import ReactionSpec

_BITS = 63


def of_reaction(spec: ReactionSpec, dialect: Dialect) -> str | None:
    """Why the database could not be asked for this reaction, with the cure; None where nothing is surely wrong."""
    found = _first(spec.clauses, dialect)
    if found is None and spec.due is not None and spec.due.attribute is None:
        found = _first([spec.due.base], dialect)
    return None if found is None else f"reaction {spec.name}: {found}"


def refused(expression: Any, dialect: Dialect) -> str | None:
    """The same of one expression."""
    for one in look.parts(expression):
        if isinstance(one, BindParameter):
            why = _of_values(one, dialect)
            if why is not None:
                return why
    return None


def _first(expressions: Iterable[Any], dialect: Dialect) -> str | None:
    return next((why for one in expressions if (why := refused(one, dialect)) is not None), None)


def _of_values(parameter: BindParameter[Any], dialect: Dialect) -> str | None:
    kind: Any = parameter.type
    process = kind.dialect_impl(dialect).bind_processor(dialect)
    for value in look.bound(parameter):
        try:
            given = value if process is None else process(value)
        except Exception as error:  # noqa: BLE001  # a type of the user's
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
