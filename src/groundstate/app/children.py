"""`every_child`: fan-in, as a clause. Makes an SQL expression and remembers of it what wakes the parent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, or_
from sqlalchemy.orm import Mapper, RelationshipDirection, RelationshipProperty
from sqlalchemy.sql.elements import SQLCoreOperations

from groundstate.app import source
from groundstate.rules import clause as look
from groundstate.rules import suspicion
from groundstate.rules.reaction import EveryChild
from groundstate.values.errors import DeclarationError

_MARK = "_groundstate_every_child"  # an attribute of the expression itself, so that it survives being joined with others


def every_child(children: SQLCoreOperations[Any], *clauses: SQLCoreOperations[bool]) -> ColumnElement[bool]:
    """Has children, and none for which a clause does not hold. A change of a child wakes its own parent alone.

    children: a one-to-many relationship, as in `every_child(Video.renditions, Rendition.file.is_not(None))`. Does not hold is false or
    NULL. A parent without children does not count as ready.

    Raises:
        DeclarationError: it is no one-to-many relationship, or a clause cannot be asked of a child.
    """
    relationship = getattr(children, "property", None)
    if not isinstance(relationship, RelationshipProperty):
        raise DeclarationError(f"every_child({children}, ...): give the parent's relationship, as in every_child(Video.renditions, ...)")
    if not clauses:
        raise DeclarationError(f"every_child({children}) has no clause: add one of the child's columns, or write {children}.any()")
    child = _child_mapper(relationship)
    parent_key = _parent_key(relationship, child)
    why = source.misread_clause()
    for clause in look.split(clauses):
        why = why or suspicion.refused(clause, child, relationship.parent.tables)
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
    """What `every_child` made, among these clauses and in what they join."""
    return tuple(mark for clause in clauses for one in look.own_parts(clause) if (mark := getattr(one, _MARK, None)) is not None)
