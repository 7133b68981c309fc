"""A column of a primary key: from the canonical text of one of its values back to the value, as the database finds it.

An attempt names its record by that text. What a type of the user's holds nothing says but the type itself: it is given values of one
Python type after the other, and the first that it takes and gives back as it was is what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    Date,
    DateTime,
    Dialect,
    Enum,
    Float,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Uuid,
    cast,
    literal,
    select,
    type_coerce,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeDecorator, TypeEngine

from groundstate.engine import listed
from groundstate.engine.guarded import describe, let_through, text_of
from groundstate.rules import rounds
from groundstate.store.port import Database
from groundstate.store.tables import Instant
from groundstate.values import keys
from groundstate.values.errors import GroundstateError
from groundstate.values.keys import NoValue

# Of which values a driver and both databases make what they were.
_PLAIN = (Integer, String, Uuid, Boolean, Date, DateTime, Enum, LargeBinary, Instant)
_TRIED: tuple[type, ...] = (str, UUID, int, Decimal, datetime, date, time, timedelta, bytes, float, bool)  # of the strictest texts first
_SAMPLE = 0.1  # neither a single nor a short decimal is equal to it
CURE = (
    "give the table a key of text, integer, UUID, date, time or decimal (of a class of your own: keep its text, or let its type's"
    " process_result_value give one of these), and make this column unique"
)


class KeyRefused(GroundstateError):
    """A record cannot be found again by its key's text. Its reaction is not carried out: a call's outcome could not be written to it."""

    def __init__(self, words: str) -> None:
        super().__init__(f"{words}: {CURE}")
        self.words = words


class _AsItStands(TypeEngine[Any]):
    """The type of a key where records are looked for: what its own type makes no value of is told as such, and keeps no other from us.

    On SQLite also what it would write in another form, as '2026-01-01 00:00:00' for a DateTime or a UUID with dashes: such a record is
    loaded, and is not found by its key.
    """

    def __init__(self, own: TypeEngine[Any]) -> None:
        self.own = own

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        of_its_own = _result_processor(self.own, dialect, coltype)
        write = self.own.dialect_impl(dialect).bind_processor(dialect) if _may_stand_otherwise(self.own, dialect) else None
        if of_its_own is None and not _may_stand_otherwise(self.own, dialect):
            return None

        def read(raw: Any) -> Any:
            try:
                value = raw if of_its_own is None else of_its_own(raw)
            except BaseException as error:  # of a type of the user's, which may raise what it likes
                let_through(error)
                return NoValue(raw, describe(error))
            written = raw if write is None else write(value)
            if write is not None and (written != raw or type(written) is not type(raw)):
                return NoValue(raw, f"{raw!r} stands where its type writes {written!r}, by which the record is not found", value)
            if isinstance(self.own, String) and isinstance(raw, bytes):
                return NoValue(raw, f"{raw!r} are bytes in a column of text")
            return value

        return read


def _result_processor(kind: TypeEngine[Any], dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
    return kind.dialect_impl(dialect).result_processor(dialect, coltype)


def as_it_stands(attribute: Any, dialect: Dialect) -> Any:
    """A column of a key to be read where its record is looked for: a NoValue, where its type makes no value of what stands there."""
    kind = attribute.type
    driver_makes_it = isinstance(kind, Integer | String) and not isinstance(kind, Enum) and not _may_stand_otherwise(kind, dialect)
    return attribute if driver_makes_it else type_coerce(attribute, _AsItStands(kind))


def _may_stand_otherwise(kind: TypeEngine[Any], dialect: Dialect) -> bool:
    """Whether a value may stand there in a form by which it is not found: SQLite keeps what it is given. Of a type of the user's nobody
    knows what it writes.
    """
    return dialect.name == "sqlite" and isinstance(kind, _PLAIN) and not isinstance(kind, Integer)


class KeyColumn:
    """Of one question. `is_plain`: that its values go to text and back needs no asking."""

    def __init__(self, column: ColumnElement[Any], database: Database) -> None:
        self.column = column
        self._database = database
        kind, dialect = column.type, database.engine.dialect
        self._bind = kind.dialect_impl(dialect).bind_processor(dialect)
        self.is_plain = isinstance(kind, _PLAIN) and not (database.locks_rows and listed.is_padded(kind))
        own = rounds.python_type(kind)
        self._says_nothing = isinstance(kind, TypeDecorator) and not isinstance(kind, Instant) and not rounds.tells_its_values(kind)
        self._kinds: Sequence[type] = [own, *(one for one in _TRIED if one is not own)] if self._says_nothing else [own]

    def value_of(self, written: str) -> Any:
        """The value of which this is the canonical text, or what a person typed for it. Raises ValueError with what was expected."""
        refused: list[ValueError] = []
        for kind in self._kinds:
            try:
                return self._read(written, kind)
            except ValueError as error:
                refused.append(error)
        raise refused[0]

    def _read(self, written: str, kind: type) -> Any:
        try:
            value = keys.value_of(written, kind)
            keys.text(value)  # a time near the end of the calendar may have none in UTC
        except ArithmeticError as error:
            raise ValueError(str(error)) from None
        self._check_bounds(value)
        try:
            bound = value if self._bind is None else self._bind(value)
            same = not self._says_nothing or keys.text(self._back(bound)) == keys.text(value)
        except BaseException as error:  # of a type of the user's, which may raise what it likes
            let_through(error)
            raise ValueError(f"{value!r} is refused by the column's type: {text_of(error)}") from None
        if not same:
            raise ValueError(f"{value!r} is another value for the column's type")
        return value

    def _back(self, bound: Any) -> Any:
        result = _result_processor(self.column.type, self._database.engine.dialect, None)
        return bound if result is None else result(bound)

    def _check_bounds(self, value: Any) -> None:
        """What no such column can hold is no key, and must not reach a statement that asks for others as well. Raises ValueError."""
        if isinstance(value, str):
            value.encode()  # raises UnicodeEncodeError, which is one
            if "\x00" in value and self._database.locks_rows:
                raise ValueError("PostgreSQL's text has no NUL")
        elif isinstance(value, int) and not isinstance(value, bool):
            kind = self.column.type
            bits = 63 if not self._database.locks_rows or isinstance(kind, BigInteger) else 15 if isinstance(kind, SmallInteger) else 31
            if not -(2**bits) <= value < 2**bits:
                raise ValueError(f"{value} is out of the column's range")

    def of_a_float(self, connection: Connection) -> str | None:
        """Why a database that stores a float in fewer digits does not find it again; None where it does, or this is no float."""
        kind = self.column.type
        if not isinstance(kind, Float) or kind.asdecimal:
            return None
        there = connection.execute(select(cast(literal(_SAMPLE, kind), kind) == literal(_SAMPLE, kind))).scalar_one()
        return None if there else f"{self.column} keeps {_SAMPLE} as another number, so that no record is found by its key"


def refused(connection: Connection, question: Any, key: tuple[Any, ...] | None = None) -> KeyRefused | None:
    """Why records of this question cannot be found again by the texts of their keys, asked of the database itself; None where they can.

    key: of a record that is there; where None is given the first of the table is looked at, if there is one.
    """
    columns: Sequence[KeyColumn] = question.key_columns
    if all(one.is_plain for one in columns):
        return None
    try:
        with connection.begin_nested():
            why = next(filter(None, (one.of_a_float(connection) for one in columns)), None)
            if why is None and key is None:
                row = connection.execute(select(*question.keys_as_they_stand).limit(1)).first()
                key = None if row is None or any(isinstance(value, NoValue) for value in row) else tuple(row)
            if why is None and key is not None:
                why = _not_found(connection, question, key)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) not in _NO_SUCH_OPERATOR:
            raise
        why = str(error.orig).splitlines()[0]
    return None if why is None else KeyRefused(f"records of {question.spec.table_name} are not found by the text of their key: {why}")


_NO_SUCH_OPERATOR = ("42883", "42804", "42725")  # a function, or operator, that is none for these types


def _not_found(connection: Connection, question: Any, key: tuple[Any, ...]) -> str | None:
    try:
        written = question.record_text(key)
        again = question.key_from_text(written)
    except (GroundstateError, ValueError) as error:
        return str(error)
    row = connection.execute(question.keys_among([again])).first()
    if row is not None and question.record_text(tuple(row)) == written:
        return None
    return f"{key[0] if len(key) == 1 else key!r} is there, and the database does not find it by {written!r}"
