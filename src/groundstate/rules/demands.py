"""What clauses demand of single columns, where that is a constant or NULL, and whether known values meet it. Pure.

A clause of any other form demands nothing here: who asks is told that something is left over.
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

from groundstate.rules import clause as look
from groundstate.rules import equality


class _Unsaid(enum.Enum):
    OTHER = enum.auto()
    ANY = enum.auto()


OTHER = _Unsaid.OTHER  # not NULL, and none of the constants that anybody names
ANY = _Unsaid.ANY  # nothing is known of it

Value = tuple[type, Any]  # 1 and True are two


@dataclass(frozen=True)
class Demand:
    """One column is one of these; or, where `allowed` is None, none of those."""

    attribute: str
    allowed: frozenset[Value] | None
    excluded: frozenset[Value] = frozenset()

    def met_by(self, value: Any) -> bool | None:
        """None where nobody can tell."""
        if value is ANY:
            return None
        if value is OTHER:
            return self.allowed is None
        one = (type(value), value)
        return one not in self.excluded if self.allowed is None else one in self.allowed

    def implies(self, other: Demand) -> bool:
        """Whether what meets this meets the other one."""
        if self.attribute != other.attribute:
            return False
        if self.allowed is None:
            return other.allowed is None and other.excluded <= self.excluded
        return not (self.allowed & other.excluded) if other.allowed is None else self.allowed <= other.allowed


def of(clause: ColumnElement[bool], mapper: Mapper[Any]) -> Demand | None:
    """What this clause demands of one column; None where it is of another form, or of a type that may store two values as one."""
    if isinstance(clause, Column):
        return _made(clause, mapper, allowed=[True])
    if isinstance(clause, UnaryExpression):
        if clause.operator is operators.is_true:
            return _made(clause.element, mapper, allowed=[True])
        return _made(clause.element, mapper, allowed=[False]) if clause.operator in (operators.is_false, operators.inv) else None
    if not isinstance(clause, BinaryExpression):
        return None
    known, values = _constants(clause.right)
    if not known:
        return None
    match clause.operator:
        case operators.eq | operators.in_op:
            return _made(clause.left, mapper, allowed=[one for one in values if one is not None])
        case operators.is_:
            return _made(clause.left, mapper, allowed=values)
        case operators.ne | operators.not_in_op:
            return _made(clause.left, mapper, excluded=[*values, None])
        case operators.is_not | operators.is_distinct_from:
            return _made(clause.left, mapper, excluded=values)
        case _:
            return None


def of_all(clauses: Sequence[ColumnElement[bool]], mapper: Mapper[Any]) -> tuple[list[Demand], bool]:
    """What they demand, and whether that is all that they say."""
    found = [of(one, mapper) for one in clauses]
    return [one for one in found if one is not None], None not in found


def stored(mapper: Mapper[Any], attribute: str, value: Any) -> Any:
    """A value that code sets, as demands name it: the member of an enum for its name."""
    column = mapper.column_attrs[attribute].columns[0] if attribute in mapper.column_attrs else None
    return value if column is None or value is None or value is OTHER or value is ANY else _member(column.type, value)


def _constants(right: Any) -> tuple[bool, list[Any]]:
    """Whether it is constants, and which."""
    match right:
        case Null():
            return True, [None]
        case True_():
            return True, [True]
        case False_():
            return True, [False]
        case BindParameter():
            values = list(look.bound(right))
            return bool(values) and all(isinstance(one, str | int | bool | enum.Enum) for one in values), values
    return False, []


def _made(left: Any, mapper: Mapper[Any], *, allowed: Sequence[Any] | None = None, excluded: Sequence[Any] = ()) -> Demand | None:
    by_column: Mapping[Any, str] = {column: one.key for one in mapper.column_attrs for column in one.columns}
    name = by_column.get(left) if isinstance(left, Column) else None
    if name is None or not all(_told_apart(left.type, one) for one in [*(allowed or ()), *excluded]):
        return None

    def values(given: Sequence[Any]) -> frozenset[Value]:
        return frozenset((type(one), one) for one in (None if one is None else _member(left.type, one) for one in given))

    return Demand(name, None if allowed is None else values(allowed), values(excluded))


def _told_apart(kind: Any, value: Any) -> bool:
    """Whether the column stores it as no other constant is stored."""
    if value is None:
        return True
    if isinstance(kind, Enum):
        return _member(kind, value) in (_members(kind) or {one: one for one in kind.enums}).values()
    if isinstance(value, bool):
        return isinstance(kind, Boolean)
    return isinstance(value, str | int) and not isinstance(value, enum.Enum) and equality.stored_as_it_is(kind, type(value))


def _members(kind: Enum) -> Mapping[str, Any]:
    """By their names; empty where it is an Enum of texts."""
    of_class: Any = kind.enum_class
    return {} if of_class is None else of_class.__members__


def _member(kind: Any, value: Any) -> Any:
    if isinstance(kind, Enum) and isinstance(value, str) and not isinstance(value, enum.Enum):
        return _members(kind).get(value, value)
    return value
