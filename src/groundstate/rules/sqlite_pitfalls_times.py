"""Finds comparisons of times and durations whose result on SQLite is not what is meant, because SQLite stores them as text. Pure."""

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
    arithmetic_operands,
    compared_sides,
    function_name,
    is_number,
    is_text_of_number,
    is_time,
    kind_of_time,
    non_null_alternatives,
    storage_type,
    unwrap_expression,
)
from groundstate.rules.stored_values import WRITTEN, convert_for_driver, stored_sample_time

_OF_TIME = TEXTS_OF_TIME | {"julianday", "unixepoch"}
_PARTS = frozenset({"year", "month", "day", "hour", "minute", "second", "doy", "dow", "epoch"})
_LENGTHS = {"date": 10, "time": 8, "datetime": 19}  # number of characters in the text that each function returns


def check_time_arithmetic(one: Any, dialect: Dialect) -> str | None:
    sides = arithmetic_operands(one)
    if not any(isinstance(storage_type(side, dialect), TIMES) or function_name(unwrap_expression(side)) in TIMES_AS_TEXT for side in sides):
        return None
    return (
        f"`{one}` computes with a time or a duration, which is kept as text there, of which it takes the number at the front (the year):"
        " write due=after(column, timedelta(...)), or compare with func.datetime('now', '-1 hour'), func.datetime(column, '+1 day'), or"
        " func.julianday('now') - func.julianday(column), in days"
    )


def check_sum_of_times(one: Any, dialect: Dialect) -> str | None:
    if function_name(one) in SUMS and any(isinstance(storage_type(side, dialect), TIMES) for side in one.clauses):
        return f"`{one}` adds up times or durations by the number at the front of their text: keep the duration in seconds, as a number"
    return None


def check_cast_to_time(one: Any, dialect: Dialect) -> str | None:
    if isinstance(one, Cast) and isinstance(storage_type(one, dialect), TIMES) and not isinstance(unwrap_expression(one.clause), Null):
        return (
            f"`{one}` is a number, the one at the front of the text (the year): write func.date(column), func.datetime(column) or"
            " func.time(column)"
        )
    return None


def check_time_modifier(one: Any, dialect: Dialect) -> str | None:
    if function_name(one) not in _OF_TIME:
        return None
    before = 2 if function_name(one) == "strftime" else 1  # number of arguments before the modifiers; only the modifiers are checked
    modifiers = list(one.clauses)[before:]
    if any(isinstance(storage_type(side, dialect), Interval) for side in modifiers):
        return f"`{one}` is NULL, since it takes no timedelta: give a text, as in func.{function_name(one)}(column, '+1 hour')"
    return None


