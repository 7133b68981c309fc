"""What SQLite computes without a word, and not as it is meant. Pure: reads expressions, and answers with words and the cure.

SQLite has no type for times, durations or JSON: SQLAlchemy keeps them as text there, and what is computed with them goes by the text.
Refused is what is wrong for every row, or orders rows by the letters; what is right stays, as a comparison of two times, or of an Interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from math import isnan
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    Case,
    Cast,
    ClauseList,
    ExpressionClauseList,
    Extract,
    Grouping,
    Label,
    Null,
    UnaryExpression,
)
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.schema import Column
from sqlalchemy.sql.sqltypes import JSON, Boolean, Date, DateTime, Enum, Float, Integer, Interval, NullType, Numeric, String, Time
from sqlalchemy.types import TypeDecorator

from groundstate.rules import clause as look
from groundstate.rules.reaction import ReactionSpec

SAMPLE = datetime(2001, 2, 3, 4, 5, 6, 789000, tzinfo=UTC)
WRITTEN = "2001-02-03 04:05:06"  # how a column on SQLite must begin that holds it

_TIMES = (DateTime, Date, Time, Interval)
_NUMBERS = (Integer, Numeric, Float)
_ARITHMETIC = (operators.add, operators.sub, operators.mul, operators.truediv, operators.floordiv, operators.mod, operators.neg)
_SIGNS = frozenset("+-*/%")
_SUMS = frozenset({"sum", "avg", "total"})
_TEXTS_OF_TIME = frozenset({"date", "time", "datetime", "strftime"})
_TIMES_AS_TEXT = _TEXTS_OF_TIME - {"strftime"}  # which may give a number's text, such as that of seconds
_OF_TIME = _TEXTS_OF_TIME | {"julianday", "unixepoch"}
_CLOCKS = frozenset({"now", "current_timestamp", "datetime"})
_NOT_NUMBERS = _CLOCKS | _TIMES_AS_TEXT | {"current_date", "current_time"}  # whose text is never that of a number
_GIVING_NUMBERS = frozenset({"julianday", "unixepoch", "abs", "count", "instr", "length", "round"}) | _SUMS
_LENGTHS = {"date": 10, "time": 8, "datetime": 19}  # of the texts that these functions give
_FIRST_OF = {
    "coalesce": slice(None),
    "ifnull": slice(None),
    "min": slice(None),
    "max": slice(None),
    "nullif": slice(1),
    "iif": slice(1, None),
}
_ORDERS = {operators.lt, operators.le, operators.gt, operators.ge, operators.between_op, operators.not_between_op}
_SAME = {operators.eq, operators.ne, operators.is_distinct_from, operators.is_not_distinct_from}
_NULL = {operators.is_, operators.is_not}
_AMONG = {operators.in_op, operators.not_in_op}
_OF_SEVERAL = _AMONG | {operators.between_op, operators.not_between_op}
_COMPARED = _ORDERS | _SAME | _NULL | _AMONG
_INSIDE_JSON = (operators.json_getitem_op, operators.json_path_getitem_op)


def refused(expression: Any, dialect: Dialect) -> str | None:
    """Why SQLite would not compute it as it is meant, with the cure; None where nothing is surely wrong, and for any other database."""
    if dialect.name != "sqlite":
        return None
    parts = list(look.parts(expression))
    for rule in _RULES:  # in their order: of what is wrong within one side, its own rule tells more than that of the comparison around it
        for one in parts:
            why = rule(one, dialect)
            if why is not None:
                return f"on SQLite {why}"
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
    sides = _operands(one)
    if not any(isinstance(_kept_as(side, dialect), _TIMES) or _name(_inner(side)) in _TIMES_AS_TEXT for side in sides):
        return None
    return (
        f"`{one}` computes with a time or a duration, which is kept as text there, of which it takes the number at the front (the year):"
        " write due=after(column, timedelta(...)), or compare with func.datetime('now', '-1 hour'), func.datetime(column, '+1 day'), or"
        " func.julianday('now') - func.julianday(column), in days"
    )


def _operands(one: Any) -> list[Any]:
    """The sides of an arithmetic operation; none where it is not one."""
    operator = getattr(one, "operator", None)
    if operator not in _ARITHMETIC and getattr(operator, "opstring", None) not in _SIGNS:
        return []
    if isinstance(one, BinaryExpression):
        return [one.left, one.right]
    if isinstance(one, ExpressionClauseList):
        return list(one.clauses)
    return [one.element] if isinstance(one, UnaryExpression) else []


def _sum(one: Any, dialect: Dialect) -> str | None:
    if _name(one) in _SUMS and any(isinstance(_kept_as(side, dialect), _TIMES) for side in one.clauses):
        return f"`{one}` adds up times or durations by the number at the front of their text: keep the duration in seconds, as a number"
    return None


def _cast(one: Any, dialect: Dialect) -> str | None:
    if isinstance(one, Cast) and isinstance(_kept_as(one, dialect), _TIMES) and not isinstance(_inner(one.clause), Null):
        return (
            f"`{one}` is a number, the one at the front of the text (the year): write func.date(column), func.datetime(column) or"
            " func.time(column)"
        )
    return None


def _modifier(one: Any, dialect: Dialect) -> str | None:
    if _name(one) not in _OF_TIME:
        return None
    before = 2 if _name(one) == "strftime" else 1  # a duration there is read as a time since 1970
    modifiers = list(one.clauses)[before:]
    if any(isinstance(_kept_as(side, dialect), Interval) for side in modifiers):
        return f"`{one}` is NULL, since it takes no timedelta: give a text, as in func.{_name(one)}(column, '+1 hour')"
    return None


def _text_with_number(one: Any, dialect: Dialect) -> str | None:
    for left, right in _compared(one):
        if _name(left) != "strftime" or not isinstance(left.type, NullType) or _turns_text_into_numbers(right):
            continue
        if any(_number(value, dialect) for value in _alternatives(right)):
            return f"`{one}` compares text with a number, which is less than any text: write cast(..., Integer) around func.strftime(...)"
    return None


def _turns_text_into_numbers(side: Any) -> bool:
    """Whether SQLite reads the text beside it as a number, since it has a type of its own, as no function and no arithmetic has."""
    return isinstance(side, Column | Cast | Extract)


def _number_with_text(one: Any, _dialect: Dialect) -> str | None:
    for left, right in _compared(one):
        if not isinstance(left, Column) or not isinstance(left.type, (*_NUMBERS, Boolean)):
            continue
        for bound in _alternatives(right):
            for value in look.bound(bound):
                if not isinstance(value, str) or not isinstance(bound.type, String | NullType) or _is_number(value):
                    continue
                if isinstance(left.type, Boolean):
                    return f"`{one}` compares {left}, kept as 1 or 0, with the text {value!r}, which is neither: give it True or False"
                return f"`{one}` compares the numbers of {left} with the text {value!r}, which is none of them: give it a number"
    return None


def _is_number(words: str) -> bool:
    try:
        return not isnan(float(words))
    except ValueError:
        return False


def _json(one: Any, dialect: Dialect) -> str | None:
    for left, right in _compared(one):
        if not any(map(_in_json, _alternatives(left))):
            continue
        others = list(_alternatives(right))
        if _in_json(left):
            if isinstance(right, Null):
                return f"`{one}` never finds NULL, since JSON's null is the text 'null' there: write .as_string().is_(None)"
            if one.operator in _ORDERS and any(map(_in_json, others)):
                return (
                    f"`{one}` goes by the letters of JSON text: say what is in both, by .as_integer(), .as_float(), .as_boolean() or"
                    " .as_string()"
                )
            wrong = next((other for other in others if _never_in_json(other)), None)
        else:
            wrong = None
        if wrong is None and not _turns_text_into_numbers(right) and others and all(_number(other, dialect) for other in others):
            wrong = right
        if wrong is not None:
            values = list(look.bound(wrong))
            return (
                f"`{one}` compares JSON text with {values[0] if values else wrong!s}, which it is never equal to: say what is in it, by"
                " .as_integer(), .as_float(), .as_boolean() or .as_string(), and compare the parts of lists and objects"
            )
    return None


def _in_json(side: Any) -> bool:
    return isinstance(side, BinaryExpression) and side.operator in _INSIDE_JSON and isinstance(side.type, JSON)


def _never_in_json(other: Any) -> bool:
    """Whether it is a constant that is not written as SQLite writes what is in JSON."""
    if isinstance(other, BindParameter):
        return not isinstance(other.type, JSON) or any(map(_has_spaces, look.bound(other)))
    return isinstance(other, look.CONSTANTS) and not isinstance(other, Null)


def _has_spaces(value: object) -> bool:
    """Whether Python writes it as JSON with a space in it, which SQLite does not."""
    if isinstance(value, dict):
        return bool(value)
    return isinstance(value, list | tuple) and (len(value) > 1 or any(map(_has_spaces, value)))


def _enum(one: Any, dialect: Dialect) -> str | None:
    for left, right in _compared(one, _ORDERS):
        kind = _unwrapped(left.type, dialect)
        if not (isinstance(left, Column) and isinstance(kind, Enum) and kind.native_enum):
            continue
        labels = kind.enums
        for value in (value for bound in _alternatives(right) for value in look.bound(bound)):
            label = getattr(value, "name", value) if value not in labels else value
            if label in labels and {*labels[: labels.index(label)]} != {other for other in labels if other < label}:
                return f"`{one}` goes by the letters of the names, and not by their order in the Enum: write {left}.in_([...])"
    return None


def _day_and_time(one: Any, dialect: Dialect) -> str | None:
    for left, right in _compared(one, _SAME):
        if isinstance(right, BindParameter) or isinstance(left, BindParameter):
            continue
        kinds = {type_ for side in (left, right) for type_ in (Date, DateTime) if isinstance(_kept_as(side, dialect), type_)}
        if len(kinds) == 2:
            return f"`{one}` compares a day with a time, as two texts of which none is ever the other: write func.date(...) around the time"
    return None


def _clock(one: Any, dialect: Dialect) -> str | None:
    for left, right in _compared(one, _ORDERS):
        if not isinstance(left, Column) or not any(_name(part) in _CLOCKS for part in _alternatives(right)):
            continue
        if not isinstance(left.type, (TypeDecorator, DateTime, *_NUMBERS)):
            continue
        if isinstance(left.type, _NUMBERS):
            return f"`{one}` compares a number with a time, which is text there: write func.unixepoch('now') for the clock"
        held = stored(left.type, dialect)
        if not isinstance(held, str) or not WRITTEN.startswith(held[: len(WRITTEN)]):
            return (
                f"`{one}` compares the clock with a column that keeps {WRITTEN}Z as {held!r}, which does not sort among times there: map it"
                " as groundstate.Instant"
            )
    return None


def _time_with_number(one: Any, dialect: Dialect) -> str | None:
    for left, right in _compared(one):
        times, numbers = _not_null(left), _not_null(right)
        if not (times and all(_time(side, dialect) for side in times) and numbers and all(_number(side, dialect) for side in numbers)):
            continue  # one of several may be a 0 for what is not there, which is less than any time, as is meant
        if isinstance(_kept_as(times[0], dialect), Interval):
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


def _not_null(side: Any) -> list[Any]:
    return [one for one in _alternatives(side) if not isinstance(one, Null)]


def _time(side: Any, dialect: Dialect) -> bool:
    """Whether it is surely a time or a duration in its text."""
    if _name(side) in _NOT_NUMBERS:
        return True
    if isinstance(side, BindParameter):
        values = list(look.bound(side))
        if not values or not all(isinstance(value, date | time | timedelta) for value in values):
            return False
    elif not isinstance(side, Column):
        return False
    kind = _kept_as(side, dialect)
    # A storage_format of digits alone makes a column of text, beside which SQLite reads a number as text.
    return isinstance(kind, _TIMES) and getattr(kind, "format_is_text_affinity", True) and _is_bound_as_it_is(side, dialect)


def _number(side: Any, dialect: Dialect) -> bool:
    """Whether it is surely a number, or NULL."""
    if isinstance(side, BindParameter):
        values = list(look.bound(side))
        numbers = all(isinstance(value, int | float | Decimal) and not isinstance(value, bool) for value in values)
        return bool(values) and numbers and isinstance(_kept_as(side, dialect), (*_NUMBERS, NullType))
    if isinstance(side, Column):
        return isinstance(_kept_as(side, dialect), _NUMBERS) and _is_bound_as_it_is(side, dialect)
    if isinstance(side, Cast):
        return isinstance(_kept_as(side, dialect), _NUMBERS)
    return isinstance(side, Extract) or _name(side) in _GIVING_NUMBERS or bool(_operands(side))


def _is_bound_as_it_is(side: Any, dialect: Dialect) -> bool:
    """Whether the type puts no SQL around a value, which might make anything of it."""
    return side.type.dialect_impl(dialect).bind_expression(BindParameter("one", None, type_=side.type)) is None


def _other_form(one: Any, dialect: Dialect) -> str | None:
    """A constant that is written in another length than the text of SQLite's function beside it, as one with microseconds."""
    for left, right in _compared(one, _SAME | _AMONG):
        if _name(left) not in _LENGTHS:
            continue
        for bound in _alternatives(right):
            if not isinstance(_kept_as(bound, dialect), DateTime | Date | Time):
                continue
            for value in look.bound(bound):
                written = _converted(bound.type, value, dialect)
                if isinstance(written, str) and len(written) != _LENGTHS[_name(left)]:
                    return (
                        f"`{one}` compares the text of func.{_name(left)}(...) with {written!r}, of another form, which it never is: write"
                        f" func.{_name(left)}(...) around both"
                    )
    return None


