"""Checks the condition that was given to `App.on`: clauses, occurrence and done column. Raises DeclarationError with the cure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.ext.mutable import MutableBase
from sqlalchemy.orm import InstrumentedAttribute, Mapper
from sqlalchemy.sql.sqltypes import ARRAY, JSON, PickleType

from groundstate.app import source_lint
from groundstate.rules import condition_lint, occurrences
from groundstate.rules import sql_inspect as look
from groundstate.values.errors import DeclarationError


def check_source(what: str) -> None:
    """Refuse clauses that Python evaluates instead of SQL. Must run inside the declaring call, since it reads the source of that call."""
    why = source_lint.misread_clause()
    if why is not None:
        raise DeclarationError(f"{what}: {why}")


def clauses_now(what: str, mapper: Mapper[Any], given: Sequence[Any]) -> tuple[ColumnElement[bool], ...]:
    """Return the clauses of a condition on one record that is asked at once, checked as those of `App.on` are.

    It must run inside the call that gives them, since it reads the source of that call.
    """
    why = source_lint.misread_clause_now()
    if why is not None:
        raise DeclarationError(f"{what}: {why}")
    clauses = look.split(given)
    for clause in clauses:
        why = condition_lint.refused_now(clause, mapper)
        if why is not None:
            raise DeclarationError(f"{what}: {why}")
    return clauses


def clauses_of(what: str, mapper: Mapper[Any], given: Sequence[Any]) -> tuple[ColumnElement[bool], ...]:
    """Return the clauses of the condition, split at `and` and checked."""
    clauses = look.split(given)
    for clause in clauses:
        why = condition_lint.refused(clause, mapper)
        if why is not None:
            raise DeclarationError(f"{what}: {why}")
    return clauses


def column_of(what: str, mapper: Mapper[Any], column: Any, option: str) -> InstrumentedAttribute[Any]:
    """Return the record's mapped attribute for a given column.

    option: the text in front of the column in error messages, such as "done_column".
    """
    inner = look.element(column)
    given = f"{option}={column!s}{')' * option.count('(')}"
    table = getattr(inner, "table", None)
    if table is None or table not in mapper.tables:
        raise DeclarationError(f"{what}: {given} is no column of {mapper.class_.__name__}: give one of its columns")
    base = look.base_column(inner)
    for candidate in (base, *(one for other in mapper.tables for one in other.c if one.key == base.key)):
        if mapper.columns.contains_column(candidate):
            attribute: InstrumentedAttribute[Any] = mapper.get_property_by_column(candidate).class_attribute
            return getattr(mapper.class_, attribute.key, attribute)
    raise DeclarationError(f"{what}: {given} is no mapped column of {mapper.class_.__name__}: map it, or give another")


def done_column_of(what: str, mapper: Mapper[Any], given: Any) -> InstrumentedAttribute[Any]:
    """Return the attribute of `done_column=`: a column that is NULL until the handler writes it."""
    attribute = column_of(what, mapper, given, "done_column")
    column = look.base_column(look.element(attribute))
    if column.primary_key:
        raise DeclarationError(
            f"{what}: done_column={attribute} is the primary key: give a column that is NULL until this reaction writes it"
        )
    if not column.nullable:
        raise DeclarationError(
            f"{what}: done_column={attribute} cannot be NULL, so it would never be carried out: make it nullable, as in Mapped[datetime |"
            " None]"
        )
    return attribute


def occurrence_of(what: str, mapper: Mapper[Any], occurrence: Iterable[Any]) -> tuple[InstrumentedAttribute[Any], ...]:
    """Return the attributes of `occurrence=`, whose values tell one occurrence from the next."""
    if hasattr(occurrence, "__clause_element__") or isinstance(occurrence, (str, ColumnElement)):
        raise DeclarationError(f"{what}: occurrence={occurrence!s}: give a sequence of columns, as in occurrence=[{occurrence!s}]")
    found = tuple(column_of(what, mapper, one, "occurrence") for one in occurrence)
    for one in found:
        if not occurrences.has_one_text(one.type):
            raise DeclarationError(
                f"{what}: occurrence={one}: a value of {type(one.type).__name__} has no one text, and 1, true and '1' would be one round:"
                " give a column of text, integer, UUID, date, time or decimal that each round changes"
            )
    return found


def check_key(what: str, mapper: Mapper[Any]) -> None:
    """Refuse records whose primary key cannot be written as one text, since an attempt names its record by that text."""
    for column in mapper.primary_key:
        if not occurrences.has_one_text(column.type):
            raise DeclarationError(
                f"{what}: the primary key {column} of {mapper.class_.__name__} is of type {type(column.type).__name__}, whose values have"
                " no one text, and an attempt names its record by that: give the table a key of text, integer, UUID, date, time or"
                " decimal, and make this column unique"
            )


def has_insides(mapper: Mapper[Any]) -> bool:
    """Whether the mapper has columns whose values can change in place. A cheap check, made before a handler's source is read."""
    return any(isinstance(column.type, (JSON, PickleType, ARRAY)) for column in mapper.columns)


def lost_in_place(mapper: Mapper[Any], names: Iterable[str]) -> list[str]:
    """Return which of these columns can change in place without SQLAlchemy noticing. Call it after the mappers are configured."""
    lost = []
    for name in sorted(names):
        column = mapper.columns.get(name)
        if column is not None and isinstance(column.type, (JSON, PickleType, ARRAY)) and not _tracked(mapper, name):
            lost.append(name)
    return lost


def _tracked(mapper: Mapper[Any], name: str) -> bool:
    """Whether the attribute's value is a Mutable of SQLAlchemy, which notices changes in place. Looks at the attribute's listeners."""
    attribute = mapper.class_manager.get(name)
    listeners = list(attribute.dispatch.set) if attribute is not None else []
    wrapped = [cell.cell_contents for listener in listeners for cell in getattr(listener, "__closure__", None) or ()]
    return any(getattr(one, "__module__", "") == MutableBase.__module__ for one in [*listeners, *wrapped])
