"""States that no reaction answers: values of the columns that conditions test, which no condition matches (hazard 51). Reads alone.

Never scans a large table: distinct values are found by skipping along an index; where there is none, a table too large is said to be so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, inspect, literal_column, not_, or_, select, true
from sqlalchemy.sql import operators

from groundstate.engine import stored
from groundstate.engine.guarded import text_of
from groundstate.engine.question import Question
from groundstate.rules import clause as look
from groundstate.rules import miscomputed
from groundstate.store.carried import schema_of
from groundstate.values.errors import DeclarationError

SCANNED_MOST = 100_000  # rows of a table that may be read where no index helps
VALUES_MOST = 100  # a column with more values is no state
COUNTED_MOST = 1_000


@dataclass(frozen=True)
class Unanswered:
    """A value of a column that no reaction answers. rows: how many have it, at most 1,000 are counted."""

    table: str
    column: str
    value: str | None  # None with `why`: this column was not looked at
    rows: int = 0
    why: str | None = None


def unanswered(
    connection: Connection, questions: Sequence[Question], rested: Sequence[tuple[type, ColumnElement[bool]]]
) -> list[Unanswered]:
    """For each column that conditions test by equality: its values that no condition admits, but for records declared to rest."""
    for record, clause in rested:
        why = miscomputed.refused(clause, connection.dialect)
        if why is not None:
            raise DeclarationError(f"rests({record.__name__}, ...): {why}")
    found: list[Unanswered] = []
    for column, asking in _tested(questions).items():
        found += _of_column(connection, column, asking, [clause for record, clause in rested if _same_table(record, column)])
    for one in stored.odd(connection, questions):
        found.append(Unanswered(one.table, one.column, f"{one.shown}: no clause of its type matches it", one.rows))
    return found


def _tested(questions: Sequence[Question]) -> dict[Any, list[Question]]:
    """Columns of the records' own tables that a clause tests by equality, and the reactions that test them in any way."""
    tested: dict[Any, list[Question]] = {}
    for question in questions:
        for clause in question.spec.clauses:
            for left, operator, right in look.operands_of(look.own_parts(clause)):
                column = look.base_column(left)
                if operator in (operators.eq, operators.in_op) and list(look.bound(right)) and column.table in question.mapper.tables:
                    tested.setdefault(column, [])
    for column, asking in tested.items():
        asking += [question for question in questions if column.table in question.mapper.tables and list(_clauses_on(question, column))]
    return tested


def _clauses_on(question: Question, column: Any) -> Iterator[ColumnElement[bool]]:
    """The clauses that read this column alone."""
    for clause in question.spec.clauses:
        named = {look.base_column(one) for one in look.columns(look.parts(clause))}
        if named == {column}:
            yield clause


def _same_table(record: type, column: Any) -> bool:
    mapper: Any = inspect(record)
    return column.table in mapper.tables


def _of_column(connection: Connection, column: Any, asking: Sequence[Question], rested: Sequence[ColumnElement[bool]]) -> list[Unanswered]:
    name = column.table.fullname
    try:
        values = _values(connection, column)
    except (LookupError, ValueError, TypeError) as error:  # of its type, by a value that is named below
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
    admits = or_(*(and_(true(), *_clauses_on(question, column)) for question in asking))
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
    """Distinct values, at most one more than VALUES_MOST; None where finding them would mean to read a large table."""
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