def _in_another_zone(one: Any, _dialect: Dialect) -> str | None:
    """A time that is bound by another type than that of the column beside it, which writes all of its times in UTC."""
    for left, right in _compared(one):
        if not hasattr(left.type, "refuses"):  # as an Instant has it
            continue
        given = [part for side in _alternatives(right) for part in (side.clauses if _name(side) in _OF_TIME else [side])]
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


_RULES: tuple[Callable[[Any, Dialect], str | None], ...] = (
    _arithmetic, _sum, _cast, _modifier, _text_with_number, _number_with_text, _json, _enum, _day_and_time, _clock, _time_with_number,
    _other_form, _in_another_zone,
)  # fmt: skip


# ---- looking into them -----------------------------------------------------------------------------------------------------------
def _compared(one: Any, operators_: set[Any] = _COMPARED) -> Iterator[tuple[Any, Any]]:
    """Both sides of a comparison, each once as the left one; with each of the other side's of IN and BETWEEN."""
    if not isinstance(one, BinaryExpression) or one.operator not in operators_:
        return
    left, right = _inner(one.left), _inner(one.right)
    several = one.operator in _OF_SEVERAL and isinstance(right, ClauseList | ExpressionClauseList)
    for other in map(_inner, right.clauses if several else [right]):
        if hasattr(left, "type") and hasattr(other, "type"):  # which text() has not
            yield left, other
            yield other, left


