"""Finds due times that do not sort in the order of time: SQLite stores whatever another program writes, and compares it as text. Runs only
SELECTs.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, LargeBinary, Text, and_, case, cast, func, not_, or_, select, type_coerce
from sqlalchemy.types import NullType

from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.due_expression import begins_with_calendar_day
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.sql.unreadable_columns import stored_bytes_as_text

LOOKED_AT = 10_000  # at most this many rows of one reaction are checked
CURE = "write it as 2026-12-24 18:00:00.000000, in UTC"
_DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
_SORTS = [_DAY, *[f"{_DAY} {hour}:[0-5][0-9]:[0-5][0-9]*" for hour in ("[01][0-9]", "2[0-3]")]]


def first_odd_due_time(connection: Connection, query: ConditionQuery) -> str | None:
    """Return a description of the wrong due time of one record that meets the condition; None if no such record was found."""
    return _describe_odd_due_time(connection, query, query.condition.holds)


def odd_due_time_of_record(connection: Connection, query: ConditionQuery, key: PrimaryKey) -> str | None:
    """Return a description of the wrong due time of this record; None if its due time is right."""
    return _describe_odd_due_time(connection, query, query.keys.has_key_among([key]))


def _describe_odd_due_time(connection: Connection, query: ConditionQuery, which: ColumnElement[bool]) -> str | None:
    due = query.spec.due
    if due is None or due.attribute is None or connection.dialect.name != "sqlite":
        return None
    some = select(due.attribute.label("at")).where(which, due.attribute.is_not(None)).limit(LOOKED_AT).subquery()
    at = type_coerce(some.c.at, Text())
    sorts_here = and_(func.typeof(at) == "text", or_(*[at.op("GLOB")(pattern) for pattern in _SORTS]))
    stands = case((func.typeof(at) == "text", cast(at, LargeBinary)), else_=type_coerce(at, NullType()))  # text may not be UTF-8
    statement = select(type_coerce(stands, NullType()), sorts_here)
    found = connection.execute(statement.where(or_(not_(sorts_here), not_(begins_with_calendar_day(at)))).limit(1)).first()
    if found is None:
        return None
    why = "is a time of no calendar" if found[1] else "does not sort as a time among others"
    return f"{due.attribute} holds {stored_bytes_as_text(found[0])}, which {why}: it is not carried out when it is due"
