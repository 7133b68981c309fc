"""From what `on` was given to a checked condition: the clauses, the occurrence, the fact. Raises DeclarationError with the cure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.ext.mutable import MutableBase
from sqlalchemy.orm import InstrumentedAttribute, Mapper
from sqlalchemy.sql.sqltypes import ARRAY, JSON, PickleType

from groundstate.app import source
from groundstate.rules import clause as look
from groundstate.rules import rounds, suspicion
from groundstate.values.errors import DeclarationError


def check_source(what: str) -> None:
    """Refuses clauses of the call being made that Python carries out instead of SQL. Asked in that call, and not later."""
    why = source.misread_clause()
    if why is not None:
        raise DeclarationError(f"{what}: {why}")


def clauses_of(what: str, mapper: Mapper[Any], given: Sequence[Any]) -> tuple[ColumnElement[bool], ...]:
    """The operands of the condition, checked."""
    clauses = look.split(given)
    for clause in clauses:
        why = suspicion.refused(clause, mapper)
        if why is not None:
            raise DeclarationError(f"{what}: {why}")
    return clauses


def column_of(what: str, mapper: Mapper[Any], column: Any, option: str) -> InstrumentedAttribute[Any]:
    """The mapped attribute of this record that was given as a column. option: where, as it is written before the column's name."""
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


def fact_of(what: str, mapper: Mapper[Any], fact: Any) -> InstrumentedAttribute[Any]:
    """The fact's attribute: a column that is NULL until it is written."""
    attribute = column_of(what, mapper, fact, "fact")
    column = look.base_column(look.element(attribute))
    if column.primary_key:
        raise DeclarationError(f"{what}: fact={attribute} is the primary key: give a column that is NULL until this reaction writes it")
    if not column.nullable:
        raise DeclarationError(
            f"{what}: fact={attribute} cannot be NULL, so it would never be carried out: make it nullable, as in Mapped[datetime | None]"
        )
    return attribute


def occurrence_of(what: str, mapper: Mapper[Any], occurrence: Iterable[Any]) -> tuple[InstrumentedAttribute[Any], ...]:
    """The attributes that tell one round from the next."""
    if hasattr(occurrence, "__clause_element__") or isinstance(occurrence, (str, ColumnElement)):
        raise DeclarationError(f"{what}: occurrence={occurrence!s}: give a sequence of columns, as in occurrence=[{occurrence!s}]")
    found = tuple(column_of(what, mapper, one, "occurrence") for one in occurrence)
    for one in found:
        if not rounds.has_one_text(one.type):
            raise DeclarationError(
                f"{what}: occurrence={one}: a value of {type(one.type).__name__} has no one text, and 1, true and '1' would be one round:"
                " give a column of text, integer, UUID, date, time or decimal that each round changes"
            )
    return found


def check_key(what: str, mapper: Mapper[Any]) -> None:
    """Refuses records that have no text by which an attempt could name them: nobody would find them again."""
    for column in mapper.primary_key:
        if not rounds.has_one_text(column.type):
            raise DeclarationError(
                f"{what}: the primary key {column} of {mapper.class_.__name__} is of type {type(column.type).__name__}, whose values have"
                " no one text, and an attempt names its record by that: give the table a key of text, integer, UUID, date, time or"
                " decimal, and make this column unique"
            )


def has_insides(mapper: Mapper[Any]) -> bool:
    """Whether it has columns whose values can change inside: asked first, since reading a handler's source takes a while."""
    return any(isinstance(column.type, (JSON, PickleType, ARRAY)) for column in mapper.columns)


def lost_in_place(mapper: Mapper[Any], names: Iterable[str]) -> list[str]:
    """Which of these SQLAlchemy does not see change when their inside does. Asked when mappers are configured: Mutable listens then."""
    lost = []
    for name in sorted(names):
        column = mapper.columns.get(name)
        if column is not None and isinstance(column.type, (JSON, PickleType, ARRAY)) and not _tracked(mapper, name):
            lost.append(name)
    return lost


def _tracked(mapper: Mapper[Any], name: str) -> bool:
    """Whether the attribute holds a Mutable: those listen for what is set, behind a wrapper of SQLAlchemy's."""
    attribute = mapper.class_manager.get(name)
    listeners = list(attribute.dispatch.set) if attribute is not None else []
    wrapped = [cell.cell_contents for listener in listeners for cell in getattr(listener, "__closure__", None) or ()]
    return any(getattr(one, "__module__", "") == MutableBase.__module__ for one in [*listeners, *wrapped])
