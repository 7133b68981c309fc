"""Finds due times that do not sort as times: SQLite keeps what others write, and compares it as text. Runs SELECTs only."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, LargeBinary, Text, and_, case, cast, func, not_, or_, select, type_coerce
from sqlalchemy.types import NullType

from groundstate.engine.sql.condition_query import ConditionQuery, PrimaryKey
from groundstate.engine.sql.due_expression import is_a_day
from groundstate.engine.sql.unreadable_columns import shown

LOOKED_AT = 10_000  # rows of one reaction that are checked
CURE = "write it as 2026-12-24 18:00:00.000000, in UTC"
_DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
_SORTS = [_DAY, *[f"{_DAY} {hour}:[0-5][0-9]:[0-5][0-9]*" for hour in ("[01][0-9]", "2[0-3]")]]


def first_odd_due_time(connection: Connection, query: ConditionQuery) -> str | None:
    """Describe the wrong due time of one row for which the condition holds; None where no such row was found."""
    return _odd(connection, query, query.condition)


def of_record(connection: Connection, query: ConditionQuery, key: PrimaryKey) -> str | None:
    """Describe the wrong due time of this record; None where its due time is right."""
    return _odd(connection, query, query.among([key]))


def _odd(connection: Connection, query: ConditionQuery, which: ColumnElement[bool]) -> str | None:
    due = query.spec.due
    if due is None or due.attribute is None or connection.dialect.name != "sqlite":
        return None
    some = select(due.attribute.label("at")).where(which, due.attribute.is_not(None)).limit(LOOKED_AT).subquery()
    at = type_coerce(some.c.at, Text())
    sorts_here = and_(func.typeof(at) == "text", or_(*[at.op("GLOB")(pattern) for pattern in _SORTS]))
    stands = case((func.typeof(at) == "text", cast(at, LargeBinary)), else_=type_coerce(at, NullType()))  # it may be no UTF-8
    statement = select(type_coerce(stands, NullType()), sorts_here)
    found = connection.execute(statement.where(or_(not_(sorts_here), not_(is_a_day(at)))).limit(1)).first()
    if found is None:
        return None
    why = "is a time of no calendar" if found[1] else "does not sort as a time among others"
    return f"{due.attribute} holds {shown(found[0])}, which {why}: it is not carried out when it is due"
