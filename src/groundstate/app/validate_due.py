"""Checks the option `due=` of `App.on`, and finds the columns of the due time. Raises DeclarationError with the cure."""

from __future__ import annotations

import uuid
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.orm import InstrumentedAttribute, Mapper
from sqlalchemy.sql.elements import TextClause
from sqlalchemy.sql.sqltypes import Date, DateTime, Integer, Interval, Numeric, String, Time

from groundstate.app import validate_condition
from groundstate.rules import condition_lint, occurrences
from groundstate.rules import sql_inspect as look
from groundstate.rules.due import Due, DueSpec
from groundstate.values.errors import DeclarationError

_IN_KEYS = (str, int, float, bytes, datetime, date, time, timedelta, uuid.UUID, Decimal, Enum)


def check_due(what: str, mapper: Mapper[Any], given: Any) -> DueSpec | None:
    """Return the due time of a reaction. Checks what can be checked without a database. Returns None if `due=` was not given."""
    if given is None:
        return None
    chosen = given if isinstance(given, Due) else Due(given)
    base = look.sql_element(chosen.of)
    name = mapper.class_.__name__
    if isinstance(base, (datetime, date, timedelta, str, TextClause)) or not isinstance(base, ColumnElement):
        raise DeclarationError(
            f"{what}: due={chosen.of!r} is no column: a due time is a column of {name}, after(column, timedelta(...)), or an SQL expression"
            " over its columns"
        )
    why = condition_lint.reason_to_refuse_expression(base, mapper)
    if why is not None:
        raise DeclarationError(f"{what}: due={base}: {why}")
    attribute = _mapped_due_column(what, mapper, base)
    _check_type(what, base, base if attribute is None else attribute)
    return DueSpec(base, chosen.delta, chosen.valid_for, attribute)


def columns_of_due_time(what: str, mapper: Mapper[Any], due: DueSpec) -> tuple[InstrumentedAttribute[Any], ...]:
    """Return the columns of the due time, sorted by name. They tell one occurrence (one round of a recurring event) from the next if
    `occurrence=` is not given.
    """
    if due.attribute is not None:
        return (due.attribute,)
    named = {look.base_column(one) for one in look.only_columns(look.iterate_without_subqueries(due.base))}
    found = sorted((validate_condition.mapped_attribute_of(what, mapper, one, "due") for one in named), key=lambda one: one.key)
    for one in found:
        if not _column_type_can_be_in_key(one.type):
            raise DeclarationError(
                f"{what}: its due time is made of {one}, which cannot be part of a key: say by occurrence=[...] which columns tell one"
                " round from the next"
            )
    return tuple(found)


def _mapped_due_column(what: str, mapper: Mapper[Any], base: Any) -> InstrumentedAttribute[Any] | None:
    if getattr(base, "table", None) is None or not hasattr(base, "key"):
        return None
    return validate_condition.mapped_attribute_of(what, mapper, base, "due")


def _check_type(what: str, base: Any, shown: Any) -> None:
    """Refuse types that are surely no point in time. Other types are checked on the database when the app starts."""
    kind = base.type
    if isinstance(kind, (Time, Interval)):
        raise DeclarationError(
            f"{what}: due={shown} is a {type(kind).__name__.lower()}, and no point in time: give a column with date and time"
        )
    if isinstance(kind, (Integer, Numeric)) or (isinstance(kind, String) and base.__visit_name__ != "function"):
        raise DeclarationError(
            f"{what}: due={shown} holds {'text' if isinstance(kind, String) else 'numbers'}, and nobody says which times they are: map it"
            " as UtcDateTime, or turn it into a time: func.datetime(column, 'unixepoch') on SQLite, func.to_timestamp(column) on PostgreSQL"
        )
    if isinstance(kind, (DateTime, Date)) or type(kind).__name__ == "NullType" or hasattr(kind, "impl"):
        return
    if not isinstance(kind, String):
        raise DeclarationError(f"{what}: due={shown} is of type {type(kind).__name__}, and no point in time")


def _column_type_can_be_in_key(kind_of_column: Any) -> bool:
    if not occurrences.has_canonical_text(kind_of_column):
        return False
    try:
        kind = kind_of_column.python_type
    except NotImplementedError:
        return True
    return kind is object or issubclass(kind, _IN_KEYS)
