"""Finds clauses of the form `column == constant`, and decides without a query whether new values make one of them false. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from unicodedata import normalize

from sqlalchemy import Boolean, ColumnElement, Integer, String, TypeDecorator
from sqlalchemy.orm import Mapper
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter
from sqlalchemy.sql.schema import Column

_COMPARABLE: Mapping[type, type] = {str: String, int: Integer, bool: Boolean}


def constants(clauses: Sequence[ColumnElement[bool]], mapper: Mapper[Any]) -> dict[str, Any]:
    """Return a mapping from attribute to the constant that a clause demands of it, for those clauses where this is certain."""
    found: dict[str, Any] = {}
    by_column = {column: property_.key for property_ in mapper.column_attrs for column in property_.columns}
    for clause in clauses:
        if not isinstance(clause, BinaryExpression) or clause.operator is not operators.eq:
            continue
        left, right = clause.left, clause.right
        if isinstance(left, Column) and isinstance(right, BindParameter) and type(right.value) in _COMPARABLE:
            name = by_column.get(left)
            if name is not None and _stored_as_it_is(left.type, _COMPARABLE[type(right.value)]):
                found[name] = right.value
    return found


def stored_as_it_is(kind: Any, wanted: type) -> bool:
    """Return whether two different values of type `wanted` are stored as different ones: a user's type may store them as one, or change
    NULL.
    """
    return wanted in _COMPARABLE and _stored_as_it_is(kind, _COMPARABLE[wanted])


def _stored_as_it_is(kind: Any, wanted: type) -> bool:
    while isinstance(kind, TypeDecorator):
        own: type[TypeDecorator[Any]] = type(kind)
        if (own.process_bind_param, own.bind_processor, own.bind_expression) != _NOTHING_OF_ITS_OWN:
            return False
        kind = kind.impl_instance
    plain: Any = kind
    if not type(kind).__module__.startswith("sqlalchemy.") or not isinstance(kind, wanted):
        return False
    return all(_stored_as_it_is(variant, wanted) for variant in plain._variant_mapping.values())  # noqa: SLF001  # not public


_NOTHING_OF_ITS_OWN = (TypeDecorator.process_bind_param, TypeDecorator.bind_processor, TypeDecorator.bind_expression)


def falsifies(demanded: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether new values of a record certainly make one of the clauses false. Only values of the very same type are compared."""
    for name, constant in demanded.items():
        if name in new:
            value = new[name]
            if value is None or (type(value) is type(constant) and _differ(value, constant)):
                return True
    return False


def _differ(one: Any, other: Any) -> bool:
    """Return whether the values are unequal under any collation of the column: some ignore case, accents, spaces or punctuation."""
    if type(one) is str:
        return one != other and _bare(one) != _bare(other)
    return bool(one != other)


@lru_cache(maxsize=4096)
def _bare(text: str) -> str:
    """Return only the letters and digits of the text, without case and accents."""
    return "".join(letter for letter in normalize("NFKD", text).casefold() if letter.isalnum())
