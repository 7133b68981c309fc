"""Finds which constants, or NULL, a clause demands of one column, and checks whether known values meet such demands.

A clause of any other kind yields no demand. `demands_of_clauses` also returns whether every clause yielded a demand. The functions are
pure.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Boolean, ColumnElement, Enum
from sqlalchemy.orm import Mapper
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, False_, Null, True_, UnaryExpression
from sqlalchemy.sql.schema import Column

from groundstate.rules import constant_clauses
from groundstate.rules import sql_inspect as look


class _UnnamedValue(enum.Enum):
    OTHER = enum.auto()
    ANY = enum.auto()


OTHER = _UnnamedValue.OTHER  # stands for any value that is not NULL and equals none of the constants in the demands
ANY = _UnnamedValue.ANY  # stands for a value about which nothing is known

Value = tuple[type, Any]  # pair (type of a constant, constant): the type tells 1 from True, which are equal in Python


@dataclass(frozen=True)
class Demand:
    """A Demand says that one column has one of the `allowed` values or, if `allowed` is None, has none of the `excluded` values."""

    attribute: str
    allowed: frozenset[Value] | None
    excluded: frozenset[Value] = frozenset()

    def is_met_by(self, value: Any) -> bool | None:
        """Return whether the value meets the demand; None for the value ANY, about which nothing is known."""
        if value is ANY:
            return None
        if value is OTHER:
            return self.allowed is None
        one = (type(value), value)
        return one not in self.excluded if self.allowed is None else one in self.allowed

    def implies(self, other: Demand) -> bool:
        """Return whether every value that meets this demand also meets `other`."""
        if self.attribute != other.attribute:
            return False
        if self.allowed is None:
            return other.allowed is None and other.excluded <= self.excluded
        return not (self.allowed & other.excluded) if other.allowed is None else self.allowed <= other.allowed


def demand_of_clause(clause: ColumnElement[bool], mapper: Mapper[Any]) -> Demand | None:
    """Return what this clause demands of one column.

    Return None if the clause does not compare one column with constants, or the column's type may store two different values as one.
    """
    if isinstance(clause, Column):
        return _demand_of_comparison(clause, mapper, allowed=[True])
    if isinstance(clause, UnaryExpression):
        if clause.operator is operators.is_true:
            return _demand_of_comparison(clause.element, mapper, allowed=[True])
        return (
            _demand_of_comparison(clause.element, mapper, allowed=[False])
            if clause.operator in (operators.is_false, operators.inv)
            else None
        )
    if not isinstance(clause, BinaryExpression):
        return None
    known, values = _constants_on_right_side(clause.right)
    if not known:
        return None
    match clause.operator:
        case operators.eq | operators.in_op:
            return _demand_of_comparison(clause.left, mapper, allowed=[one for one in values if one is not None])
        case operators.is_:
            return _demand_of_comparison(clause.left, mapper, allowed=values)
        case operators.ne | operators.not_in_op:
            return _demand_of_comparison(clause.left, mapper, excluded=[*values, None])
        case operators.is_not | operators.is_distinct_from:
            return _demand_of_comparison(clause.left, mapper, excluded=values)
        case _:
            return None


def demands_of_clauses(clauses: Sequence[ColumnElement[bool]], mapper: Mapper[Any]) -> tuple[list[Demand], bool]:
    """Return a pair (list of the demands that the clauses yield, whether every clause yielded a demand)."""
    found = [demand_of_clause(one, mapper) for one in clauses]
    return [one for one in found if one is not None], None not in found


def as_demand_value(mapper: Mapper[Any], attribute: str, value: Any) -> Any:
    """Return an attribute's value in the form that a Demand uses. For the name of an enum member this is the member, for anything else the
    value itself.
    """
    column = mapper.column_attrs[attribute].columns[0] if attribute in mapper.column_attrs else None
    return value if column is None or value is None or value is OTHER or value is ANY else _as_enum_member(column.type, value)


def _constants_on_right_side(right: Any) -> tuple[bool, list[Any]]:
    """Return a pair (whether the right side of a comparison consists of constants only, list of its constants)."""
    match right:
        case Null():
            return True, [None]
        case True_():
            return True, [True]
        case False_():
            return True, [False]
        case BindParameter():
            values = list(look.bound_values(right))
            return bool(values) and all(isinstance(one, str | int | bool | enum.Enum) for one in values), values
    return False, []


def _demand_of_comparison(
    left: Any, mapper: Mapper[Any], *, allowed: Sequence[Any] | None = None, excluded: Sequence[Any] = ()
) -> Demand | None:
    by_column: Mapping[Any, str] = {column: one.key for one in mapper.column_attrs for column in one.columns}
    name = by_column.get(left) if isinstance(left, Column) else None
    if name is None or not all(_is_stored_distinctly(left.type, one) for one in [*(allowed or ()), *excluded]):
        return None

    def values(given: Sequence[Any]) -> frozenset[Value]:
        return frozenset((type(one), one) for one in (None if one is None else _as_enum_member(left.type, one) for one in given))

    return Demand(name, None if allowed is None else values(allowed), values(excluded))


def _is_stored_distinctly(kind: Any, value: Any) -> bool:
    """Return whether a column of this type surely stores this value differently from every other constant."""
    if value is None:
        return True
    if isinstance(kind, Enum):
        return _as_enum_member(kind, value) in (_enum_members(kind) or {one: one for one in kind.enums}).values()
    if isinstance(value, bool):
        return isinstance(kind, Boolean)
    return isinstance(value, str | int) and not isinstance(value, enum.Enum) and constant_clauses.is_stored_unchanged(kind, type(value))


def _enum_members(kind: Enum) -> Mapping[str, Any]:
    """Return the members of an Enum type by name; return an empty mapping for an Enum of plain texts."""
    of_class: Any = kind.enum_class
    return {} if of_class is None else of_class.__members__


def _as_enum_member(kind: Any, value: Any) -> Any:
    if isinstance(kind, Enum) and isinstance(value, str) and not isinstance(value, enum.Enum):
        return _enum_members(kind).get(value, value)
    return value
