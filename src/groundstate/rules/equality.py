"""Clauses of the form `column == constant`: what new values prove false or possible without asking the database. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from unicodedata import normalize

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Mapper
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter
from sqlalchemy.sql.schema import Column

_COMPARABLE = (str, int, bool)


def constants(clauses: Sequence[ColumnElement[bool]], mapper: Mapper[Any]) -> dict[str, Any]:
    """Attribute -> the constant that a clause demands of it, for those clauses of which this can be said with certainty."""
    found: dict[str, Any] = {}
    by_column = {column: property_.key for property_ in mapper.column_attrs for column in property_.columns}
    for clause in clauses:
        if not isinstance(clause, BinaryExpression) or clause.operator is not operators.eq:
            continue
        left, right = clause.left, clause.right
        if isinstance(left, Column) and isinstance(right, BindParameter) and type(right.value) in _COMPARABLE:
            name = by_column.get(left)
            if name is not None:
                found[name] = right.value
    return found


def falsifies(demanded: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether new values of a record surely make one of the clauses false. Only values of the very same type are compared."""
    for name, constant in demanded.items():
        if name in new:
            value = new[name]
            if value is None or (type(value) is type(constant) and _differ(value, constant)):
                return True
    return False


def _differ(one: Any, other: Any) -> bool:
    """Whether they are unequal by whatever collation the column has: some ignore case, accents, spaces or punctuation."""
    if type(one) is str:
        return one != other and _bare(one) != _bare(other)
    return bool(one != other)


@lru_cache(maxsize=4096)
def _bare(text: str) -> str:
    """The letters and digits alone, without case and accents."""
    return "".join(letter for letter in normalize("NFKD", text).casefold() if letter.isalnum())
