"""What SQLite computes without a word, and not as it is meant. Pure: reads expressions, and answers with words and the cure.

SQLite has no type for times, durations or JSON: SQLAlchemy keeps them as text there, and what is computed with them goes by the text.
Refused is what is wrong for every row, or orders rows by the letters; what is right stays, as a comparison of two times, or of an Interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from math import isnan
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, Cast, ExpressionClauseList, Grouping, Null, UnaryExpression
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.schema import Column
from sqlalchemy.sql.sqltypes import JSON, Date, DateTime, Enum, Integer, Interval, NullType, Numeric, Time
from sqlalchemy.types import TypeDecorator

from groundstate.rules import clause as look
from groundstate.rules.reaction import ReactionSpec

SAMPLE = datetime(2001, 2, 3, 4, 5, 6, 789000, tzinfo=UTC)
WRITTEN = "2001-02-03 04:05:06"  # how a column on SQLite must begin that holds it

_TIMES = (DateTime, Date, Time, Interval)
_ARITHMETIC = (operators.add, operators.sub, operators.mul, operators.truediv, operators.floordiv, operators.mod, operators.neg)
_SIGNS = frozenset("+-*/%")
_SUMS = frozenset({"sum", "avg", "total"})
_TEXTS_OF_TIME = frozenset({"date", "time", "datetime", "strftime"})
_TIMES_AS_TEXT = _TEXTS_OF_TIME - {"strftime"}  # which may give a number's text, such as that of seconds
_OF_TIME = _TEXTS_OF_TIME | {"julianday", "unixepoch"}
_CLOCKS = frozenset({"now", "current_timestamp", "datetime"})
_ORDERS = {operators.lt, operators.le, operators.gt, operators.ge, operators.between_op, operators.not_between_op}
_SAME = {operators.eq, operators.ne, operators.is_distinct_from, operators.is_not_distinct_from}
_NULL = {operators.is_, operators.is_not}
_AMONG = {operators.in_op, operators.not_in_op}
_COMPARED = _ORDERS | _SAME | _NULL | _AMONG
_INSIDE_JSON = (operators.json_getitem_op, operators.json_path_getitem_op)


def refused(expression: Any, dialect: Dialect) -> str | None:
    """Why SQLite would not compute it as it is meant, with the cure; None where nothing is surely wrong, and for any other database."""
    if dialect.name != "sqlite":
        return None
    for one in look.parts(expression):
        for rule in _RULES:
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
    convert = kind.dialect_impl(dialect).bind_processor(dialect)
    try:
        return sample if convert is None else convert(sample)
    except Exception as error:  # noqa: BLE001 - a type of the user's own may raise anything
        return f"{type(error).__name__}: {error}"


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
    if _name(one) in _OF_TIME and any(isinstance(_kept_as(side, dialect), Interval) for side in one.clauses):
        return f"`{one}` is NULL, since it takes no timedelta: give a text, as in func.{_name(one)}(column, '+1 hour')"
    return None


def _text_with_number(one: Any, _dialect: Dialect) -> str | None:
    for left, right in _compared(one):
        if _name(left) in _TEXTS_OF_TIME and isinstance(left.type, NullType):
            for value in _values(right):
                if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
                    return (
                        f"`{one}` compares text with a number, which is less than any text: write cast(..., Integer) around"
                        f" func.{_name(left)}(...)"
                    )
    return None


def _number_with_text(one: Any, _dialect: Dialect) -> str | None:
    for left, right in _compared(one):
        if isinstance(left, Column) and isinstance(left.type, Integer | Numeric):
            for value in _values(right):
                if isinstance(value, str) and not _is_number(value):
                    return f"`{one}` compares the numbers of {left} with the text {value!r}, which is none of them: give it a number"
    return None


def _is_number(words: str) -> bool:
    try:
        return not isnan(float(words))
    except ValueError:
        return False


def _json(one: Any, _dialect: Dialect) -> str | None:
    for left, right in _compared(one):
        if not (isinstance(left, BinaryExpression) and left.operator in _INSIDE_JSON and isinstance(left.type, JSON)):
            continue
        if isinstance(right, Null):
            return f"`{one}` never finds NULL, since JSON's null is the text 'null' there: write .as_string().is_(None)"
        values = list(_values(right))
        constant = isinstance(right, look.CONSTANTS)
        if constant or any(not isinstance(right_kind, JSON) for right_kind in _kinds(right)) or any(map(_has_spaces, values)):
            return (
                f"`{one}` compares JSON text with {values[0] if values else right!s}, which it is never equal to: say what is in it, by"
                " .as_integer(), .as_float(), .as_boolean() or .as_string(), and compare the parts of lists and objects"
            )
    return None


def _kinds(right: Any) -> Iterator[Any]:
    """The types of what is bound there."""
    return (part.type for part in look.own_parts(right) if isinstance(part, BindParameter))


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
        for value in _values(right):
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
        if not isinstance(left, Column) or not any(_name(part) in _CLOCKS for part in look.own_parts(right)):
            continue
        if not isinstance(left.type, TypeDecorator | DateTime | Integer | Numeric):
            continue
        if isinstance(left.type, Integer | Numeric):
            return f"`{one}` compares a number with a time, which is text there: write func.unixepoch('now') for the clock"
        held = stored(left.type, dialect)
        if not isinstance(held, str) or not WRITTEN.startswith(held[: len(WRITTEN)]):
            return (
                f"`{one}` compares the clock with a column that keeps {WRITTEN}Z as {held!r}, which does not sort among times there: map it"
                " as groundstate.Instant"
            )
    return None


def _in_another_zone(one: Any, _dialect: Dialect) -> str | None:
    """A time that is bound by another type than that of the column beside it, which writes all of its times in UTC."""
    for left, right in _compared(one):
        if not hasattr(left.type, "refuses"):  # as an Instant has it
            continue
        for part in look.own_parts(right):
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
    _arithmetic, _sum, _cast, _modifier, _text_with_number, _number_with_text, _json, _enum, _day_and_time, _clock, _in_another_zone,
)  # fmt: skip


# ---- looking into them -----------------------------------------------------------------------------------------------------------
def _compared(one: Any, operators_: set[Any] = _COMPARED) -> Iterator[tuple[Any, Any]]:
    """Both sides of a comparison, each once as the left one."""
    if isinstance(one, BinaryExpression) and one.operator in operators_:
        yield _inner(one.left), _inner(one.right)
        yield _inner(one.right), _inner(one.left)


def _inner(one: Any) -> Any:
    return one.element if isinstance(one, Grouping) else one


def _values(side: Any) -> Iterator[Any]:
    for part in look.own_parts(side):
        yield from look.bound(part)


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
