"""Finds stored values that no clause of their column's type can match: written past SQLAlchemy, or by a default that SQLite took as text.

A value is right if a query with `==` and its loaded form finds it again. Checks a sample of the rows, by SELECTs only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, String, Table, func, literal, select, type_coerce
from sqlalchemy.exc import DataError, DBAPIError, NotSupportedError, OperationalError, ProgrammingError, StatementError
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, Null
from sqlalchemy.sql.sqltypes import ARRAY, JSON, Date, DateTime, Float, Interval, LargeBinary, NullType, Numeric, PickleType, Time
from sqlalchemy.types import TypeDecorator

from groundstate.engine.sql import db_errors
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.safe_text import shown, text_of
from groundstate.rules import sql_inspect as look
from groundstate.values.keys import NoValue

ROWS_MOST = 10_000  # rows of one table that are checked
VALUES_MOST = 100  # different values of one column that are checked
_OF_NO_EQUALITY = (JSON, ARRAY, PickleType, LargeBinary)
_ORDERS = (operators.lt, operators.le, operators.gt, operators.ge, operators.between_op, operators.not_between_op)
_TO_THE_SECOND = len("2026-01-01 00:00:00")
_LEAST = timedelta(microseconds=1)
_TIMES = (DateTime, Date, Time, Interval)


@dataclass(frozen=True)
class _Asked:
    """How clauses compare a column. texts: all texts that they compare it with. by_value: whether any comparison is not by order, as `<=`
    is.
    """

    texts: Collection[object]
    by_value: bool


@dataclass(frozen=True)
class Odd:
    """A stored value that no clause of its type matches.

    rows: how many of the checked rows have this value or, for times, a value of the same form.
    """

    table: str
    column: str
    shown: str
    kind: str
    rows: int
    reactions: tuple[str, ...]


def odd(connection: Connection, queries: Sequence[ConditionQuery]) -> list[Odd]:
    """Return the stored values that no clause can match, in the columns that conditions compare with something."""
    by_column: dict[Any, list[str]] = {}
    for query in queries:
        for column in _compared(query):
            names = by_column.setdefault(column, [])
            names += [] if query.spec.name in names else [query.spec.name]
    found: list[Odd] = []
    for column, names in by_column.items():
        # These errors mean that the column's type has no order or no equality.
        with suppress(ProgrammingError, DataError, NotSupportedError), connection.begin_nested():
            asked = _Asked(_asked_for(queries, column), _is_asked_by_value(queries, column))
            try:
                found += list(_of_column(connection, column, tuple(names), asked))
            except OperationalError as error:
                if not db_errors.unreadable(error):
                    raise
                found.append(Odd(column.table.fullname, column.name, f"text that is not UTF-8 ({db_errors.database_message(error)})",
                                 type(column.type).__name__, 1, tuple(names)))  # fmt: skip
    for questions_of_one in _by_table(queries):
        found += _of_keys(connection, questions_of_one)
    return found


def _by_table(queries: Sequence[ConditionQuery]) -> list[list[ConditionQuery]]:
    found: dict[object, list[ConditionQuery]] = {}
    for query in queries:
        if query.keys_may_stand_otherwise:
            found.setdefault(query.mapper, []).append(query)
    return list(found.values())


def _of_keys(connection: Connection, queries: Sequence[ConditionQuery]) -> Iterator[Odd]:
    """Yield keys whose records can be loaded, and are not found by them in any statement of the ORM."""
    first, names = queries[0], tuple(query.spec.name for query in queries)
    rows = connection.execute(select(*first.keys_as_they_stand).limit(ROWS_MOST)).all()
    for column, values in zip(first.mapper.primary_key, zip(*rows, strict=True), strict=False):
        odd_ones = [value for value in values if isinstance(value, NoValue)]
        if odd_ones:
            yield Odd(
                column.table.fullname, column.name, f"{shown(odd_ones[0].raw)} as a key", type(column.type).__name__, len(odd_ones), names
            )


def _compared(query: ConditionQuery) -> Iterator[Any]:
    """Yield the table columns that clauses read, except those that are only checked for NULL."""
    for clause in query.spec.clauses:
        by_null = [left for left, _, right in look.operands_of(look.parts(clause)) if isinstance(right, Null)]
        for one in look.columns(look.parts(clause)):
            column = look.base_column(one)
            if isinstance(column.table, Table) and not any(one is left for left in by_null):
                yield column


def _asked_for(queries: Sequence[ConditionQuery], column: Any) -> set[object]:
    """Return the texts that clauses compare the column with."""
    clauses = [clause for query in queries for clause in query.spec.clauses]
    found = [look.operands_of(look.parts(clause)) for clause in clauses]
    return {
        value
        for operands in found
        for left, _, right in operands
        if look.base_column(left) is column
        for value in look.bound(right)
        if isinstance(value, str)
    }


def _is_asked_by_value(queries: Sequence[ConditionQuery], column: Any) -> bool:
    parts = [one for query in queries for clause in query.spec.clauses for one in look.parts(clause)]
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
    sent_as = None if loose else result.cursor.description[0][1]  # SQLAlchemy's PostgreSQL types choose their result processor by it
    convert = column.type.dialect_impl(dialect).result_processor(dialect, sent_as)
    for value, name, rows in result:
        why = _why_odd(connection, column, (held, raw, kind), (value, name), kept_as, asked, convert=convert)
        if why is not None:
            yield Odd(column.table.fullname, column.name, f"{value!r}{why}", type(column.type).__name__, rows, reactions)


def _why_odd(  # noqa: PLR0913  # one value, and everything about how it is stored
    connection: Connection,
    column: Any,
    sides: tuple[Any, Any, Any],
    stored: tuple[Any, str],
    kept_as: Any,
    asked: _Asked,
    *,
    convert: Callable[[Any], Any] | None,
) -> str | None:
    """Return why no clause finds the value, as words that follow the value; None where a clause finds it. convert: the result processor of
    the column.
    """
    (held, raw, kind), (value, name) = sides, stored
    try:
        loaded = value if convert is None else convert(value)
    except Exception as error:  # the type may be the user's own
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
    except StatementError as error:  # the type refuses to bind the value that it has loaded
        if isinstance(error, DBAPIError):
            raise
        return f", which is loaded as {shown(loaded)}, and that is refused by its type ({text_of(error.orig or error)})"
    return f" with spaces around it, and clauses ask for {bare!r}" if padded else None


def _has_no_fraction(value: object, kept_as: Any, asked: _Asked) -> bool:
    """Whether the value is a time as SQLite's own clock writes it, and clauses compare it only by order: then it is exact to the second."""
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
