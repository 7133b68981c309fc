"""What SQLite computes without a word, and not as it is meant. Pure: reads expressions, and answers with words and the cure.

SQLite has no type for times, durations or JSON: SQLAlchemy keeps them as text there, and what is computed with them goes by the text.
Refused is what is wrong for every row, or orders rows by the letters; what is right stays, as a comparison of two times, or of an Interval.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from math import isnan
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    Cast,
    Null,
)
from sqlalchemy.sql.schema import Column
from sqlalchemy.sql.sqltypes import JSON, Boolean, Date, DateTime, Enum, Interval, NullType, String, Time
from sqlalchemy.types import TypeDecorator

from groundstate.rules import clause as look
from groundstate.rules.operand import (
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
    is_computed_number,
    is_in_json,
    is_number,
    is_text,
    is_text_of_number,
    is_time,
    is_truth,
    kept_as,
    kind_of_time,
    not_null,
    operands,
    reads_numbers_as_text,
    reads_text_as_numbers,
    unwrapped,
)
from groundstate.rules.reaction import ReactionSpec

SAMPLE = datetime(2001, 2, 3, 4, 5, 6, 789000, tzinfo=UTC)
WRITTEN = "2001-02-03 04:05:06"  # how a column on SQLite must begin that holds it

_OF_TIME = TEXTS_OF_TIME | {"julianday", "unixepoch"}
_LENGTHS = {"date": 10, "time": 8, "datetime": 19}  # of the texts that these functions give
_OF_LETTERS = {
    operators.like_op, operators.not_like_op, operators.ilike_op, operators.not_ilike_op, operators.startswith_op,
    operators.not_startswith_op, operators.endswith_op, operators.not_endswith_op, operators.contains_op, operators.not_contains_op,
    operators.istartswith_op, operators.not_istartswith_op, operators.iendswith_op, operators.not_iendswith_op,
    operators.icontains_op, operators.not_icontains_op, operators.regexp_match_op, operators.not_regexp_match_op,
}  # fmt: skip


def refused(expression: Any, dialect: Dialect) -> str | None:
    """Why this database would not compute it as it is meant, with the cure; None where nothing is surely wrong."""
    parts = list(look.parts(expression))
    # In their order: of what is wrong within one side, its own rule tells more than that of the comparison around it.
    for rule in _OF_SQLITE if dialect.name == "sqlite" else _OF_ALL:
        for one in parts:
            why = rule(one, dialect)
            if why is not None:
                return f"on SQLite {why}" if rule not in _OF_ALL else why
    return None


def of_reaction(spec: ReactionSpec, dialect: Dialect) -> str | None:
    """The same of all that a reaction was given: its clauses, its due time, and what is loaded for its call."""
    given: list[tuple[str, Any]] = [("", clause) for clause in spec.clauses]
    if spec.due is not None and spec.due.attribute is None:
        given.append((f"due={spec.due.base} ", spec.due.base))
    if spec.call is not None:
        given += [(f"load= of call {spec.call.function.name}: ", criterion) for criterion in _criteria(spec.call.load)]
    for where, one in given:
        why = refused(one, dialect)
        if why is not None:
            return f"reaction {spec.name}: {where}{why}"
    return None


def _criteria(options: Iterable[Any]) -> Iterator[Any]:
    """What loader options say by `relationship.and_(...)`, and `with_loader_criteria`. SQLAlchemy shows it by no public name."""
    for option in options:
        for element in getattr(option, "context", ()):
            yield from getattr(element, "_extra_criteria", ())
        if not getattr(option, "deferred_where_criteria", True):
            yield option.where_criteria


def stored(kind: Any, dialect: Dialect) -> object:
    """What becomes of a time on its way into a column of this type; of a type of the user's that raises, what it said."""
    sample: Any = SAMPLE if _python(kind) is not date else SAMPLE.date()
    if isinstance(kind, DateTime):
        sample = SAMPLE.replace(tzinfo=SAMPLE.tzinfo if kind.timezone else None)
    found = _converted(kind, sample, dialect)
    return f"{type(found).__name__}: {found}" if isinstance(found, Exception) else found


def _converted(kind: Any, value: Any, dialect: Dialect) -> object:
    """What the driver is given of the value; what a type raised instead."""
    convert = kind.dialect_impl(dialect).bind_processor(dialect)
    try:
        return value if convert is None else convert(value)
    except Exception as error:  # noqa: BLE001 - a type of the user's own may raise anything
        return error


def _python(kind: Any) -> type:
    while isinstance(kind, TypeDecorator):
        kind = kind.impl_instance
    try:
        found: type = kind.python_type
    except NotImplementedError:
        return object
    return found


# ---- the rules, one kind each ----------------------------------------------------------------------------------------------------
def _arithmetic(one: Any, dialect: Dialect) -> str | None:
    sides = operands(one)
    if not any(isinstance(kept_as(side, dialect), TIMES) or function_name(inner(side)) in TIMES_AS_TEXT for side in sides):
        return None
    return (
        f"`{one}` computes with a time or a duration, which is kept as text there, of which it takes the number at the front (the year):"
        " write due=after(column, timedelta(...)), or compare with func.datetime('now', '-1 hour'), func.datetime(column, '+1 day'), or"
        " func.julianday('now') - func.julianday(column), in days"
    )


