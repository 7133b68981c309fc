"""Turns the canonical text of a primary key's value back into the value, for one column, so that the database finds the record.

An attempt names its record by that text. Which Python type a user's column type takes is not declared, so values of one type after another
are tried: the first that the column type accepts and returns unchanged is the right one.
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
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeDecorator, TypeEngine

from groundstate.engine.sql import db_errors, in_list
from groundstate.engine.sql.safe_text import describe, let_through, text_of
from groundstate.rules import occurrences
from groundstate.store.port import Database
from groundstate.store.tables import UtcDateTime
from groundstate.values import keys
from groundstate.values.errors import GroundstateError
from groundstate.values.keys import BytesOfText, NoValue

# Types whose values come back unchanged from the driver and from both databases.
_PLAIN = (Integer, String, Uuid, Boolean, Date, DateTime, Enum, LargeBinary, UtcDateTime)
# Types with the strictest texts come first.
_TRIED: tuple[type, ...] = (str, UUID, int, Decimal, datetime, date, time, timedelta, bytes, float, bool)
_SAMPLE = 0.1  # a float that neither single precision nor a short decimal can hold exactly
CURE = (
    "give the table a key of text, integer, UUID, date, time or decimal (of a class of your own: keep its text, or let its type's"
    " process_result_value give one of these), and make this column unique"
)


class KeyRefused(GroundstateError):
    """A record cannot be found again by its key's text. Its reaction is not carried out, since a call's outcome could not be written to the
    record.
    """

    def __init__(self, words: str) -> None:
        super().__init__(f"{words}: {CURE}")
        self.words = words


class _AsItStands(TypeEngine[Any]):
    """The type that reads a key column in searches for records: a stored value that the column's own type cannot convert becomes a NoValue.

    So one such row does not hide the others. On SQLite, a value that the type would write in another form, such as '2026-01-01 00:00:00'
    for a DateTime or a UUID with dashes, becomes a NoValue too: its record can be loaded, and is not found by its key. So does text that is
    not UTF-8, and text with a NUL where the column is the whole key.

    in_digits: it is selected by `_in_digits`. alone: whether the column is the whole key.
    """

    def __init__(self, own: TypeEngine[Any], in_digits: bool, alone: bool) -> None:  # SQLAlchemy copies it by position
        self.own = own
        self.in_digits = in_digits
        self.alone = alone

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        of_its_own = _result_processor(self.own, dialect, coltype)
        write = self.own.dialect_impl(dialect).bind_processor(dialect) if _may_stand_otherwise(self.own, dialect) else None
        if of_its_own is None and not self.in_digits and not _may_stand_otherwise(self.own, dialect):
            return None

        def read(raw: Any) -> Any:
            if self.in_digits and isinstance(raw, str):
                raw = _of_digits(raw)
                if isinstance(raw, BytesOfText):
                    return NoValue(raw, f"{bytes(raw)!r} is text that is not UTF-8")
                if self.alone and "\x00" in raw:
                    return NoValue(raw, f"{raw!r} has a NUL in it, at which SQLite ends a text of JSON, by which records are looked for")
            try:
                value = raw if of_its_own is None else of_its_own(raw)
            except BaseException as error:  # the column's type may be the user's and raise anything
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


def as_it_stands(attribute: Any, dialect: Dialect, *, alone: bool) -> Any:
    """Return a key column for searches for records; it reads a NoValue where its type cannot convert the stored value.

    alone: whether it is the whole key.
    """
    kind = attribute.type
    driver_makes_it = isinstance(kind, Integer | String) and not isinstance(kind, Enum) and not _may_stand_otherwise(kind, dialect)
    if driver_makes_it:
        return attribute
    in_digits = dialect.name == "sqlite" and not isinstance(kind, Integer)
    return type_coerce(_in_digits(attribute) if in_digits else attribute, _AsItStands(kind, in_digits, alone))


def _in_digits(attribute: Any) -> ColumnElement[Any]:
    """Return the SQL for a value of SQLite, with text as hexadecimal digits after an 'x', since the driver raises for the whole page where
    some text is not UTF-8. In a database of UTF-16, where the server writes UTF-8 itself, text stands after a 'u'.
    """
    return case(
        (func.typeof(attribute) != "text", attribute),
        (func.hex("a") == "61", literal("x", String()) + func.hex(attribute, type_=String())),
        else_=literal("u", String()) + type_coerce(attribute, String()),
    )


def _of_digits(written: str) -> str | BytesOfText:
    """Return the text that `_in_digits` selected."""
    if written[:1] == "u":
        return written[1:]
    raw = bytes.fromhex(written[1:])
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return BytesOfText(raw)


def _may_stand_otherwise(kind: TypeEngine[Any], dialect: Dialect) -> bool:
    """Whether a stored value may have a form by which it is not found, since SQLite keeps what it is given.

    It is False for types of the user's, since nothing is known of what they write.
    """
    return dialect.name == "sqlite" and isinstance(kind, _PLAIN) and not isinstance(kind, Integer)


class KeyColumn:
    """One column of the primary key of one condition query.

    `is_plain`: values of its type certainly come back unchanged from their text, so the database need not be asked.
    """

    def __init__(self, column: ColumnElement[Any], database: Database) -> None:
        self.column = column
        self._database = database
        kind, dialect = column.type, database.engine.dialect
        self._bind = kind.dialect_impl(dialect).bind_processor(dialect)
        self.is_plain = isinstance(kind, _PLAIN) and not (database.locks_rows and in_list.is_padded(kind))
        own = occurrences.python_type(kind)
        self._says_nothing = (
            isinstance(kind, TypeDecorator) and not isinstance(kind, UtcDateTime) and not occurrences.tells_its_values(kind)
        )
        self._kinds: Sequence[type] = [own, *(one for one in _TRIED if one is not own)] if self._says_nothing else [own]

    def value_of(self, written: str) -> Any:
        """Return the value with this canonical text, or the value that a person typed. Raises ValueError with what was expected."""
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
            keys.text(value)  # a time near the end of the calendar may not exist in UTC
        except ArithmeticError as error:
            raise ValueError(str(error)) from None
        self._check_bounds(value)
        try:
            bound = value if self._bind is None else self._bind(value)
            same = not self._says_nothing or keys.text(self._back(bound)) == keys.text(value)
        except BaseException as error:  # the column's type may be the user's and raise anything
            let_through(error)
            raise ValueError(f"{value!r} is refused by the column's type: {text_of(error)}") from None
        if not same:
            raise ValueError(f"{value!r} is another value for the column's type")
        return value

    def _back(self, bound: Any) -> Any:
        result = _result_processor(self.column.type, self._database.engine.dialect, None)
        return bound if result is None else result(bound)

    def _check_bounds(self, value: Any) -> None:
        """Raise ValueError for a value that no such column can hold: it would make a statement fail that asks for other keys as well."""
        if isinstance(value, str):
            value.encode()  # raises UnicodeEncodeError, which is a ValueError
            if "\x00" in value and self._database.locks_rows:
                raise ValueError("PostgreSQL's text has no NUL")
        elif isinstance(value, int) and not isinstance(value, bool):
            kind = self.column.type
            bits = 63 if not self._database.locks_rows or isinstance(kind, BigInteger) else 15 if isinstance(kind, SmallInteger) else 31
            if not -(2**bits) <= value < 2**bits:
                raise ValueError(f"{value} is out of the column's range")

    def of_a_float(self, connection: Connection) -> str | None:
        """Return why a float is not found again in a database that stores it in fewer digits; None where it is found, or the column is no
        float.
        """
        kind = self.column.type
        if not isinstance(kind, Float) or kind.asdecimal:
            return None
        there = connection.execute(select(cast(literal(_SAMPLE, kind), kind) == literal(_SAMPLE, kind))).scalar_one()
        return None if there else f"{self.column} keeps {_SAMPLE} as another number, so that no record is found by its key"


def refused(connection: Connection, query: Any, key: tuple[Any, ...] | None = None) -> KeyRefused | None:
    """Return why the database does not find records by the texts of their keys; None where it finds them.

    key: the key of an existing record; where it is None, the first record of the table is tried, if there is one.
    """
    columns: Sequence[KeyColumn] = query.key_columns
    if all(one.is_plain for one in columns):
        return None
    try:
        with connection.begin_nested():
            why = next(filter(None, (one.of_a_float(connection) for one in columns)), None)
            if why is None and key is None:
                row = connection.execute(select(*query.keys_as_they_stand).limit(1)).first()
                key = None if row is None or any(isinstance(value, NoValue) for value in row) else tuple(row)
            if why is None and key is not None:
                why = _not_found(connection, query, key)
    except Exception as error:
        if db_errors.unmade(error):
            return None  # it is of one record, which fails by itself
        if not isinstance(error, DBAPIError) or getattr(error.orig, "sqlstate", None) not in _NO_SUCH_OPERATOR:
            raise
        why = str(error.orig).splitlines()[0]
    return None if why is None else KeyRefused(f"records of {query.spec.table_name} are not found by the text of their key: {why}")


_NO_SUCH_OPERATOR = ("42883", "42804", "42725")  # SQLSTATEs: no or no unique function or operator for these types, type mismatch


def _not_found(connection: Connection, query: Any, key: tuple[Any, ...]) -> str | None:
    try:
        written = query.record_text(key)
        again = query.key_from_text(written)
    except (GroundstateError, ValueError) as error:
        return str(error)
    row = connection.execute(query.keys_among([again])).first()
    if row is not None and query.record_text(tuple(row)) == written:
        return None
    return f"{key[0] if len(key) == 1 else key!r} is there, and the database does not find it by {written!r}"
