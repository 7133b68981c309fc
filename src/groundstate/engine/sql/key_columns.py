"""Converts the canonical text of a primary key's value back to the value, for one column, so that the database finds the record.

An attempt names its record by that text. A user's column type does not declare which Python type it accepts, so values of several types are
tried. The first value that the column type accepts and returns unchanged is the right one.
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
    case,
    cast,
    func,
    literal,
    select,
    type_coerce,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

from groundstate.engine.sql import in_list
from groundstate.engine.sql.safe_text import describe_exception, reraise_keyboard_interrupt, safe_str
from groundstate.rules import occurrences
from groundstate.store.port import Database
from groundstate.store.tables import UtcDateTime
from groundstate.values import keys
from groundstate.values.keys import BytesOfText, NoValue

# Types whose values are the same after they were written to either database and read again.
_PLAIN = (Integer, String, Uuid, Boolean, Date, DateTime, Enum, LargeBinary, UtcDateTime)
# Types that accept the fewest texts come first.
_TRIED: tuple[type, ...] = (str, UUID, int, Decimal, datetime, date, time, timedelta, bytes, float, bool)
_SAMPLE = 0.1  # a float that changes if it is stored in single precision or as a short decimal


class _StoredKeyType(TypeEngine[Any]):
    """The type with which a search loads a key column. A stored value that the column's own type cannot convert becomes a NoValue, so that
    one such row does not make the whole query fail.

    On SQLite, two more kinds of values become a NoValue. One is a value that the type would write in another form, such as '2026-01-01
    00:00:00' for a DateTime, or a UUID with dashes: its record can be loaded, but is not found by its key. The other is text that is not
    UTF-8, or that contains a NUL if the column is the whole key.

    in_digits: Whether the column is selected by `_text_as_hex`. alone: Whether the column is the whole key.
    """

    def __init__(self, own: TypeEngine[Any], in_digits: bool, alone: bool) -> None:  # SQLAlchemy copies the type with positional arguments
        self.own = own
        self.in_digits = in_digits
        self.alone = alone

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        of_its_own = _result_processor(self.own, dialect, coltype)
        write = self.own.dialect_impl(dialect).bind_processor(dialect) if _may_store_other_forms(self.own, dialect) else None
        if of_its_own is None and not self.in_digits and not _may_store_other_forms(self.own, dialect):
            return None

        def convert(raw: Any) -> Any:
            if self.in_digits and isinstance(raw, str):
                raw = _text_from_hex(raw)
                if isinstance(raw, BytesOfText):
                    return NoValue(raw, f"{bytes(raw)!r} is text that is not UTF-8")
                if self.alone and "\x00" in raw:
                    return NoValue(raw, f"{raw!r} has a NUL in it, at which SQLite ends a text of JSON, by which records are looked for")
            try:
                value = raw if of_its_own is None else of_its_own(raw)
            except BaseException as error:  # a user's column type may raise any exception
                reraise_keyboard_interrupt(error)
                return NoValue(raw, describe_exception(error))
            written = raw if write is None else write(value)
            if write is not None and (written != raw or type(written) is not type(raw)):
                return NoValue(raw, f"{raw!r} stands where its type writes {written!r}, by which the record is not found", value)
            if isinstance(self.own, String) and isinstance(raw, bytes):
                return NoValue(raw, f"{raw!r} are bytes in a column of text")
            return value

        return convert


def _result_processor(kind: TypeEngine[Any], dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
    return kind.dialect_impl(dialect).result_processor(dialect, coltype)


def column_as_stored(attribute: Any, dialect: Dialect, *, alone: bool) -> Any:
    """Return a key column in a form in which every stored value can be loaded.

    A value that the column's type cannot convert is loaded as a NoValue.

    alone: Whether the column is the whole key.
    """
    kind = attribute.type
    driver_makes_it = isinstance(kind, Integer | String) and not isinstance(kind, Enum) and not _may_store_other_forms(kind, dialect)
    if driver_makes_it:
        return attribute
    in_digits = dialect.name == "sqlite" and not isinstance(kind, Integer)
    return type_coerce(_text_as_hex(attribute) if in_digits else attribute, _StoredKeyType(kind, in_digits, alone))


def _text_as_hex(attribute: Any) -> ColumnElement[Any]:
    """Return the SQL that selects text as an 'x' and hexadecimal digits. If the text itself were selected, SQLite's driver would raise for
    the whole page if one text is not UTF-8.

    In a database with the encoding UTF-16, SQLite converts to UTF-8 itself, so text is selected unchanged after a 'u'.
    """
    return case(
        (func.typeof(attribute) != "text", attribute),
        (func.hex("a") == "61", literal("x", String()) + func.hex(attribute, type_=String())),
        else_=literal("u", String()) + type_coerce(attribute, String()),
    )


def _text_from_hex(written: str) -> str | BytesOfText:
    """Return the text from the form in which `_text_as_hex` selected it; bytes that are not UTF-8 are returned as BytesOfText."""
    if written[:1] == "u":
        return written[1:]
    raw = bytes.fromhex(written[1:])
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return BytesOfText(raw)


def _may_store_other_forms(kind: TypeEngine[Any], dialect: Dialect) -> bool:
    """Return whether SQLite may store a value of this type in another form, so that a query for the value does not find it. False for the
    user's own types, since it is not known what they write.
    """
    return dialect.name == "sqlite" and isinstance(kind, _PLAIN) and not isinstance(kind, Integer)


class KeyColumn:
    """One column of the primary key of a reaction's records.

    `is_plain` is True if it is certain that values of the column's type survive the conversion to text and back, so that no query has to
    test it.
    """

    def __init__(self, column: ColumnElement[Any], database: Database) -> None:
        self.column = column
        self._database = database
        kind, dialect = column.type, database.engine.dialect
        self._bind = kind.dialect_impl(dialect).bind_processor(dialect)
        self.is_plain = isinstance(kind, _PLAIN) and not (database.locks_rows and in_list.is_blank_padded(kind))
        own = occurrences.python_type(kind)
        self._says_nothing = (
            isinstance(kind, TypeDecorator) and not isinstance(kind, UtcDateTime) and not occurrences.declares_python_type(kind)
        )
        self._kinds: Sequence[type] = [own, *(one for one in _TRIED if one is not own)] if self._says_nothing else [own]

    def value_from_text(self, written: str) -> Any:
        """Return the value that has this canonical text, or that a person wrote as this text. Raises ValueError, with a message that says
        what was expected.
        """
        refused: list[ValueError] = []
        for kind in self._kinds:
            try:
                return self._value_of_kind(written, kind)
            except ValueError as error:
                refused.append(error)
        raise refused[0]

    def _value_of_kind(self, written: str, kind: type) -> Any:
        """Return the value of the Python type `kind` that has this text. Raises ValueError if the column type refuses or changes the
        value.
        """
        try:
            value = keys.parse_value(written, kind)
            keys.canonical_text(value)  # raises for a time near the end of the calendar that does not exist in UTC
        except ArithmeticError as error:
            raise ValueError(str(error)) from None
        self._check_bounds(value)
        try:
            bound = value if self._bind is None else self._bind(value)
            same = not self._says_nothing or keys.canonical_text(self._value_after_loading(bound)) == keys.canonical_text(value)
        except BaseException as error:  # a user's column type may raise any exception
            reraise_keyboard_interrupt(error)
            raise ValueError(f"{value!r} is refused by the column's type: {safe_str(error)}") from None
        if not same:
            raise ValueError(f"{value!r} is another value for the column's type")
        return value

    def _value_after_loading(self, bound: Any) -> Any:
        result = _result_processor(self.column.type, self._database.engine.dialect, None)
        return bound if result is None else result(bound)

    def _check_bounds(self, value: Any) -> None:
        """Raise ValueError for a value that no column of this type can hold. A statement with such a value would fail for all keys in
        it.
        """
        if isinstance(value, str):
            value.encode()  # raises UnicodeEncodeError, which is a ValueError
            if "\x00" in value and self._database.locks_rows:
                raise ValueError("PostgreSQL's text has no NUL")
        elif isinstance(value, int) and not isinstance(value, bool):
            kind = self.column.type
            bits = 63 if not self._database.locks_rows or isinstance(kind, BigInteger) else 15 if isinstance(kind, SmallInteger) else 31
            if not -(2**bits) <= value < 2**bits:
                raise ValueError(f"{value} is out of the column's range")

    def why_float_not_found(self, connection: Connection) -> str | None:
        """Return why the database does not find a stored float by its value, for example since it stores fewer digits. None if the database
        finds it, or if the column is not a float.
        """
        kind = self.column.type
        if not isinstance(kind, Float) or kind.asdecimal:
            return None
        there = connection.execute(select(cast(literal(_SAMPLE, kind), kind) == literal(_SAMPLE, kind))).scalar_one()
        return None if there else f"{self.column} keeps {_SAMPLE} as another number, so that no record is found by its key"
