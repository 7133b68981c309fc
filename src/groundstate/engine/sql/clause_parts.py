"""Tells from the parts of a clause what its evaluation may do: fail, or read more than the record's own row. It asks no database."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList

_PLAIN = frozenset({"column", "bindparam", "binary", "unary", "clauselist", "expression_clauselist", "grouping", "null", "true", "false"})


def reads_only_columns(clause: Any, own: set[Any]) -> bool:
    """Return whether this clause consists of values, operators and columns of the tables in `own`. False if it has a function, since that
    may read other rows.
    """
    return all(
        part.__visit_name__ in _PLAIN and (part.__visit_name__ != "column" or getattr(part, "table", None) in own)
        for part in visitors.iterate(clause)
    )


def compares_only_columns(clause: ColumnElement[bool]) -> bool:
    """Return whether this clause only compares columns with values, so that its evaluation cannot fail."""
    parts = list(visitors.iterate(clause))
    computes = any(isinstance(part, BinaryExpression) and not operators.is_comparison(part.operator) for part in parts)
    return not computes and all(part.__visit_name__ in _PLAIN for part in parts)


def split_conjunctions_reversed(parts: Iterable[ColumnElement[bool]]) -> list[ColumnElement[bool]]:
    """Return the parts in reverse order, with each and_(...) replaced by its own parts."""
    found: list[ColumnElement[bool]] = []
    for part in reversed(list(parts)):
        within = part.clauses if isinstance(part, BooleanClauseList) and part.operator is operators.and_ else None
        found += [part] if within is None else split_conjunctions_reversed(within)
    return found
