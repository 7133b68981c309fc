"""`every_child`: a clause that holds once other clauses hold for all children of a record (fan-in).

The clause is marked with the child's class and foreign key, so that a worker knows which parent to check when a child changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, or_
from sqlalchemy.orm import Mapper, RelationshipDirection, RelationshipProperty
from sqlalchemy.sql.elements import SQLCoreOperations

from groundstate.app import source_lint
from groundstate.rules import condition_lint
from groundstate.rules import sql_inspect as look
from groundstate.rules.specs import EveryChild
from groundstate.values.errors import DeclarationError

_MARK = "_groundstate_every_child"  # name of an attribute of the SQL expression; the expression keeps the attribute when clauses are joined


def every_child(children: SQLCoreOperations[Any], *clauses: SQLCoreOperations[bool]) -> ColumnElement[bool]:
    """Return a clause that holds if the record has children and all clauses hold for each child.

    A clause that is false or NULL for a child does not hold. For a record without children the result is false. When a child changes, only
    the condition of that child's parent is checked.

    Args:
        children: a one-to-many relationship, as in `every_child(Video.renditions, Rendition.file.is_not(None))`.
        clauses: SQL conditions on the child's columns.

    Raises:
        DeclarationError: `children` is no one-to-many relationship, or a clause cannot be evaluated on a child.
    """
    relationship = getattr(children, "property", None)
    if not isinstance(relationship, RelationshipProperty):
        raise DeclarationError(f"every_child({children}, ...): give the parent's relationship, as in every_child(Video.renditions, ...)")
    if not clauses:
        raise DeclarationError(f"every_child({children}) has no clause: add one of the child's columns, or write {children}.any()")
    child = _child_mapper(relationship)
    parent_key = _foreign_key_attributes(relationship, child)
    why = source_lint.find_misread_clause()
    for clause in look.flatten_ands(clauses):
        why = why or condition_lint.reason_to_refuse_clause(clause, child, relationship.parent.tables)
    if why is not None:
        raise DeclarationError(f"every_child({children}, ...): {why}")
    attribute: Any = children
    none_left = ~attribute.any(or_(*(look.is_not_true(clause) for clause in look.flatten_ands(clauses))))
    setattr(none_left, _MARK, EveryChild(child.class_, relationship.key, parent_key))
    both: ColumnElement[bool] = attribute.any() & none_left
    return both


def _child_mapper(relationship: RelationshipProperty[Any]) -> Mapper[Any]:
    return relationship.mapper


def _foreign_key_attributes(relationship: RelationshipProperty[Any], child: Mapper[Any]) -> list[Any]:
    pairs = dict(relationship.local_remote_pairs or ())
    key = relationship.parent.primary_key
    if relationship.direction is not RelationshipDirection.ONETOMANY or not all(column in pairs for column in key):
        raise DeclarationError(
            f"every_child({relationship}, ...): it must be a one-to-many relationship in which the child's foreign key names the parent's"
            " primary key; for any other relationship use .any(...)"
        )
    return [child.get_property_by_column(pairs[column]).class_attribute for column in key]


def find_child_marks(clauses: Iterable[Any]) -> tuple[EveryChild, ...]:
    """Find the clauses that `every_child` made, in these clauses and inside them. Return an EveryChild for each."""
    return tuple(
        mark for clause in clauses for one in look.iterate_without_subqueries(clause) if (mark := getattr(one, _MARK, None)) is not None
    )
