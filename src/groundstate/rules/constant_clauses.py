"""Finds clauses of the form `column == constant`, and decides without a query whether new values make such a clause false. Pure."""

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


def constants_by_attribute(clauses: Sequence[ColumnElement[bool]], mapper: Mapper[Any]) -> dict[str, Any]:
    """Return, for the clauses of the form `column == constant`, a mapping from the name of the attribute to the constant.

    A column is left out if its type may store two different constants as one value.
    """
    found: dict[str, Any] = {}
    by_column = {column: property_.key for property_ in mapper.column_attrs for column in property_.columns}
    for clause in clauses:
        if not isinstance(clause, BinaryExpression) or clause.operator is not operators.eq:
            continue
        left, right = clause.left, clause.right
        if isinstance(left, Column) and isinstance(right, BindParameter) and type(right.value) in _COMPARABLE:
            name = by_column.get(left)
            if name is not None and _is_stored_unchanged(left.type, _COMPARABLE[type(right.value)]):
                found[name] = right.value
    return found


def is_stored_unchanged(kind: Any, wanted: type) -> bool:
    """Return whether a column type certainly stores values of the Python type `wanted` unchanged. A user's own type may change them."""
    return wanted in _COMPARABLE and _is_stored_unchanged(kind, _COMPARABLE[wanted])


def _is_stored_unchanged(kind: Any, wanted: type) -> bool:
    while isinstance(kind, TypeDecorator):
        own: type[TypeDecorator[Any]] = type(kind)
        if (own.process_bind_param, own.bind_processor, own.bind_expression) != _NOTHING_OF_ITS_OWN:
            return False
        kind = kind.impl_instance
    plain: Any = kind
    if not type(kind).__module__.startswith("sqlalchemy.") or not isinstance(kind, wanted):
        return False
    return all(_is_stored_unchanged(variant, wanted) for variant in plain._variant_mapping.values())  # noqa: SLF001  # SQLAlchemy has no public attribute for it


_NOTHING_OF_ITS_OWN = (TypeDecorator.process_bind_param, TypeDecorator.bind_processor, TypeDecorator.bind_expression)


def makes_a_clause_false(demanded: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether new values of a record certainly make a clause of the form `column == constant` false.

    demanded: the constants by attribute. new: the new values by attribute. A value is compared only with a constant of its own type.
    """
    for name, constant in demanded.items():
        if name in new:
            value = new[name]
            if value is None or (type(value) is type(constant) and _differ_under_any_collation(value, constant)):
                return True
    return False


def _differ_under_any_collation(one: Any, other: Any) -> bool:
    """Return whether the values are unequal under every collation that the column may have. Some collations ignore case, accents, spaces
    or punctuation.
    """
    if type(one) is str:
        return one != other and _letters_and_digits(one) != _letters_and_digits(other)
    return bool(one != other)


@lru_cache(maxsize=4096)
def _letters_and_digits(text: str) -> str:
    """Return the text's letters and digits, in lower case and without accents."""
    return "".join(letter for letter in normalize("NFKD", text).casefold() if letter.isalnum())
