"""Reads rows of groundstate's own tables in a way that never fails, whatever a person has written into them. Changes nothing.

A column's type raises an error for a stored value that it cannot convert: SQLite stores any value in any column, and PostgreSQL has times
that Python cannot represent. So each cell is read as text, together with the kind of its value, and is converted separately.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, ColumnElement, Integer, LargeBinary, Text, and_, bindparam, cast, func, literal

from groundstate.rules.begun_kind import is_known_begun_with
from groundstate.store.port import Database
from groundstate.store.tables import UtcDateTime

LIFE_MOST = 2**62  # the number of a worker incarnation (a run of a worker) is less than this, since it is an offset in a lock file
NUMBER_MOST = 2**31 - 1
LATEST = datetime(9000, 1, 1, tzinfo=UTC)  # the latest time that is accepted, since adding a duration to a later one may overflow


@dataclass(frozen=True, slots=True)
class RawCell:
    """One column of one row, as it is stored. `kind` is the result of SQLite's typeof() for the stored value; on PostgreSQL it is 'integer'
    or 'text', depending on the column's type.
    """

    column: Column[Any]
    kind: str
    raw: Any  # the stored value: bytes on SQLite, text on PostgreSQL; None for NULL

    @property
    def text(self) -> str | None:
        """Return the stored value as text; bytes that are not UTF-8 are escaped."""
        if self.raw is None:
            return None
        return self.raw.decode(errors="backslashreplace") if isinstance(self.raw, bytes) else str(self.raw)

    @property
    def has_expected_type(self) -> bool:
        """Whether the stored value has the column's type, and is one that groundstate may have written."""
        if self.raw is None:
            return bool(self.column.nullable)
        try:
            self.value()
        except (ValueError, ArithmeticError):
            return False
        return True

    def value(self) -> Any:
        """Return the value in Python. Raises ValueError or ArithmeticError if the stored value is not of the column's type, or is out of
        bounds.
        """
        text = self.text
        if text is None:
            return None
        kind = self.column.type
        if isinstance(kind, Text):
            sound = self.kind == "text" and (not isinstance(self.raw, bytes) or _is_utf8(self.raw))
            if sound and (self.column.name != "begun_with" or is_known_begun_with(text)):
                return text
        elif isinstance(kind, UtcDateTime):
            return self._parse_instant(text)
        elif isinstance(kind, Boolean):
            if self.kind == "integer" and text in _TRUTHS:
                return _TRUTHS[text]
        elif self.kind == "integer":
            return self._checked_number(int(text))
        raise ValueError(text)

    def _checked_number(self, value: int) -> int:
        if self.column.name == "call":
            return value
        most = LIFE_MOST if isinstance(self.column.type, BigInteger) else NUMBER_MOST
        if 0 <= value <= most:
            return value
        raise ValueError(value)

    def _parse_instant(self, text: str) -> datetime:
        if self.kind != "text":
            raise ValueError(text)
        value = datetime.fromisoformat(text)
        value = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if value > LATEST and self.column.name != "next_at":  # a retry time may be later: a person may have set it to mean 'never'
            raise ValueError(text)
        return value

    @property
    def description(self) -> str:
        """The column's name and the unreadable value for a message, such as `next_at 'tomorrow'`."""
        text = self.text
        return f"{self.column.name} {'NULL' if text is None else repr(text[:SHOWN])}"

    def equals_stored_value(self, name: str) -> ColumnElement[bool]:
        """Return the SQL condition that the column with this name holds exactly this stored value."""
        if not isinstance(self.raw, bytes):
            own = self.column if isinstance(self.column.type, Text) else cast(self.column, Text)
            return own == bindparam(name, self.raw, type_=Text())
        given: ColumnElement[Any] = bindparam(name, self.raw, type_=LargeBinary())
        if self.kind == "text":
            return self.column == cast(given, Text)
        return and_(func.typeof(self.column) == self.kind, cast(self.column, LargeBinary) == given)


SHOWN = 60  # how many letters of an unreadable value a message shows
_TRUTHS = {"0": False, "1": True, "false": False, "true": True}


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def select_raw_columns(database: Database, of: Sequence[Column[Any]]) -> list[ColumnElement[Any]]:
    """Return the expressions to select, so that `cells_of_row` can read the rows: two expressions per column."""
    selected: list[ColumnElement[Any]] = []
    for column in of:
        if database.name == "sqlite":
            selected += [func.typeof(column), cast(column, LargeBinary)]
        else:
            integer = isinstance(column.type, Integer | Boolean)
            selected += [literal("integer" if integer else "text"), cast(column, Text)]
    return selected


def cells_of_row(of: Sequence[Column[Any]], row: Sequence[Any]) -> Iterator[RawCell]:
    """Yield one RawCell per column, from a row that was selected with `select_raw_columns`."""
    for number, column in enumerate(of):
        yield RawCell(column, row[2 * number], row[2 * number + 1])


def possible_incarnation_ids(numbers: Iterable[Any]) -> set[int]:
    """From these values, return those that can be the number of a worker incarnation (a run of a worker)."""
    return {one for one in numbers if type(one) is int and 0 <= one <= LIFE_MOST}