def check_day_with_time(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared_sides(one, SAME):
        if isinstance(right, BindParameter) or isinstance(left, BindParameter):
            continue
        kinds = {type_ for side in (left, right) for type_ in (Date, DateTime) if isinstance(storage_type(side, dialect), type_)}
        if len(kinds) == 2:
            return f"`{one}` compares a day with a time, as two texts of which none is ever the other: write func.date(...) around the time"
    return None


def check_clock_comparison(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared_sides(one, ORDERS):
        if not isinstance(left, Column) or not any(function_name(part) in CLOCKS for part in alternatives(right)):
            continue
        if not isinstance(left.type, (TypeDecorator, DateTime, *NUMBERS)):
            continue
        if isinstance(left.type, NUMBERS):
            return f"`{one}` compares a number with a time, which is text there: write func.unixepoch('now') for the clock"
        held = stored_sample_time(left.type, dialect)
        if not isinstance(held, str) or not WRITTEN.startswith(held[: len(WRITTEN)]):
            return (
                f"`{one}` compares the clock with a column that keeps {WRITTEN}Z as {held!r}, which does not sort among times there: map it"
                " as groundstate.UtcDateTime"
            )
    return None


def check_day_with_bound_time(one: Any, dialect: Dialect) -> str | None:
    """Return why comparing a day with a time goes wrong, if one of them is given as a Python value; None where it does not.

    The text of a day is shorter than the text of its midnight, so SQLite treats the day as less.
    """
    if not isinstance(one, BinaryExpression) or one.operator not in ORDERS | SAME | AMONG:
        return None
    left, right = unwrap_expression(one.left), unwrap_expression(one.right)
    several = list(right.clauses) if isinstance(right, ClauseList | ExpressionClauseList) else [right]
    for number, other in enumerate(map(unwrap_expression, several)):
        kinds = (_is_whole_day(left, dialect), _is_whole_day(other, dialect))
        given = any(isinstance(part, BindParameter) for side in (left, other) for part in alternatives(side))
        if (
            given
            and None not in kinds
            and kinds[0] is not kinds[1]
            and _is_wrong_for_day_and_time(one.operator, number, left_is_day=bool(kinds[0]))
        ):
            return (
                f"`{one}` compares a day with a time, whose texts are of different length, so that midnight is not that day: give both the"
                " same type, as by datetime.combine(day, time()), or write func.date(...) around the time"
            )
    return None


def _is_whole_day(side: Any, dialect: Dialect) -> bool | None:
    """Return True if the side is a day, False if it is a day with a time, and None if it is neither or not known."""
    parts = non_null_alternatives(side)
    if parts and all(function_name(part) in ("date", "current_date") or isinstance(storage_type(part, dialect), Date) for part in parts):
        return True
    return False if parts and all(isinstance(storage_type(part, dialect), DateTime) for part in parts) else None


def _is_wrong_for_day_and_time(operator: Any, number: int, *, left_is_day: bool) -> bool:
    """Return whether comparing a day with a time by this operator goes wrong.

    number: for BETWEEN, 0 for its lower bound and 1 for its upper bound. left_is_day: whether the day is on the left side.
    """
    if operator in (operators.between_op, operators.not_between_op):
        return number == (0 if left_is_day else 1)
    if operator in (operators.lt, operators.ge):
        return left_is_day
    return not left_is_day if operator in (operators.gt, operators.le) else True


def check_time_with_text(one: Any, dialect: Dialect) -> str | None:
    """Return why comparing a time with a text goes wrong; None where it does not.

    It goes right if the text has the format in which the column stores times. For an operator such as <, the given text may also be only
    the beginning of such a text.
    """
    for left, right in compared_sides(one):
        if not isinstance(left, Column) or not is_time(left, dialect):
            continue
        for bound in alternatives(right):
            for value in look.bound_values(bound):
                if (
                    isinstance(value, str)
                    and isinstance(bound.type, String | NullType)
                    and not _has_format_of_column(left, value, one, dialect)
                ):
                    return f"`{one}` compares the text of times with {value!r}, as which none is written there: give it a value of Python"
    return None


def _has_format_of_column(column: Any, words: str, one: Any, dialect: Dialect) -> bool:
    kind: Any = storage_type(column, dialect)
    read = time if isinstance(kind, Time) else date if isinstance(kind, Date) else datetime
    try:
        written = str(convert_for_driver(column.type, read.fromisoformat(words), dialect))
    except ValueError:
        return False
    return written == words or (one.operator in ORDERS and written.startswith(words))


def check_time_with_number(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared_sides(one):
        times, numbers = non_null_alternatives(left), non_null_alternatives(right)
        if not (times and all(is_time(side, dialect) for side in times)):
            continue
        if not (numbers and all(is_number(side, dialect) or is_text_of_number(side) for side in numbers)):
            continue  # coalesce(time, 0) is allowed: a 0 for a missing time is less than any time, as is meant
        if isinstance(storage_type(times[0], dialect), Interval):
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


def check_different_time_kinds(one: Any, dialect: Dialect) -> str | None:
    """Return why comparing two kinds of time goes wrong; None where it does not.

    The kinds are a time of day, a time with its day, and a duration. The texts of two kinds have nothing in common.
    """
    for left, right in compared_sides(one):
        kinds = {kind_of_time(side, dialect) for side in (left, right)}
        if None in kinds or len(kinds) == 1:
            continue
        cure = "write func.time(...) around the other" if "a time of the day" in kinds else "compare durations with durations"
        return f"`{one}` compares {' with '.join(sorted(map(str, kinds)))}, by the letters of texts that have nothing in common: {cure}"
    return None


def check_length_of_time_text(one: Any, dialect: Dialect) -> str | None:
    """Return why a constant never equals the text that an SQLite function such as datetime() returns; None where it may.

    The constant's text has another length, for example because of microseconds.
    """
    for left, right in compared_sides(one, SAME | AMONG):
        name = function_name(left)
        if name not in _LENGTHS:
            continue
        for bound in alternatives(right):
            if not isinstance(storage_type(bound, dialect), DateTime | Date | Time):
                continue
            for value in look.bound_values(bound):
                written = convert_for_driver(bound.type, value, dialect)
                if isinstance(written, str) and len(written) != _LENGTHS[name]:
                    return (
                        f"`{one}` compares the text of func.{name}(...) with {written!r}, of another form, which it never is: write"
                        f" func.{name}(...) around both"
                    )
    return None


def check_time_in_other_zone(one: Any, _dialect: Dialect) -> str | None:
    """Return why comparing a UtcDateTime column with a Python time that has another column type goes wrong; None where it does not.

    The column stores UTC, and the other type stores the time without converting it to UTC.
    """
    for left, right in compared_sides(one):
        if not hasattr(left.type, "reason_to_refuse"):  # skip every type other than UtcDateTime: only UtcDateTime has this method
            continue
        given = [part for side in alternatives(right) for part in (side.clauses if function_name(side) in _OF_TIME else [side])]
        for part in given:
            if not isinstance(part, BindParameter) or hasattr(part.type, "reason_to_refuse"):
                continue
            for value in look.bound_values(part):
                if isinstance(value, datetime) and (value.tzinfo is None or value.utcoffset()):
                    return (
                        f"`{one}` compares times in UTC with {value.isoformat(sep=' ')} as its own clock shows it: give it the column's"
                        " type, as in literal(value, UtcDateTime()), and a zone where it has none"
                    )
    return None


def check_time_stored_without_zone(one: Any, dialect: Dialect) -> str | None:
    """Return why binding a time with a zone goes wrong; None where it does not.

    If the type drops the zone, one moment has several texts, which SQLite treats as different.
    """
    if not isinstance(one, BindParameter):
        return None
    kinds = one.type.types if isinstance(one.type, TupleType) else [one.type]
    for row in look.bound_values(one):
        for kind, value in zip(kinds, row if isinstance(one.type, TupleType) else [row], strict=False):
            if isinstance(value, datetime) and value.utcoffset():
                written, in_utc = (convert_for_driver(kind, same, dialect) for same in (value, value.astimezone(UTC)))
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


def check_extracted_field(one: Any, _dialect: Dialect) -> str | None:
    if isinstance(one, Extract) and one.field.lower() not in _PARTS:
        return f"`{one}` is not computed as PostgreSQL does: it takes {', '.join(sorted(_PARTS))} there"
    return None
