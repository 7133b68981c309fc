"""Finds states that no reaction answers: values of a column that conditions test, which no condition matches (hazard 51). It only reads.

It never scans a large table: it finds the distinct values by skipping along an index, and reports a large table that has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, inspect, literal_column, not_, or_, select, true
from sqlalchemy.sql import operators

from groundstate.engine.sql import stored_values
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.safe_text import text_of
from groundstate.rules import sql_inspect as look
from groundstate.rules import sqlite_pitfalls
from groundstate.store.engine_settings import schema_of
from groundstate.values.errors import DeclarationError

SCANNED_MOST = 100_000  # rows of a table that may be read if no index helps
VALUES_MOST = 100  # distinct values; a column with more does not describe a state
COUNTED_MOST = 1_000  # rows of one value that are counted


@dataclass(frozen=True)
class Unanswered:
    """A value of a column that no reaction answers. `rows` is the number of rows with that value, counted up to 1,000."""

    table: str
    column: str
    value: str | None  # None if the column was not examined, for the reason in `why`
    rows: int = 0
    why: str | None = None


def unanswered(
    connection: Connection, queries: Sequence[ConditionQuery], rested: Sequence[tuple[type, ColumnElement[bool]]]
) -> list[Unanswered]:
    """Return the values that no condition admits, for each column that conditions test by equality.

    Rows that match a condition in `rested` are not counted: the app declared them to be at rest.
    """
    for record, clause in rested:
        why = sqlite_pitfalls.refused(clause, connection.dialect)
        if why is not None:
            raise DeclarationError(f"at_rest({record.__name__}, ...): {why}")
    found: list[Unanswered] = []
    for column, asking in _tested(queries).items():
        found += _of_column(connection, column, asking, [clause for record, clause in rested if _same_table(record, column)])
    for one in stored_values.odd(connection, queries):
        found.append(Unanswered(one.table, one.column, f"{one.shown}: no clause of its type matches it", one.rows))
    return found


def _tested(queries: Sequence[ConditionQuery]) -> dict[Any, list[ConditionQuery]]:
    """Return the columns of the records' own tables that a clause tests by equality, each with all condition queries that test it in any
    way.
    """
    tested: dict[Any, list[ConditionQuery]] = {}
    for query in queries:
        for clause in query.spec.clauses:
            for left, operator, right in look.operands_of(look.own_parts(clause)):
                column = look.base_column(left)
                if operator in (operators.eq, operators.in_op) and list(look.bound(right)) and column.table in query.mapper.tables:
                    tested.setdefault(column, [])
    for column, asking in tested.items():
        asking += [query for query in queries if column.table in query.mapper.tables and list(_clauses_on(query, column))]
    return tested


def _clauses_on(query: ConditionQuery, column: Any) -> Iterator[ColumnElement[bool]]:
    """Yield the clauses that read only this column."""
    for clause in query.spec.clauses:
        named = {look.base_column(one) for one in look.columns(look.parts(clause))}
        if named == {column}:
            yield clause


def _same_table(record: type, column: Any) -> bool:
    mapper: Any = inspect(record)
    return column.table in mapper.tables


def _of_column(
    connection: Connection, column: Any, asking: Sequence[ConditionQuery], rested: Sequence[ColumnElement[bool]]
) -> list[Unanswered]:
    name = column.table.fullname
    try:
        values = _values(connection, column)
    except (LookupError, ValueError, TypeError) as error:  # raised by the column's type for a stored value, which the message contains
        return [
            Unanswered(
                name, column.name, None, why=f"{name}.{column.name} holds what cannot be loaded ({text_of(error)}): no value was looked at"
            )
        ]
    if values is None:
        why = f"{name} has more than {SCANNED_MOST:,} rows and no index that begins with {column.name}: its values were not looked at"
        return [Unanswered(name, column.name, None, why=why)]
    if len(values) > VALUES_MOST:
        return [Unanswered(name, column.name, None, why=f"{column.name} has more than {VALUES_MOST} values: it is no state")]
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
            found.append(Unanswered(name, column.name, _text(value), rows))
    return found


def _text(value: object) -> str:
    return value.name if hasattr(value, "name") else str(value)


def _values(connection: Connection, column: Any) -> list[Any] | None:
    """Return the distinct values of the column, up to VALUES_MOST + 1; None if that would read a large table."""
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
    """Whether an index over all rows begins with this column."""
    table, looked = column.table, inspect(connection)
    if next(iter(table.primary_key.columns), None) is column:
        return True
    for index in looked.get_indexes(table.name, schema=schema_of(connection, table)):
        partial = any(key.endswith("_where") for key in index.get("dialect_options", {}))
        if index["column_names"][:1] == [column.name] and not partial:
            return True
    return False
