"""Reads rows of our own tables so that no value in them can make the read fail, since a person may have edited them. Changes nothing.

The columns' types raise where a value is not of their type: SQLite keeps what it is given, and PostgreSQL has times that Python has not.
Here each cell is read as text, beside its kind, and converted by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, ColumnElement, Integer, LargeBinary, Text, and_, bindparam, cast, func, literal

from groundstate.rules.begun_kind import is_legible
from groundstate.store.port import Database
from groundstate.store.tables import UtcDateTime

LIFE_MOST = 2**62  # worker incarnations have smaller numbers, which are offsets in a lock file
NUMBER_MOST = 2**31 - 1
LATEST = datetime(9000, 1, 1, tzinfo=UTC)  # adding a duration to a later time may overflow


@dataclass(frozen=True, slots=True)
class Cell:
    """One column of one row. kind: what SQLite's typeof() says of the stored value; on PostgreSQL 'integer' or 'text', by the column's
    type.
    """

    column: Column[Any]
    kind: str
    raw: Any  # the stored value: bytes on SQLite, text on PostgreSQL

    @property
    def text(self) -> str | None:
        """Return the stored value as text; bytes that are not UTF-8 are escaped."""
        if self.raw is None:
            return None
        return self.raw.decode(errors="backslashreplace") if isinstance(self.raw, bytes) else str(self.raw)

    @property
    def readable(self) -> bool:
        """Whether the column's type reads a value that groundstate may have written."""
        if self.raw is None:
            return bool(self.column.nullable)
        try:
            self.value()
        except (ValueError, ArithmeticError):
            return False
        return True

    def value(self) -> Any:
        """Return the value. Raises ValueError or ArithmeticError where it is not of the column's type, or out of its bounds."""
        text = self.text
        if text is None:
            return None
        kind = self.column.type
        if isinstance(kind, Text):
            sound = self.kind == "text" and (not isinstance(self.raw, bytes) or _is_utf8(self.raw))
            if sound and (self.column.name != "begun_with" or is_legible(text)):
                return text
        elif isinstance(kind, UtcDateTime):
            return self._instant(text)
        elif isinstance(kind, Boolean):
            if self.kind == "integer" and text in _TRUTHS:
                return _TRUTHS[text]
        elif self.kind == "integer":
            return self._number(int(text))
        raise ValueError(text)

    def _number(self, value: int) -> int:
        if self.column.name == "call":
            return value
        most = LIFE_MOST if isinstance(self.column.type, BigInteger) else NUMBER_MOST
        if 0 <= value <= most:
            return value
        raise ValueError(value)

    def _instant(self, text: str) -> datetime:
        if self.kind != "text":
            raise ValueError(text)
        value = datetime.fromisoformat(text)
        value = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if value > LATEST and self.column.name != "next_at":  # a person may have set a retry time of 'never'
            raise ValueError(text)
        return value

    @property
    def words(self) -> str:
        """Describe an unreadable cell for a message, such as `next_at 'tomorrow'`."""
        text = self.text
        return f"{self.column.name} {'NULL' if text is None else repr(text[:SHOWN])}"

    def is_this(self, name: str) -> ColumnElement[bool]:
        """Return the SQL condition that the column holds exactly this value."""
        if not isinstance(self.raw, bytes):
            own = self.column if isinstance(self.column.type, Text) else cast(self.column, Text)
            return own == bindparam(name, self.raw, type_=Text())
        given: ColumnElement[Any] = bindparam(name, self.raw, type_=LargeBinary())
        if self.kind == "text":
            return self.column == cast(given, Text)
        return and_(func.typeof(self.column) == self.kind, cast(self.column, LargeBinary) == given)


SHOWN = 60  # letters of an unreadable value that a message shows
_TRUTHS = {"0": False, "1": True, "false": False, "true": True}


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def columns(database: Database, of: Sequence[Column[Any]]) -> list[ColumnElement[Any]]:
    """Return the expressions to select for `cells`: two for each column."""
    selected: list[ColumnElement[Any]] = []
    for column in of:
        if database.name == "sqlite":
            selected += [func.typeof(column), cast(column, LargeBinary)]
        else:
            integer = isinstance(column.type, Integer | Boolean)
            selected += [literal("integer" if integer else "text"), cast(column, Text)]
    return selected


def cells(of: Sequence[Column[Any]], row: Sequence[Any]) -> Iterator[Cell]:
    """Yield the cells of a row that was selected by `columns`."""
    for number, column in enumerate(of):
        yield Cell(column, row[2 * number], row[2 * number + 1])


def lives_among(numbers: Iterable[Any]) -> set[int]:
    """Return those numbers that may be the number of a worker incarnation."""
    return {one for one in numbers if type(one) is int and 0 <= one <= LIFE_MOST}
