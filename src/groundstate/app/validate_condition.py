"""Checks the condition of `App.on`: clauses, occurrence and done column. Raises DeclarationError with the cure."""

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


def refuse_python_conditions(what: str) -> None:
    """Raise DeclarationError if Python, not SQL, evaluates a clause, as in `a and b`. Call this during the declaration, since it reads the
    source code of the declaration.
    """
    why = source_lint.find_misread_clause()
    if why is not None:
        raise DeclarationError(f"{what}: {why}")


def check_clauses_of_wait_for(what: str, mapper: Mapper[Any], given: Sequence[Any]) -> tuple[ColumnElement[bool], ...]:
    """Return the clauses of a `wait_for`, split at SQL's AND. Raises DeclarationError for a clause that `App.on` would refuse.

    Call this while `wait_for` is being called: the source code of that call is read.
    """
    why = source_lint.find_misread_clause_of_wait_for()
    if why is not None:
        raise DeclarationError(f"{what}: {why}")
    clauses = look.flatten_ands(given)
    for clause in clauses:
        why = condition_lint.reason_to_refuse_immediate_clause(clause, mapper)
        if why is not None:
            raise DeclarationError(f"{what}: {why}")
    return clauses


def check_clauses(what: str, mapper: Mapper[Any], given: Sequence[Any]) -> tuple[ColumnElement[bool], ...]:
    """Return the clauses of the condition, split at SQL's AND. Raises DeclarationError if a clause cannot be evaluated on the record."""
    clauses = look.flatten_ands(given)
    for clause in clauses:
        why = condition_lint.reason_to_refuse_clause(clause, mapper)
        if why is not None:
            raise DeclarationError(f"{what}: {why}")
    return clauses


def mapped_attribute_of(what: str, mapper: Mapper[Any], column: Any, option: str) -> InstrumentedAttribute[Any]:
    """Return the record's mapped attribute for a column. Raises DeclarationError if there is none.

    option: the text in front of the column in error messages, such as "done_column".
    """
    inner = look.sql_element(column)
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


def check_done_column(what: str, mapper: Mapper[Any], given: Any) -> InstrumentedAttribute[Any]:
    """Return the attribute of `done_column=`: a column that is NULL until the handler writes it."""
    attribute = mapped_attribute_of(what, mapper, given, "done_column")
    column = look.base_column(look.sql_element(attribute))
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


def check_occurrence(what: str, mapper: Mapper[Any], occurrence: Iterable[Any]) -> tuple[InstrumentedAttribute[Any], ...]:
    """Return the attributes of `occurrence=`, whose values tell one occurrence (one round of a recurring event) from the next."""
    if hasattr(occurrence, "__clause_element__") or isinstance(occurrence, (str, ColumnElement)):
        raise DeclarationError(f"{what}: occurrence={occurrence!s}: give a sequence of columns, as in occurrence=[{occurrence!s}]")
    found = tuple(mapped_attribute_of(what, mapper, one, "occurrence") for one in occurrence)
    for one in found:
        if not occurrences.has_canonical_text(one.type):
            raise DeclarationError(
                f"{what}: occurrence={one}: a value of {type(one.type).__name__} has no one text, and 1, true and '1' would be one round:"
                " give a column of text, integer, UUID, date, time or decimal that each round changes"
            )
    return found


def check_primary_key(what: str, mapper: Mapper[Any]) -> None:
    """Refuse a record class if values of its primary key have no unambiguous text, since an attempt names its record by that text."""
    for column in mapper.primary_key:
        if not occurrences.has_canonical_text(column.type):
            raise DeclarationError(
                f"{what}: the primary key {column} of {mapper.class_.__name__} is of type {type(column.type).__name__}, whose values have"
                " no one text, and an attempt names its record by that: give the table a key of text, integer, UUID, date, time or"
                " decimal, and make this column unique"
            )


def has_columns_mutable_in_place(mapper: Mapper[Any]) -> bool:
    """Whether the mapper has columns whose values can change in place, such as JSON. Otherwise the handler's source need not be read."""
    return any(isinstance(column.type, (JSON, PickleType, ARRAY)) for column in mapper.columns)


def columns_changed_unnoticed(mapper: Mapper[Any], names: Iterable[str]) -> list[str]:
    """Return the named columns whose values can change in place without SQLAlchemy noticing. Call this when the mappers are configured."""
    lost = []
    for name in sorted(names):
        column = mapper.columns.get(name)
        if column is not None and isinstance(column.type, (JSON, PickleType, ARRAY)) and not _is_mutation_tracked(mapper, name):
            lost.append(name)
    return lost


def _is_mutation_tracked(mapper: Mapper[Any], name: str) -> bool:
    """Whether the attribute's value is a Mutable of SQLAlchemy, which notices changes in place. The attribute's listeners show this."""
    attribute = mapper.class_manager.get(name)
    listeners = list(attribute.dispatch.set) if attribute is not None else []
    wrapped = [cell.cell_contents for listener in listeners for cell in getattr(listener, "__closure__", None) or ()]
    return any(getattr(one, "__module__", "") == MutableBase.__module__ for one in [*listeners, *wrapped])
