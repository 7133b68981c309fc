"""Computes what a value, such as a time, becomes when it is bound for a column. Pure."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.sql.sqltypes import DateTime
from sqlalchemy.types import TypeDecorator

SAMPLE = datetime(2001, 2, 3, 4, 5, 6, 789000, tzinfo=UTC)  # the time that `stored` converts
WRITTEN = "2001-02-03 04:05:06"  # what a column on SQLite that holds SAMPLE must begin with


def stored(kind: Any, dialect: Dialect) -> object:
    """Return what a sample time becomes when stored in a column of this type; where a user's type raises, return the error as text."""
    sample: Any = SAMPLE if _python(kind) is not date else SAMPLE.date()
    if isinstance(kind, DateTime):
        sample = SAMPLE.replace(tzinfo=SAMPLE.tzinfo if kind.timezone else None)
    found = converted(kind, sample, dialect)
    return f"{type(found).__name__}: {found}" if isinstance(found, Exception) else found


def converted(kind: Any, value: Any, dialect: Dialect) -> object:
    """Return what the driver receives for this value; where the type raises, return the exception."""
    convert = kind.dialect_impl(dialect).bind_processor(dialect)
    try:
        return value if convert is None else convert(value)
    except Exception as error:  # noqa: BLE001 - a type of the user's own may raise anything
        return error


def _python(kind: Any) -> type:
    while isinstance(kind, TypeDecorator):
        kind = kind.impl_instance
    try:
        found: type = kind.python_type
    except NotImplementedError:
        return object
    return found
