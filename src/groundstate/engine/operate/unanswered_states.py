"""Finds states that no reaction handles: values, in a column that conditions test, which no condition matches (hazard 51). It only reads.

It never scans a large table: it finds the distinct values by skipping along an index. If a large table has no index that begins with the
column, the column is reported and not examined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, inspect, literal_column, not_, or_, select, true
from sqlalchemy.sql import operators

from groundstate.engine.sql import stored_values
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.safe_text import safe_str
from groundstate.rules import sql_inspect as look
from groundstate.rules import sqlite_pitfalls
from groundstate.store.engine_settings import translated_schema
from groundstate.values.errors import DeclarationError

SCANNED_MOST = 100_000  # the most rows of a table that are read if no index helps
VALUES_MOST = 100  # a column with more distinct values than this does not describe a state, and is not examined
COUNTED_MOST = 1_000  # the most rows with one value that are counted


@dataclass(frozen=True)
class UnansweredState:
    """A value of a tested column that no reaction handles. `rows` is the number of rows with this value; counting stops at 1,000."""

    table: str
    column: str
    value: str | None  # None if the column was not examined, for the reason in `why`
    rows: int = 0
    why: str | None = None


def find_unanswered_states(
    connection: Connection, queries: Sequence[ConditionQuery], rested: Sequence[tuple[type, ColumnElement[bool]]]
) -> list[UnansweredState]:
    """Return the values that no condition matches, in each column that some condition tests by equality.

    `rested` has pairs (class, clause): the app declared with `at_rest` that the rows which match the clause need no reaction. These rows
    are not counted.
    """
    for record, clause in rested:
        why = sqlite_pitfalls.reason_to_refuse_expression(clause, connection.dialect)
        if why is not None:
            raise DeclarationError(f"at_rest({record.__name__}, ...): {why}")
    found: list[UnansweredState] = []
    for column, asking in _tested_columns(queries).items():
        found += _find_in_column(connection, column, asking, [clause for record, clause in rested if _is_column_of(record, column)])
    for one in stored_values.find_unmatchable_values(connection, queries):
        found.append(UnansweredState(one.table, one.column, f"{one.shown}: no clause of its type matches it", one.rows))
    return found


def _tested_columns(queries: Sequence[ConditionQuery]) -> dict[Any, list[ConditionQuery]]:
    """Return the columns of the records' own tables that some clause tests by equality.

    The dict maps each of these columns to the condition queries that have a clause which reads only this column.
    """
    tested: dict[Any, list[ConditionQuery]] = {}
    for query in queries:
        for clause in query.spec.clauses:
            for left, operator, right in look.comparisons_in(look.iterate_without_subqueries(clause)):
                column = look.base_column(left)
                if operator in (operators.eq, operators.in_op) and list(look.bound_values(right)) and column.table in query.mapper.tables:
                    tested.setdefault(column, [])
    for column, asking in tested.items():
        asking += [query for query in queries if column.table in query.mapper.tables and list(_clauses_on(query, column))]
    return tested


def _clauses_on(query: ConditionQuery, column: Any) -> Iterator[ColumnElement[bool]]:
    """Yield each clause of the condition that reads this column and no other."""
    for clause in query.spec.clauses:
        named = {look.base_column(one) for one in look.only_columns(look.all_parts(clause))}
        if named == {column}:
            yield clause


def _is_column_of(record: type, column: Any) -> bool:
    mapper: Any = inspect(record)
    return column.table in mapper.tables


def _find_in_column(
    connection: Connection, column: Any, asking: Sequence[ConditionQuery], rested: Sequence[ColumnElement[bool]]
) -> list[UnansweredState]:
    name = column.table.fullname
    try:
        values = _read_distinct_values(connection, column)
    except (LookupError, ValueError, TypeError) as error:  # the column's type cannot load a stored value; the message shows the value
        return [
            UnansweredState(
                name, column.name, None, why=f"{name}.{column.name} holds what cannot be loaded ({safe_str(error)}): no value was looked at"
            )
        ]
    if values is None:
        why = f"{name} has more than {SCANNED_MOST:,} rows and no index that begins with {column.name}: its values were not looked at"
        return [UnansweredState(name, column.name, None, why=why)]
    if len(values) > VALUES_MOST:
        return [UnansweredState(name, column.name, None, why=f"{column.name} has more than {VALUES_MOST} values: it is no state")]
    admits = or_(*(and_(true(), *_clauses_on(query, column)) for query in asking))
    at_rest = func.coalesce(or_(*rested), not_(true())) if rested else not_(true())
    found = []
    for value in values:
        here: Select[Any] = select(literal_column("1")).select_from(column.table).where(column == value)
        if connection.execute(here.where(admits).limit(1)).first() is not None:
            continue
        some = here.where(not_(at_rest)).limit(COUNTED_MOST).subquery()
        rows = int(connection.execute(select(func.count()).select_from(some)).scalar_one())
        if rows:
            found.append(UnansweredState(name, column.name, _text_of_value(value), rows))
    return found


def _text_of_value(value: object) -> str:
    return value.name if hasattr(value, "name") else str(value)


def _read_distinct_values(connection: Connection, column: Any) -> list[Any] | None:
    """Return the first distinct values of the column, at most VALUES_MOST + 1; None if a large table would have to be scanned."""
    if not _is_indexed(connection, column):
        some = select(literal_column("1")).select_from(column.table).limit(SCANNED_MOST + 1).subquery()
        if connection.execute(select(func.count()).select_from(some)).scalar_one() > SCANNED_MOST:
            return None
        distinct = select(column).where(column.is_not(None)).distinct().order_by(column).limit(VALUES_MOST + 1)
        return list(connection.execute(distinct).scalars())
    found: list[Any] = []
    while len(found) <= VALUES_MOST:
        further = select(column).where(column.is_not(None)).order_by(column).limit(1)
        if found:
            further = further.where(column > found[-1])
        value = connection.execute(further).scalar_one_or_none()
        if value is None:
            break
        found.append(value)
    return found


def _is_indexed(connection: Connection, column: Any) -> bool:
    """Return whether this column is the first of the primary key or of an index over all rows."""
    table, looked = column.table, inspect(connection)
    if next(iter(table.primary_key.columns), None) is column:
        return True
    for index in looked.get_indexes(table.name, schema=translated_schema(connection, table)):
        partial = any(key.endswith("_where") for key in index.get("dialect_options", {}))
        if index["column_names"][:1] == [column.name] and not partial:
            return True
    return False
