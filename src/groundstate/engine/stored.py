"""Stored values that no clause of their column's type can match: written past SQLAlchemy, or by a default that SQLite took as text.

A value is right where what it is loaded as, asked for by `==`, finds it again. A sample is looked at, by SELECTs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, String, Table, func, literal, select, type_coerce
from sqlalchemy.exc import DataError, DBAPIError, NotSupportedError, ProgrammingError, StatementError
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, Null
from sqlalchemy.sql.sqltypes import ARRAY, JSON, Date, DateTime, Float, Interval, LargeBinary, NullType, Numeric, PickleType, Time
from sqlalchemy.types import TypeDecorator

from groundstate.engine.guarded import shown, text_of
from groundstate.engine.question import Question
from groundstate.rules import clause as look
from groundstate.values.keys import NoValue

ROWS_MOST = 10_000  # of a table are looked at
VALUES_MOST = 100  # of a column
_OF_NO_EQUALITY = (JSON, ARRAY, PickleType, LargeBinary)
_ORDERS = (operators.lt, operators.le, operators.gt, operators.ge, operators.between_op, operators.not_between_op)
_TO_THE_SECOND = len("2026-01-01 00:00:00")
_LEAST = timedelta(microseconds=1)
_TIMES = (DateTime, Date, Time, Interval)


@dataclass(frozen=True)
class _Asked:
    """What clauses compare a column with. texts: each of them. by_value: for something else than an order, such as `<=`."""

    texts: Collection[object]
    by_value: bool


@dataclass(frozen=True)
class Odd:
    """A stored value that no clause of its type matches. rows: how many of those looked at have it; of times: have one of its form."""

    table: str
    column: str
    shown: str
    kind: str
    rows: int
    reactions: tuple[str, ...]


def odd(connection: Connection, questions: Sequence[Question]) -> list[Odd]:
    """All that are found in the columns that conditions compare with something."""
    by_column: dict[Any, list[str]] = {}
    for question in questions:
        for column in _compared(question):
            names = by_column.setdefault(column, [])
            names += [] if question.spec.name in names else [question.spec.name]
    found: list[Odd] = []
    for column, names in by_column.items():
        with suppress(ProgrammingError, DataError, NotSupportedError), connection.begin_nested():  # a type that has no order or no equality
            asked = _Asked(_asked_for(questions, column), _is_asked_by_value(questions, column))
            found += list(_of_column(connection, column, tuple(names), asked))
    for questions_of_one in _by_table(questions):
        found += _of_keys(connection, questions_of_one)
    return found


def _by_table(questions: Sequence[Question]) -> list[list[Question]]:
    found: dict[object, list[Question]] = {}
    for question in questions:
        if question.keys_may_stand_otherwise:
            found.setdefault(question.mapper, []).append(question)
    return list(found.values())


def _of_keys(connection: Connection, questions: Sequence[Question]) -> Iterator[Odd]:
    """Keys that are loaded, and by which no statement of the ORM finds their records."""
    first, names = questions[0], tuple(question.spec.name for question in questions)
    rows = connection.execute(select(*first.keys_as_they_stand).limit(ROWS_MOST)).all()
    for column, values in zip(first.mapper.primary_key, zip(*rows, strict=True), strict=False):
        odd_ones = [value for value in values if isinstance(value, NoValue)]
        if odd_ones:
            yield Odd(
                column.table.fullname, column.name, f"{shown(odd_ones[0].raw)} as a key", type(column.type).__name__, len(odd_ones), names
            )


def _compared(question: Question) -> Iterator[Any]:
    """The columns of tables that clauses read, but those that are asked alone whether they are NULL."""
    for clause in question.spec.clauses:
        by_null = [left for left, _, right in look.operands_of(look.parts(clause)) if isinstance(right, Null)]
        for one in look.columns(look.parts(clause)):
            column = look.base_column(one)
            if isinstance(column.table, Table) and not any(one is left for left in by_null):
                yield column


def _asked_for(questions: Sequence[Question], column: Any) -> set[object]:
    """The texts that clauses compare the column with."""
    clauses = [clause for question in questions for clause in question.spec.clauses]
    found = [look.operands_of(look.parts(clause)) for clause in clauses]
    return {
        value
        for operands in found
        for left, _, right in operands
        if look.base_column(left) is column
        for value in look.bound(right)
        if isinstance(value, str)
    }


def _is_asked_by_value(questions: Sequence[Question], column: Any) -> bool:
    parts = [one for question in questions for clause in question.spec.clauses for one in look.parts(clause)]
    return any(
        isinstance(one, BinaryExpression)
        and one.operator not in _ORDERS
        and any(look.base_column(side) is column for side in look.columns((one.left, one.right)))
        for one in parts
    )


def _of_column(connection: Connection, column: Any, reactions: tuple[str, ...], asked: _Asked) -> Iterator[Odd]:
    dialect = connection.dialect
    kept_as = _kept_as(column.type, dialect)
    loose = dialect.name == "sqlite"
    if isinstance(kept_as, _OF_NO_EQUALITY) or (isinstance(kept_as, _TIMES) and not loose):
        return
    some = select(column).where(column.is_not(None)).limit(ROWS_MOST).subquery()
    held: Any = some.c[column.key]
    raw = type_coerce(held, NullType())
    kind = func.typeof(raw) if loose else literal("value", String())
    form = [kind, func.length(raw), func.substr(raw, 11, 1)] if loose and isinstance(kept_as, _TIMES) else [kind, raw]
    found = select(func.min(raw, type_=NullType()) if len(form) > 2 else raw, kind, func.count()).group_by(*form).limit(VALUES_MOST)
    result = connection.execute(found)
    sent_as = None if loose else result.cursor.description[0][1]  # by which PostgreSQL's own types choose what makes a value of it
    convert = column.type.dialect_impl(dialect).result_processor(dialect, sent_as)
    for value, name, rows in result:
        why = _why_odd(connection, column, (held, raw, kind), (value, name), kept_as, asked, convert=convert)
        if why is not None:
            yield Odd(column.table.fullname, column.name, f"{value!r}{why}", type(column.type).__name__, rows, reactions)


def _why_odd(  # noqa: PLR0913  # a value, and all that tells how it is kept
    connection: Connection,
    column: Any,
    sides: tuple[Any, Any, Any],
    stored: tuple[Any, str],
    kept_as: Any,
    asked: _Asked,
    *,
    convert: Callable[[Any], Any] | None,
) -> str | None:
    """Why nothing finds it, in words that go on from the value; None where something does. convert: loads a value of the column."""
    (held, raw, kind), (value, name) = sides, stored
    try:
        loaded = value if convert is None else convert(value)
    except Exception as error:  # of a type that may be the user's own
        return f", which cannot be loaded ({text_of(error)})"
    if isinstance(kept_as, Numeric | Float):
        return ", which is text" if name == "text" else None
    if _of_another_type(column.type, loaded):
        return f", which is {name}"
    here = select(literal(1)).where(raw == literal(value, NullType()), kind == name).limit(1)
    bare = loaded.strip() if isinstance(loaded, str) else loaded

    typed = type_coerce(held, column.type)

    def finds(*clauses: ColumnElement[bool]) -> bool:
        return connection.execute(here.where(*clauses)).first() is not None

    try:
        if not finds(typed == loaded) and not (_has_no_fraction(value, kept_as, asked) and finds(*_around(typed, loaded))):
            return f" ({name}), which is loaded as {shown(loaded)} and kept otherwise"
        padded = bare != loaded and bare in asked.texts and not finds(typed == bare)
    except StatementError as error:  # its type does not take what it has loaded
        if isinstance(error, DBAPIError):
            raise
        return f", which is loaded as {shown(loaded)}, and that is refused by its type ({text_of(error.orig or error)})"
    return f" with spaces around it, and clauses ask for {bare!r}" if padded else None


def _has_no_fraction(value: object, kept_as: Any, asked: _Asked) -> bool:
    """Whether it is a time as SQLite's own clock writes it, and only its place among others is asked for: that is right to the second."""
    return isinstance(kept_as, DateTime) and not asked.by_value and isinstance(value, str) and len(value) == _TO_THE_SECOND


def _around(typed: Any, loaded: Any) -> tuple[ColumnElement[bool], ...]:
    return typed > loaded - _LEAST, typed < loaded + _LEAST


def _of_another_type(kind: Any, loaded: object) -> bool:
    if isinstance(kind, TypeDecorator):
        return False
    try:
        return not isinstance(loaded, kind.python_type)
    except NotImplementedError:
        return False


def _kept_as(kind: Any, dialect: Any) -> Any:
    kind = kind.dialect_impl(dialect)
    while isinstance(kind, TypeDecorator):
        kind = kind.impl_instance
    return kind
