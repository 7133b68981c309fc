"""What stands in rows of our own tables, read so that nothing in it can fail: somebody may have edited them by hand. Changes nothing.

Ordinary reading is by the columns' types and raises where a value is none of its type: SQLite keeps what it is given, and PostgreSQL has
times that Python has not. Here each cell is read as text, beside its kind, and turned into a value one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, ColumnElement, Integer, LargeBinary, Text, and_, bindparam, cast, func, literal

from groundstate.rules.kind import is_legible
from groundstate.store.port import Database
from groundstate.store.tables import Instant

LIFE_MOST = 2**62  # lives are drawn below it: their numbers are places in a lock file
NUMBER_MOST = 2**31 - 1
LATEST = datetime(9000, 1, 1, tzinfo=UTC)  # what is later cannot be added to


@dataclass(frozen=True, slots=True)
class Cell:
    """One column of one row. kind: SQLite's own word for what stands there; on PostgreSQL that of the column's type."""

    column: Column[Any]
    kind: str
    raw: Any  # its bytes on SQLite, its text on PostgreSQL

    @property
    def text(self) -> str | None:
        """What stands there, as text; bytes that are no UTF-8 are written out."""
        if self.raw is None:
            return None
        return self.raw.decode(errors="backslashreplace") if isinstance(self.raw, bytes) else str(self.raw)

    @property
    def readable(self) -> bool:
        """Whether the ordinary reading gives a value that something of ours may have written."""
        if self.raw is None:
            return bool(self.column.nullable)
        try:
            self.value()
        except (ValueError, ArithmeticError):
            return False
        return True

    def value(self) -> Any:
        """The value. Raises ValueError where it is none of the column's type, or out of its bounds."""
        text = self.text
        if text is None:
            return None
        kind = self.column.type
        if isinstance(kind, Text):
            sound = self.kind == "text" and (not isinstance(self.raw, bytes) or _is_utf8(self.raw))
            if sound and (self.column.name != "begun_with" or is_legible(text)):
                return text
        elif isinstance(kind, Instant):
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
        if value > LATEST and self.column.name != "next_at":  # 'never', said by hand, is a time to try again
            raise ValueError(text)
        return value

    @property
    def words(self) -> str:
        """What cannot be read, for a message."""
        text = self.text
        return f"{self.column.name} {'NULL' if text is None else repr(text[:SHOWN])}"

    def is_this(self, name: str) -> ColumnElement[bool]:
        """The condition that the column holds just this."""
        if not isinstance(self.raw, bytes):
            own = self.column if isinstance(self.column.type, Text) else cast(self.column, Text)
            return own == bindparam(name, self.raw, type_=Text())
        given: ColumnElement[Any] = bindparam(name, self.raw, type_=LargeBinary())
        if self.kind == "text":
            return self.column == cast(given, Text)
        return and_(func.typeof(self.column) == self.kind, cast(self.column, LargeBinary) == given)


SHOWN = 60  # letters of a value that cannot be read
_TRUTHS = {"0": False, "1": True, "false": False, "true": True}


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def columns(database: Database, of: Sequence[Column[Any]]) -> list[ColumnElement[Any]]:
    """What to select, for `cells`."""
    selected: list[ColumnElement[Any]] = []
    for column in of:
        if database.name == "sqlite":
            selected += [func.typeof(column), cast(column, LargeBinary)]
        else:
            integer = isinstance(column.type, Integer | Boolean)
            selected += [literal("integer" if integer else "text"), cast(column, Text)]
    return selected


def cells(of: Sequence[Column[Any]], row: Sequence[Any]) -> Iterator[Cell]:
    """The cells of a row of what `columns` selects."""
    for number, column in enumerate(of):
        yield Cell(column, row[2 * number], row[2 * number + 1])


def lives_among(numbers: Iterable[Any]) -> set[int]:
    """Those that may be the number of a life."""
    return {one for one in numbers if type(one) is int and 0 <= one <= LIFE_MOST}
