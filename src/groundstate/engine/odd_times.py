"""Due times that do not sort as times: SQLite keeps what others write, and compares it as text. SELECTs alone."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, Text, and_, func, not_, or_, select, type_coerce

from groundstate.engine.question import PrimaryKey, Question
from groundstate.engine.timing import is_a_day

LOOKED_AT = 10_000  # rows of a reaction
CURE = "write it as 2026-12-24 18:00:00.000000, in UTC"
_DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
_SORTS = [_DAY, *[f"{_DAY} {hour}:[0-5][0-9]:[0-5][0-9]*" for hour in ("[01][0-9]", "2[0-3]")]]


def first(connection: Connection, question: Question) -> str | None:
    """What one of the rows whose condition holds has in place of a due time, in words; None where no such row was met."""
    return _odd(connection, question, question.condition)


def of_record(connection: Connection, question: Question, key: PrimaryKey) -> str | None:
    """The same of one record."""
    return _odd(connection, question, question.among([key]))


def _odd(connection: Connection, question: Question, which: ColumnElement[bool]) -> str | None:
    due = question.spec.due
    if due is None or due.attribute is None or connection.dialect.name != "sqlite":
        return None
    some = select(due.attribute.label("at")).where(which, due.attribute.is_not(None)).limit(LOOKED_AT).subquery()
    at = type_coerce(some.c.at, Text())
    sorts_here = and_(func.typeof(at) == "text", or_(*[at.op("GLOB")(pattern) for pattern in _SORTS]))
    found = connection.execute(select(at, sorts_here).where(or_(not_(sorts_here), not_(is_a_day(at)))).limit(1)).first()
    if found is None:
        return None
    why = "is a time of no calendar" if found[1] else "does not sort as a time among others"
    return f"{due.attribute} holds {found[0]!r}, which {why}: it is not carried out when it is due"