def _sum(one: Any, dialect: Dialect) -> str | None:
    if function_name(one) in SUMS and any(isinstance(kept_as(side, dialect), TIMES) for side in one.clauses):
        return f"`{one}` adds up times or durations by the number at the front of their text: keep the duration in seconds, as a number"
    return None


def _cast(one: Any, dialect: Dialect) -> str | None:
    if isinstance(one, Cast) and isinstance(kept_as(one, dialect), TIMES) and not isinstance(inner(one.clause), Null):
        return (
            f"`{one}` is a number, the one at the front of the text (the year): write func.date(column), func.datetime(column) or"
            " func.time(column)"
        )
    return None


def _modifier(one: Any, dialect: Dialect) -> str | None:
    if function_name(one) not in _OF_TIME:
        return None
    before = 2 if function_name(one) == "strftime" else 1  # a duration there is read as a time since 1970
    modifiers = list(one.clauses)[before:]
    if any(isinstance(kept_as(side, dialect), Interval) for side in modifiers):
        return f"`{one}` is NULL, since it takes no timedelta: give a text, as in func.{function_name(one)}(column, '+1 hour')"
    return None


def _text_with_number(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared(one):
        if not is_text(left, dialect) or reads_text_as_numbers(right):
            continue
        for value in alternatives(right):
            if not is_number(value, dialect):
                continue
            if reads_numbers_as_text(left):
                if one.operator in ORDERS:
                    return (
                        f"`{one}` goes by the letters of text and of numbers: write cast(..., Integer) around the text, or give it a text"
                    )
                if is_truth(value):
                    return f"`{one}` compares text with 1 or 0, as a truth is kept there: give it the text that you mean"
                continue  # a number is turned into its text, which is right
            return f"`{one}` compares text with a number, which is less than any text: write cast(..., Integer) around the text"
    return None


def _number_with_text(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared(one):
        flag = isinstance(left, Column) and isinstance(left.type, Boolean)
        if not flag and not (isinstance(left, Column) and isinstance(left.type, NUMBERS)) and not is_computed_number(left, dialect):
            continue
        for bound in alternatives(right):
            for value in look.bound(bound):
                if flag and isinstance(value, int | float | Decimal) and value not in (0, 1):
                    return f"`{one}` compares {left}, kept as 1 or 0, with {value!r}, which is neither: give it True or False"
                if not isinstance(value, str) or not isinstance(bound.type, (String, NullType, *NUMBERS, Boolean)):
                    continue
                if not reads_text_as_numbers(left):
                    return f"`{one}` compares a number with the text {value!r}, which is more than any number: give it a number"
                if _is_numeral(value):
                    continue
                if flag:
                    return f"`{one}` compares {left}, kept as 1 or 0, with the text {value!r}, which is neither: give it True or False"
                return f"`{one}` compares the numbers of {left} with the text {value!r}, which is none of them: give it a number"
    return None


def _is_numeral(words: str) -> bool:
    try:
        return not isnan(float(words))
    except ValueError:
        return False


def _json(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared(one):
        if not any(map(is_in_json, alternatives(left))):
            continue
        others = list(alternatives(right))
        if is_in_json(left):
            if isinstance(right, Null):
                return f"`{one}` never finds NULL, since JSON's null is the text 'null' there: write .as_string().is_(None)"
            if one.operator in ORDERS and any(map(is_in_json, others)):
                return (
                    f"`{one}` goes by the letters of JSON text: say what is in both, by .as_integer(), .as_float(), .as_boolean() or"
                    " .as_string()"
                )
            wrong = next((other for other in others if _never_in_json(other, dialect)), None)
        else:
            wrong = None
        if wrong is None and not reads_text_as_numbers(right) and others and all(is_number(other, dialect) for other in others):
            wrong = right
        if wrong is not None:
            values = list(look.bound(wrong))
            return (
                f"`{one}` compares JSON text with {values[0] if values else wrong!s}, which it is never equal to: say what is in it, by"
                " .as_integer(), .as_float(), .as_boolean() or .as_string(), and compare the parts of lists and objects"
            )
    return None


def _never_in_json(other: Any, dialect: Dialect) -> bool:
    """Whether it is a constant that is not written as SQLite writes what is in JSON, or a text, which it writes in quotes."""
    if isinstance(other, BindParameter):
        return not isinstance(other.type, JSON) or any(map(_has_spaces, look.bound(other)))
    return (
        (isinstance(other, look.CONSTANTS) and not isinstance(other, Null))
        or is_text(other, dialect)
        or function_name(other) == "json_extract"
    )


def _has_spaces(value: object) -> bool:
    """Whether Python writes it as JSON with a space in it, which SQLite does not."""
    if isinstance(value, dict):
        return bool(value)
    return isinstance(value, list | tuple) and (len(value) > 1 or any(map(_has_spaces, value)))


def _within_json(one: Any, _dialect: Dialect) -> str | None:
    """LIKE and its kin, which see the quotes around a text that is in JSON."""
    if isinstance(one, BinaryExpression) and one.operator in _OF_LETTERS and is_in_json(inner(one.left)):
        return f"`{one}` looks at JSON text, in which a text has quotes around it: write {inner(one.left)}.as_string()"
    return None


def _json_as_text(one: Any, _dialect: Dialect) -> str | None:
    """JSON that is cast to text keeps the quotes of a text that is in it, on each database."""
    for left, right in compared(one, SAME | AMONG):
        if not (isinstance(left, Cast) and isinstance(left.type, String) and is_in_json(inner(left.clause))):
            continue
        for value in (value for bound in alternatives(right) for value in look.bound(bound)):
            if isinstance(value, str) and not _is_json(value):
                return f"`{one}` compares {value!r} with JSON text, in which a text has quotes around it: write .as_string() and no cast"
    return None


def _is_json(words: str) -> bool:
    try:
        json.loads(words)
    except ValueError:
        return False
    return True


def _enum(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared(one, ORDERS):
        kind = unwrapped(left.type, dialect)
        if not (isinstance(left, Column) and isinstance(kind, Enum) and kind.native_enum):
            continue
        labels = kind.enums
        for value in (value for bound in alternatives(right) for value in look.bound(bound)):
            label = getattr(value, "name", value) if value not in labels else value
            if label in labels and {*labels[: labels.index(label)]} != {other for other in labels if other < label}:
                return f"`{one}` goes by the letters of the names, and not by their order in the Enum: write {left}.in_([...])"
    return None


def _day_and_time(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared(one, SAME):
        if isinstance(right, BindParameter) or isinstance(left, BindParameter):
            continue
        kinds = {type_ for side in (left, right) for type_ in (Date, DateTime) if isinstance(kept_as(side, dialect), type_)}
        if len(kinds) == 2:
            return f"`{one}` compares a day with a time, as two texts of which none is ever the other: write func.date(...) around the time"
    return None


def _clock(one: Any, dialect: Dialect) -> str | None:
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
                " as groundstate.Instant"
            )
    return None


def _time_with_number(one: Any, dialect: Dialect) -> str | None:
    for left, right in compared(one):
        times, numbers = not_null(left), not_null(right)
        if not (times and all(is_time(side, dialect) for side in times)):
            continue
        if not (numbers and all(is_number(side, dialect) or is_text_of_number(side) for side in numbers)):
            continue  # one of several may be a 0 for what is not there, which is less than any time, as is meant
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


def _of_another_kind(one: Any, dialect: Dialect) -> str | None:
    """A time of the day beside a time that has its day, or a duration beside either: their texts have nothing in common."""
    for left, right in compared(one):
        kinds = {kind_of_time(side, dialect) for side in (left, right)}
        if None in kinds or len(kinds) == 1:
            continue
        cure = "write func.time(...) around the other" if "a time of the day" in kinds else "compare durations with durations"
        return f"`{one}` compares {' with '.join(sorted(map(str, kinds)))}, by the letters of texts that have nothing in common: {cure}"
    return None


def _other_form(one: Any, dialect: Dialect) -> str | None:
    """A constant that is written in another length than the text of SQLite's function beside it, as one with microseconds."""
    for left, right in compared(one, SAME | AMONG):
        name = function_name(left)
        if name not in _LENGTHS:
            continue
        for bound in alternatives(right):
            if not isinstance(kept_as(bound, dialect), DateTime | Date | Time):
                continue
            for value in look.bound(bound):
                written = _converted(bound.type, value, dialect)
                if isinstance(written, str) and len(written) != _LENGTHS[name]:
                    return (
                        f"`{one}` compares the text of func.{name}(...) with {written!r}, of another form, which it never is: write"
                        f" func.{name}(...) around both"
                    )
    return None


def _in_another_zone(one: Any, _dialect: Dialect) -> str | None:
    """A time that is bound by another type than that of the column beside it, which writes all of its times in UTC."""
    for left, right in compared(one):
        if not hasattr(left.type, "refuses"):  # as an Instant has it
            continue
        given = [part for side in alternatives(right) for part in (side.clauses if function_name(side) in _OF_TIME else [side])]
        for part in given:
            if not isinstance(part, BindParameter) or hasattr(part.type, "refuses"):
                continue
            for value in look.bound(part):
                if isinstance(value, datetime) and (value.tzinfo is None or value.utcoffset()):
                    return (
                        f"`{one}` compares times in UTC with {value.isoformat(sep=' ')} as its own clock shows it: give it the column's"
                        " type, as in literal(value, Instant()), and a zone where it has none"
                    )
    return None


_OF_ALL: tuple[Callable[[Any, Dialect], str | None], ...] = (_json_as_text,)
_OF_SQLITE: tuple[Callable[[Any, Dialect], str | None], ...] = (
    *_OF_ALL,
    _arithmetic, _sum, _cast, _modifier, _text_with_number, _number_with_text, _json, _within_json, _enum, _day_and_time,
    _clock, _time_with_number, _of_another_kind, _other_form, _in_another_zone,
)  # fmt: skip
