"""Finds comparisons of times and durations, which SQLite stores as text, that it evaluates differently from what is meant. Pure."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, Cast, ClauseList, ExpressionClauseList, Extract, Null
from sqlalchemy.sql.schema import Column
from sqlalchemy.sql.sqltypes import Date, DateTime, Interval, NullType, String, Time, TupleType
from sqlalchemy.types import TypeDecorator

from groundstate.rules import sql_inspect as look
from groundstate.rules.sqlite_operand import (
    AMONG,
    CLOCKS,
    NUMBERS,
    ORDERS,
    SAME,
    SUMS,
    TEXTS_OF_TIME,
    TIMES,
    TIMES_AS_TEXT,
    alternatives,
    compared,
    function_name,
    inner,
    is_number,
    is_text_of_number,
    is_time,
    kept_as,
    kind_of_time,
    not_null,
    operands,
)
from groundstate.rules.stored_values import WRITTEN, converted, stored

_OF_TIME = TEXTS_OF_TIME | {"julianday", "unixepoch"}
_PARTS = frozenset({"year", "month", "day", "hour", "minute", "second", "doy", "dow", "epoch"})
_LENGTHS = {"date": 10, "time": 8, "datetime": 19}  # characters of the texts that these functions return


def arithmetic(one: Any, dialect: Dialect) -> str | None:
    sides = operands(one)
    if not any(isinstance(kept_as(side, dialect), TIMES) or function_name(inner(side)) in TIMES_AS_TEXT for side in sides):
        return None
    return (
        f"`{one}` computes with a time or a duration, which is kept as text there, of which it takes the number at the front (the year):"
        " write due=after(column, timedelta(...)), or compare with func.datetime('now', '-1 hour'), func.datetime(column, '+1 day'), or"
        " func.julianday('now') - func.julianday(column), in days"
    )


def sum_of_times(one: Any, dialect: Dialect) -> str | None:
    if function_name(one) in SUMS and any(isinstance(kept_as(side, dialect), TIMES) for side in one.clauses):
        return f"`{one}` adds up times or durations by the number at the front of their text: keep the duration in seconds, as a number"
    return None


def cast_to_time(one: Any, dialect: Dialect) -> str | None:
    if isinstance(one, Cast) and isinstance(kept_as(one, dialect), TIMES) and not isinstance(inner(one.clause), Null):
        return (
            f"`{one}` is a number, the one at the front of the text (the year): write func.date(column), func.datetime(column) or"
            " func.time(column)"
        )
    return None


def modifier(one: Any, dialect: Dialect) -> str | None:
    if function_name(one) not in _OF_TIME:
        return None
    before = 2 if function_name(one) == "strftime" else 1  # arguments before the modifiers; among these a duration means a time since 1970
    modifiers = list(one.clauses)[before:]
    if any(isinstance(kept_as(side, dialect), Interval) for side in modifiers):
        return f"`{one}` is NULL, since it takes no timedelta: give a text, as in func.{function_name(one)}(column, '+1 hour')"
    return None


def day_and_time(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared(one, SAME):
        if isinstance(right, BindParameter) or isinstance(left, BindParameter):
            continue
        kinds = {type_ for side in (left, right) for type_ in (Date, DateTime) if isinstance(kept_as(side, dialect), type_)}
        if len(kinds) == 2:
            return f"`{one}` compares a day with a time, as two texts of which none is ever the other: write func.date(...) around the time"
    return None


def clock(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared(one, ORDERS):
        if not isinstance(left, Column) or not any(function_name(part) in CLOCKS for part in alternatives(right)):
            continue
        if not isinstance(left.type, (TypeDecorator, DateTime, *NUMBERS)):
            continue
        if isinstance(left.type, NUMBERS):
            return f"`{one}` compares a number with a time, which is text there: write func.unixepoch('now') for the clock"
        held = stored(left.type, dialect)
        if not isinstance(held, str) or not WRITTEN.startswith(held[: len(WRITTEN)]):
            return (
                f"`{one}` compares the clock with a column that keeps {WRITTEN}Z as {held!r}, which does not sort among times there: map it"
                " as groundstate.UtcDateTime"
            )
    return None


def day_with_time_given(one: Any, dialect: Dialect) -> str | None:
    """Return why comparing a day with a given time, or a time with a given day, goes wrong: the shorter text is less than the longer one of
    the same moment.
    """
    if not isinstance(one, BinaryExpression) or one.operator not in ORDERS | SAME | AMONG:
        return None
    left, right = inner(one.left), inner(one.right)
    several = list(right.clauses) if isinstance(right, ClauseList | ExpressionClauseList) else [right]
    for number, other in enumerate(map(inner, several)):
        kinds = (_is_whole_day(left, dialect), _is_whole_day(other, dialect))
        given = any(isinstance(part, BindParameter) for side in (left, other) for part in alternatives(side))
        if given and None not in kinds and kinds[0] is not kinds[1] and _goes_wrong(one.operator, number, left_is_day=bool(kinds[0])):
            return (
                f"`{one}` compares a day with a time, whose texts are of different length, so that midnight is not that day: give both the"
                " same type, as by datetime.combine(day, time()), or write func.date(...) around the time"
            )
    return None


def _is_whole_day(side: Any, dialect: Dialect) -> bool | None:
    """Return True for the text of a day, False for that of a time with its day, and None for neither or where it is not known."""
    parts = not_null(side)
    if parts and all(function_name(part) in ("date", "current_date") or isinstance(kept_as(part, dialect), Date) for part in parts):
        return True
    return False if parts and all(isinstance(kept_as(part, dialect), DateTime) for part in parts) else None


def _goes_wrong(operator: Any, number: int, *, left_is_day: bool) -> bool:
    """Return whether comparing a day with a time by this operator goes wrong. number: the bound of BETWEEN that is compared, 0 or 1."""
    if operator in (operators.between_op, operators.not_between_op):
        return number == (0 if left_is_day else 1)
    if operator in (operators.lt, operators.ge):
        return left_is_day
    return not left_is_day if operator in (operators.gt, operators.le) else True


def time_with_text(one: Any, dialect: Dialect) -> str | None:
    """Return why comparing a time with a text goes wrong. It is right where the text is written as the column writes times, or where it is
    the beginning of such a text and the operator orders (as < does).
    """
    for left, right in compared(one):
        if not isinstance(left, Column) or not is_time(left, dialect):
            continue
        for bound in alternatives(right):
            for value in look.bound(bound):
                if isinstance(value, str) and isinstance(bound.type, String | NullType) and not _is_written_so(left, value, one, dialect):
                    return f"`{one}` compares the text of times with {value!r}, as which none is written there: give it a value of Python"
    return None


def _is_written_so(column: Any, words: str, one: Any, dialect: Dialect) -> bool:
    kind: Any = kept_as(column, dialect)
    read = time if isinstance(kind, Time) else date if isinstance(kind, Date) else datetime
    try:
        written = str(converted(column.type, read.fromisoformat(words), dialect))
    except ValueError:
        return False
    return written == words or (one.operator in ORDERS and written.startswith(words))


def time_with_number(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared(one):
        times, numbers = not_null(left), not_null(right)
        if not (times and all(is_time(side, dialect) for side in times)):
            continue
        if not (numbers and all(is_number(side, dialect) or is_text_of_number(side) for side in numbers)):
            continue  # an alternative may be a 0 for a missing time: it is less than any time, as is meant
        if isinstance(kept_as(times[0], dialect), Interval):
            return (
                f"`{one}` compares a duration, which is kept as text there, with a number, which is less than any text: give it a"
                " timedelta, or write extract('epoch', column) for its seconds"
            )
        return (
            f"`{one}` compares a time, which is kept as text there, with a number, which is less than any text: compare times, as with"
            " func.now(), func.datetime('now', '-1 hour') or a datetime, or write numbers on both sides, as in func.unixepoch(column) <"
            " func.unixepoch('now') - 3600"
        )
    return None


def of_another_kind(one: Any, dialect: Dialect) -> str | None:
    """Return why comparing a time of day with a time that has a day, or a duration with either, goes wrong: their texts have nothing in
    common.
    """
    for left, right in compared(one):
        kinds = {kind_of_time(side, dialect) for side in (left, right)}
        if None in kinds or len(kinds) == 1:
            continue
        cure = "write func.time(...) around the other" if "a time of the day" in kinds else "compare durations with durations"
        return f"`{one}` compares {' with '.join(sorted(map(str, kinds)))}, by the letters of texts that have nothing in common: {cure}"
    return None


def other_form(one: Any, dialect: Dialect) -> str | None:
    """Return why a constant never equals the text of SQLite's function beside it: its text has another length, as one with microseconds
    has.
    """
    for left, right in compared(one, SAME | AMONG):
        name = function_name(left)
        if name not in _LENGTHS:
            continue
        for bound in alternatives(right):
            if not isinstance(kept_as(bound, dialect), DateTime | Date | Time):
                continue
            for value in look.bound(bound):
                written = converted(bound.type, value, dialect)
                if isinstance(written, str) and len(written) != _LENGTHS[name]:
                    return (
                        f"`{one}` compares the text of func.{name}(...) with {written!r}, of another form, which it never is: write"
                        f" func.{name}(...) around both"
                    )
    return None


def in_another_zone(one: Any, _dialect: Dialect) -> str | None:
    """Return why a bound time of another type than the column beside it goes wrong: the column stores UTC, to which that type does not
    convert.
    """
    for left, right in compared(one):
        if not hasattr(left.type, "refuses"):  # only UtcDateTime has this method
            continue
        given = [part for side in alternatives(right) for part in (side.clauses if function_name(side) in _OF_TIME else [side])]
        for part in given:
            if not isinstance(part, BindParameter) or hasattr(part.type, "refuses"):
                continue
            for value in look.bound(part):
                if isinstance(value, datetime) and (value.tzinfo is None or value.utcoffset()):
                    return (
                        f"`{one}` compares times in UTC with {value.isoformat(sep=' ')} as its own clock shows it: give it the column's"
                        " type, as in literal(value, UtcDateTime()), and a zone where it has none"
                    )
    return None


def by_its_own_clock(one: Any, dialect: Dialect) -> str | None:
    """Refuse a time with a zone that its type writes without the zone: the same moment would have several texts."""
    if not isinstance(one, BindParameter):
        return None
    kinds = one.type.types if isinstance(one.type, TupleType) else [one.type]
    for row in look.bound(one):
        for kind, value in zip(kinds, row if isinstance(one.type, TupleType) else [row], strict=False):
            if isinstance(value, datetime) and value.utcoffset():
                written, in_utc = (converted(kind, same, dialect) for same in (value, value.astimezone(UTC)))
                if not isinstance(written, Exception) and written != in_utc:
                    return (
                        f"{value.isoformat(sep=' ')} is given as its own clock shows it, without its zone ({written!r}): map the column as"
                        " groundstate.UtcDateTime, or give value.astimezone(UTC); where the column has the clock of that zone, give"
                        " value.replace(tzinfo=None)"
                    )
            if isinstance(value, time) and value.utcoffset():
                return (
                    f"the time of the day {value.isoformat()} is given as its own clock shows it, without its zone: give it as the column"
                    " has it, and without a zone"
                )
    return None


def part_of_time(one: Any, _dialect: Dialect) -> str | None:
    if isinstance(one, Extract) and one.field.lower() not in _PARTS:
        return f"`{one}` is not computed as PostgreSQL does: it takes {', '.join(sorted(_PARTS))} there"
    return None
