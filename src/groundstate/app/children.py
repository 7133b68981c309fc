"""`every_child`: a clause that waits for all children of a record (fan-in). The clause is marked, so that a child's change wakes its
parent.
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

_MARK = "_groundstate_every_child"  # an attribute on the SQL expression itself, so that it is kept when clauses are joined


def every_child(children: SQLCoreOperations[Any], *clauses: SQLCoreOperations[bool]) -> ColumnElement[bool]:
    """Return a clause that holds if the record has children and all clauses hold for each child.

    A clause that is false or NULL for a child does not hold. A record without children does not count as ready. A change of a child wakes
    only its own parent.

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
    parent_key = _parent_key(relationship, child)
    why = source_lint.misread_clause()
    for clause in look.split(clauses):
        why = why or condition_lint.refused(clause, child, relationship.parent.tables)
    if why is not None:
        raise DeclarationError(f"every_child({children}, ...): {why}")
    attribute: Any = children
    none_left = ~attribute.any(or_(*(look.does_not_hold(clause) for clause in look.split(clauses))))
    setattr(none_left, _MARK, EveryChild(child.class_, relationship.key, parent_key))
    both: ColumnElement[bool] = attribute.any() & none_left
    return both


def _child_mapper(relationship: RelationshipProperty[Any]) -> Mapper[Any]:
    return relationship.mapper


def _parent_key(relationship: RelationshipProperty[Any], child: Mapper[Any]) -> list[Any]:
    pairs = dict(relationship.local_remote_pairs or ())
    key = relationship.parent.primary_key
    if relationship.direction is not RelationshipDirection.ONETOMANY or not all(column in pairs for column in key):
        raise DeclarationError(
            f"every_child({relationship}, ...): it must be a one-to-many relationship in which the child's foreign key names the parent's"
            " primary key; ask by .any(...) else"
        )
    return [child.get_property_by_column(pairs[column]).class_attribute for column in key]


def found_in(clauses: Iterable[Any]) -> tuple[EveryChild, ...]:
    """Return the marks that `every_child` has set on these clauses, or on clauses that are joined inside them."""
    return tuple(mark for clause in clauses for one in look.own_parts(clause) if (mark := getattr(one, _MARK, None)) is not None)
