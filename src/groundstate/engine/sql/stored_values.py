"""Finds stored values that no clause can match, since their column's type would write them in another form. Such a value was written
without SQLAlchemy, or by a column default that SQLite stored as text.

A stored value is right if it is found by a query that compares its column, by `==`, with the value as it is loaded. Checks a sample of the
rows, and runs only SELECTs.
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
from groundstate.engine.sql.safe_text import safe_repr, safe_str
from groundstate.rules import sql_inspect as look
from groundstate.values.keys import NoValue

ROWS_MOST = 10_000  # at most this many rows of one table are checked
VALUES_MOST = 100  # at most this many different values of one column are checked
_OF_NO_EQUALITY = (JSON, ARRAY, PickleType, LargeBinary)
_ORDERS = (operators.lt, operators.le, operators.gt, operators.ge, operators.between_op, operators.not_between_op)
_TO_THE_SECOND = len("2026-01-01 00:00:00")
_LEAST = timedelta(microseconds=1)
_TIMES = (DateTime, Date, Time, Interval)


@dataclass(frozen=True)
class _Comparisons:
    """How clauses compare a column.

    texts: All texts with which the column is compared. by_value: Whether any clause compares the column with an operator that is not an
        order operator such as `<=`.
    """

    texts: Collection[object]
    by_value: bool


@dataclass(frozen=True)
class UnmatchableValue:
    """A stored value that no clause can match, since its column's type would write the value in another form.

    rows: How many of the checked rows have this value or, if it is a time, a value in the same form.
    """

    table: str
    column: str
    shown: str
    kind: str
    rows: int
    reactions: tuple[str, ...]


def find_unmatchable_values(connection: Connection, queries: Sequence[ConditionQuery]) -> list[UnmatchableValue]:
    """Return the stored values that no clause can match, in the columns that the conditions of these reactions compare with something."""
    by_column: dict[Any, list[str]] = {}
    for query in queries:
        for column in _compared_columns(query):
            names = by_column.setdefault(column, [])
            names += [] if query.spec.name in names else [query.spec.name]
    found: list[UnmatchableValue] = []
    for column, names in by_column.items():
        # The column's type has no order or no equality if one of these errors is raised.
        with suppress(ProgrammingError, DataError, NotSupportedError), connection.begin_nested():
            asked = _Comparisons(_texts_compared_with(queries, column), _is_compared_by_value(queries, column))
            try:
                found += list(_unmatchable_in_column(connection, column, tuple(names), asked))
            except OperationalError as error:
                if not db_errors.is_conversion_error(error):
                    raise
                words = f"text that is not UTF-8 ({db_errors.database_message(error)})"
                kind = type(column.type).__name__
                found.append(UnmatchableValue(column.table.fullname, column.name, words, kind, 1, tuple(names)))
    for questions_of_one in _queries_by_mapper(queries):
        found += _unmatchable_keys(connection, questions_of_one)
    return found


def _queries_by_mapper(queries: Sequence[ConditionQuery]) -> list[list[ConditionQuery]]:
    found: dict[object, list[ConditionQuery]] = {}
    for query in queries:
        if query.keys.may_store_other_key_forms:
            found.setdefault(query.mapper, []).append(query)
    return list(found.values())


def _unmatchable_keys(connection: Connection, queries: Sequence[ConditionQuery]) -> Iterator[UnmatchableValue]:
    """Yield the keys of records that can be loaded, but that no statement of the ORM finds by their key."""
    first, names = queries[0], tuple(query.spec.name for query in queries)
    rows = connection.execute(select(*first.keys.key_columns_as_stored).limit(ROWS_MOST)).all()
    for column, values in zip(first.mapper.primary_key, zip(*rows, strict=True), strict=False):
        odd_ones = [value for value in values if isinstance(value, NoValue)]
        if odd_ones:
            yield UnmatchableValue(
                column.table.fullname,
                column.name,
                f"{safe_repr(odd_ones[0].raw)} as a key",
                type(column.type).__name__,
                len(odd_ones),
                names,
            )


def _compared_columns(query: ConditionQuery) -> Iterator[Any]:
    """Yield the table columns that clauses read, without columns that are only checked for NULL."""
    for clause in query.spec.clauses:
        by_null = [left for left, _, right in look.comparisons_in(look.all_parts(clause)) if isinstance(right, Null)]
        for one in look.only_columns(look.all_parts(clause)):
            column = look.base_column(one)
            if isinstance(column.table, Table) and not any(one is left for left in by_null):
                yield column


def _texts_compared_with(queries: Sequence[ConditionQuery], column: Any) -> set[object]:
    """Return the texts with which clauses compare this column."""
    clauses = [clause for query in queries for clause in query.spec.clauses]
    found = [look.comparisons_in(look.all_parts(clause)) for clause in clauses]
    return {
        value
        for operands in found
        for left, _, right in operands
        if look.base_column(left) is column
        for value in look.bound_values(right)
        if isinstance(value, str)
    }


def _is_compared_by_value(queries: Sequence[ConditionQuery], column: Any) -> bool:
    parts = [one for query in queries for clause in query.spec.clauses for one in look.all_parts(clause)]
    return any(
        isinstance(one, BinaryExpression)
        and one.operator not in _ORDERS
        and any(look.base_column(side) is column for side in look.only_columns((one.left, one.right)))
        for one in parts
    )


def _unmatchable_in_column(
    connection: Connection, column: Any, reactions: tuple[str, ...], asked: _Comparisons
) -> Iterator[UnmatchableValue]:
    dialect = connection.dialect
    kept_as = _stored_type(column.type, dialect)
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
    # SQLAlchemy's types for PostgreSQL choose by this type code how to convert a value.
    sent_as = None if loose else result.cursor.description[0][1]
    convert = column.type.dialect_impl(dialect).result_processor(dialect, sent_as)
    for value, name, rows in result:
        why = _why_unmatchable(connection, column, (held, raw, kind), (value, name), kept_as, asked, convert=convert)
        if why is not None:
            yield UnmatchableValue(column.table.fullname, column.name, f"{value!r}{why}", type(column.type).__name__, rows, reactions)


def _why_unmatchable(  # noqa: PLR0913  # the arguments are one value and everything about how it is stored
    connection: Connection,
    column: Any,
    sides: tuple[Any, Any, Any],
    stored: tuple[Any, str],
    kept_as: Any,
    asked: _Comparisons,
    *,
    convert: Callable[[Any], Any] | None,
) -> str | None:
    """Return why no clause finds the value, as a phrase that follows the value in a message; None if a clause finds it.

    convert: The column's result processor, which converts a stored value to Python.
    """
    (held, raw, kind), (value, name) = sides, stored
    try:
        loaded = value if convert is None else convert(value)
    except Exception as error:  # a user's column type may raise any exception
        return f", which cannot be loaded ({safe_str(error)})"
    if isinstance(kept_as, Numeric | Float):
        return ", which is text" if name == "text" else None
    if _is_of_another_type(column.type, loaded):
        return f", which is {name}"
    here = select(literal(1)).where(raw == literal(value, NullType()), kind == name).limit(1)
    bare = loaded.strip() if isinstance(loaded, str) else loaded

    typed = type_coerce(held, column.type)

    def finds(*clauses: ColumnElement[bool]) -> bool:
        return connection.execute(here.where(*clauses)).first() is not None

    try:
        if not finds(typed == loaded) and not (_has_no_fraction(value, kept_as, asked) and finds(*_within_a_microsecond(typed, loaded))):
            return f" ({name}), which is loaded as {safe_repr(loaded)} and kept otherwise"
        padded = bare != loaded and bare in asked.texts and not finds(typed == bare)
    except StatementError as error:  # the type loaded this value, but does not accept it as a parameter
        if isinstance(error, DBAPIError):
            raise
        return f", which is loaded as {safe_repr(loaded)}, and that is refused by its type ({safe_str(error.orig or error)})"
    return f" with spaces around it, and clauses ask for {bare!r}" if padded else None


def _has_no_fraction(value: object, kept_as: Any, asked: _Comparisons) -> bool:
    """Return whether the value is a time without a fraction of a second, as SQLite's own clock writes it, and clauses compare its column
    only by order. Such a value is exact to the second, so it is right.
    """
    return isinstance(kept_as, DateTime) and not asked.by_value and isinstance(value, str) and len(value) == _TO_THE_SECOND


def _within_a_microsecond(typed: Any, loaded: Any) -> tuple[ColumnElement[bool], ...]:
    return typed > loaded - _LEAST, typed < loaded + _LEAST


def _is_of_another_type(kind: Any, loaded: object) -> bool:
    if isinstance(kind, TypeDecorator):
        return False
    try:
        return not isinstance(loaded, kind.python_type)
    except NotImplementedError:
        return False


def _stored_type(kind: Any, dialect: Any) -> Any:
    kind = kind.dialect_impl(dialect)
    while isinstance(kind, TypeDecorator):
        kind = kind.impl_instance
    return kind
