"""Computes what the database driver receives when a value is bound for a column. Pure."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.sql.sqltypes import DateTime
from sqlalchemy.types import TypeDecorator

SAMPLE = datetime(2001, 2, 3, 4, 5, 6, 789000, tzinfo=UTC)  # an example of a time, which `stored_sample_time` converts
WRITTEN = "2001-02-03 04:05:06"  # how the text of SAMPLE on SQLite must begin, so that the column's texts sort in the order of their times


def stored_sample_time(kind: Any, dialect: Dialect) -> object:
    """Return the time SAMPLE as a column of this type stores it. If the type raises an exception, return its name and message."""
    sample: Any = SAMPLE if _python_type(kind) is not date else SAMPLE.date()
    if isinstance(kind, DateTime):
        sample = SAMPLE.replace(tzinfo=SAMPLE.tzinfo if kind.timezone else None)
    found = convert_for_driver(kind, sample, dialect)
    return f"{type(found).__name__}: {found}" if isinstance(found, Exception) else found


def convert_for_driver(kind: Any, value: Any, dialect: Dialect) -> object:
    """Return what the database driver receives for this value. If the column type raises an exception, return the exception itself."""
    convert = kind.dialect_impl(dialect).bind_processor(dialect)
    try:
        return value if convert is None else convert(value)
    except Exception as error:  # noqa: BLE001 - a type of the user's own may raise anything
        return error


def _python_type(kind: Any) -> type:
    while isinstance(kind, TypeDecorator):
        kind = kind.impl_instance
    try:
        found: type = kind.python_type
    except NotImplementedError:
        return object
    return found
