"""Due times that do not sort as times: SQLite keeps what others write, and compares it as text. SELECTs alone."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, Text, func, not_, or_, select, type_coerce

from groundstate.engine.question import PrimaryKey, Question

LOOKED_AT = 10_000  # rows of a reaction
CURE = "write it as 2026-12-24 18:00:00.000000, in UTC"
_DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"


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
    sorts = or_(at.op("GLOB")(_DAY), at.op("GLOB")(f"{_DAY} [0-9][0-9]:[0-9][0-9]:[0-9][0-9]*"))
    found = connection.execute(select(at).where(or_(func.typeof(at) != "text", not_(sorts))).limit(1)).scalar()
    if found is None:
        return None
    return f"{due.attribute} holds {found!r}, which does not sort as a time among others: it is not carried out when it is due"