def _inner(one: Any) -> Any:
    while isinstance(one, Grouping | Label):
        one = one.element
    return one


def _alternatives(side: Any) -> Iterator[Any]:
    """What the value of the side is one of, as the results of CASE and the arguments of coalesce; most sides are their own."""
    side = _inner(side)
    if isinstance(side, Case):
        inside = [result for _, result in side.whens] + ([] if side.else_ is None else [side.else_])
    elif isinstance(side, FunctionElement) and _name(side) in _FIRST_OF:
        inside = list(side.clauses)[_FIRST_OF[_name(side)]]
    else:
        yield side
        return
    for one in inside:
        yield from _alternatives(one)


def _name(one: Any) -> str:
    return str(getattr(one, "name", "")).lower() if isinstance(one, FunctionElement) else ""


def _kept_as(side: Any, dialect: Dialect) -> Any:
    """The type of what the side is in the database."""
    kind = getattr(_inner(side), "type", None)
    return None if kind is None else _unwrapped(kind, dialect)


def _unwrapped(kind: Any, dialect: Dialect) -> Any:
    kind = kind.dialect_impl(dialect)
    while isinstance(kind, TypeDecorator) and not isinstance(kind, Interval):  # which is one itself, over DateTime
        kind = kind.impl_instance
    return kind
