"""Builds the texts of primary keys and occurrences, and the idempotency keys that are made of them.

A text must be the same on each database, driver and release, so it is built here and never by a driver's `str()`: datetimes are in UTC, and
decimals are normalised.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import zip_longest
from typing import Any

from groundstate.values.answers import IdempotencyKey, Occurrence
from groundstate.values.errors import GroundstateError

_OF_A_NET = (IPv4Address, IPv6Address, IPv4Network, IPv6Network)


class BytesOfText(bytes):
    """A stored text that is not UTF-8."""


@dataclass(frozen=True)
class NoValue:
    """Stands for the stored content of a key column if the column's type cannot read it, or would write it differently. A search by key
    does not find such a record.
    """

    raw: object  # the stored content as the driver returns it
    why: str
    loaded: object = None  # the value that the column's type reads from `raw`; None if the type cannot read `raw`

    def __str__(self) -> str:
        return str(self.raw)


# The Python types that a value of a key column may have.
WITH_TEXT = (
    str,
    enum.Enum,
    int,
    uuid.UUID,
    date,
    time,
    timedelta,
    Decimal,
    float,
    bytes,
    IPv4Address,
    IPv6Address,
    IPv4Network,
    IPv6Network,
)


def canonical_text(value: object) -> str:
    """Return the canonical text of one value of a key. Raises GroundstateError if the value's type has no canonical text."""
    match value:
        case str() if not isinstance(value, enum.Enum):
            return value
        case None:
            return ""
        case enum.Enum():
            return value.name
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case uuid.UUID():
            return str(value)
        case datetime():
            return datetime_text(value)
        case date() | time():
            return value.isoformat()
        case timedelta():
            return _timedelta_text(value)
        case Decimal():
            return _decimal_text(value)
        case float():
            return repr(value)
        case bytes():
            return value.hex()
        case IPv4Address() | IPv6Address() | IPv4Network() | IPv6Network():
            return str(value)
        case NoValue():
            return escape_nul(canonical_text(value.raw))
    raise GroundstateError(f"{type(value).__name__} cannot be part of a key: use a column of text, integer, UUID, date, time or decimal")


_NUL = "\\x00"  # written in place of a NUL character, at which SQLite would cut off a text that it reads from JSON


def datetime_text(value: datetime) -> str:
    """Return the text of a datetime in UTC, to the microsecond. A datetime without a time zone is taken as UTC."""
    aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return aware.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _timedelta_text(value: timedelta) -> str:
    microseconds = value // timedelta(microseconds=1)  # total_seconds() is a float, and is not exact for durations of centuries
    whole, rest = divmod(abs(microseconds), 1_000_000)
    return f"{'-' if microseconds < 0 else ''}{whole}.{rest:06}"


def _parse_timedelta(written: str) -> timedelta:
    return timedelta(microseconds=int(Decimal(written).scaleb(6).to_integral_value()))


def _decimal_text(value: Decimal) -> str:
    plain = f"{value:f}"  # normalize() would round to the context's precision
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    return "0" if plain in {"-0", ""} else plain


def record_text(values: Sequence[object]) -> str:
    """Return the canonical text of a primary key. For a key of several columns it is a JSON array, in the mapper's order of the columns."""
    if len(values) == 1:
        return canonical_text(values[0])
    return json.dumps(
        [value if type(value) in (int, str) else canonical_text(value) for value in values], separators=(",", ":"), ensure_ascii=False
    )


_NULL, _EMPTY = ":null:", ":empty:"  # texts of NULL and '' in an occurrence; for times and numbers the text of NULL is ''
LIKE_EMPTY = "^:+(null|empty):+$"  # matches _NULL, _EMPTY and similar texts; a value with such a text gets one more colon at each end
_LIKE_THEM = re.compile(LIKE_EMPTY.strip("^$"))


def escape_nul(words: str) -> str:
    """Return the text with each NUL character written as `_NUL`.

    Without a NUL, `replace` is not called, since the text may be of a subclass of `str` whose methods raise.
    """
    return words.replace("\x00", _NUL) if "\x00" in words else words


def occurrence_text(values: Sequence[object], may_be_empty: Sequence[bool] = ()) -> str:
    """Return the canonical text of the values of the occurrence columns: '' for no column, the text of the value for one, a JSON array for
    several. Different values have different texts.

    may_be_empty: for each column, whether it can hold an empty text, so that NULL needs another text.
    """
    if not values:
        return ""
    parts = [_occurrence_part_text(value, may_be) for value, may_be in zip_longest(values, may_be_empty, fillvalue=False)]
    return _json_array_text(parts) if len(parts) > 1 else escape_nul(parts[0])


def _occurrence_part_text(value: object, may_be_empty: object) -> str:
    if value is None:
        return _NULL if may_be_empty else ""
    written = canonical_text(value)
    if not written:
        return _EMPTY
    return f":{written}:" if written[0] == ":" and _LIKE_THEM.fullmatch(written) else written


def _json_array_text(parts: Sequence[str]) -> str:
    return json.dumps(parts, separators=(",", ":"), ensure_ascii=False)


def belongs_to_occurrence(written: str, occurrence: str, columns: int) -> bool:
    """Return whether an attempt whose row has the occurrence text `written` belongs to the occurrence with the text `occurrence`.

    Older releases wrote '' both for NULL and for an empty text, so an attempt with '' from an older release can belong to either
    occurrence.

    columns: the number of the occurrence's columns.
    """
    return written == occurrence or (":" in occurrence and written == _occurrence_text_of_older_release(occurrence, columns))


def _occurrence_text_of_older_release(occurrence: str, columns: int) -> str:
    if not (_NULL in occurrence or _EMPTY in occurrence):
        return occurrence
    if columns <= 1:
        return _part_text_of_older_release(occurrence)
    return _json_array_text([_part_text_of_older_release(part) for part in parse_occurrence(occurrence, columns)])


def _part_text_of_older_release(part: str) -> str:
    if part in (_NULL, _EMPTY):
        return ""
    return part[1:-1] if _LIKE_THEM.fullmatch(part) else part


def parse_occurrence(written: str, columns: int) -> Occurrence:
    """Return the parts of an occurrence from its text in an attempt's row. If the text of several columns is no JSON array, since a person
    edited it, the whole text is the only part.
    """
    if columns == 0:
        return Occurrence(())
    if columns == 1:
        return Occurrence((written,))
    try:
        parts = json.loads(written)
    except (ValueError, RecursionError):
        parts = None
    return Occurrence(parts if isinstance(parts, list) else (written,))


def _parse_datetime(written: str) -> datetime:
    """Return the datetime that `datetime_text` wrote, or that a person typed. Without a time zone it is taken as UTC."""
    value = datetime.fromisoformat(written.replace("Z", "+00:00"))
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


def canonical_tick(written: str) -> str:
    """Return the canonical text of a point in time that a person typed. A text that is no point in time is returned unchanged."""
    try:
        return datetime_text(_parse_datetime(written))
    except (ValueError, OverflowError):
        return written


def _parse_bool(written: str) -> bool:
    return {"true": True, "false": False}[written.lower()]


DIGITS_MOST = 131_072  # how many digits a number may have before its decimal point: PostgreSQL's limit


def _parse_decimal(written: str) -> Decimal:
    value = Decimal(written)
    if value.is_finite() and abs(value.adjusted()) > DIGITS_MOST:
        raise ValueError(written)
    return value


_READ: Mapping[type, tuple[Callable[[str], Any], str]] = {
    str: (str, "a text"),
    int: (int, "a whole number"),
    bool: (_parse_bool, "true or false"),
    float: (float, "a number"),
    Decimal: (_parse_decimal, "a number that every database can hold"),
    uuid.UUID: (uuid.UUID, "a UUID"),
    datetime: (_parse_datetime, "a time, such as 2026-01-31T12:00:00Z"),
    date: (date.fromisoformat, "a date, such as 2026-01-31"),
    time: (time.fromisoformat, "a time of day, such as 12:30:00"),
    bytes: (bytes.fromhex, "bytes in hexadecimal digits"),
    timedelta: (_parse_timedelta, "a number of seconds"),
}


def parse_value(written: str, kind: type) -> Any:
    """Return the value of type `kind` that a text stands for: a canonical text, or one that a person typed.

    Raises:
        ValueError: the text stands for no such value; the message says what was expected.
    """
    if issubclass(kind, enum.Enum):
        try:
            return kind[written]
        except KeyError:
            raise ValueError(f"{_shorten(written)} is none of {', '.join(member.name for member in kind)}") from None
    read, expected = _READ.get(kind, _READ[str])
    try:
        return read(written)
    except (ArithmeticError, LookupError, ValueError):
        raise ValueError(f"{_shorten(written)} is not {expected}") from None


def _shorten(written: str) -> str:
    return repr(written if len(written) <= SHOWN else f"{written[:SHOWN]}...")


SHOWN = 80  # how many characters of an invalid key a message shows at most


def split_record_text(written: str, columns: int) -> list[str]:
    """Split the text of a primary key into the texts of its `columns` values. Raises ValueError that says what was expected."""
    if columns == 1:
        return [written]
    expected = f"a JSON array of {columns} values"
    try:
        parts = json.loads(written)
    except (ValueError, RecursionError):
        raise ValueError(f"{_shorten(written)} is not {expected}") from None
    if not isinstance(parts, list) or len(parts) != columns or any(isinstance(part, list | dict) for part in parts):
        raise ValueError(f"{_shorten(written)} is not {expected}")
    return [canonical_text(part) for part in parts]


# stands between the original name of the app and the name of the reaction; no name contains it, since it is not printable
_SEPARATOR = "\x1f"


def key_name_with_app(app: str, key_name: str) -> str:
    """Return the new key name for a reaction whose app is being renamed. Idempotency keys are made of key names.

    The new key name contains `app`, the app's name before the rename, so that the idempotency keys stay the same.
    """
    return key_name if _SEPARATOR in key_name else f"{app}{_SEPARATOR}{key_name}"


def key_name_parts(key_name: str) -> tuple[str, ...]:
    """Return the parts of a key name. If the app was never renamed, the only part is the reaction's name.

    After a rename of the app, the parts are the app's original name and the reaction's name.
    """
    return tuple(key_name.split(_SEPARATOR, 1))


def call_key(app: str, reaction: str, record: str, occurrence: str) -> IdempotencyKey:
    """Return the idempotency key of a call. It depends on nothing but these four arguments, so it is the same in each worker and after a
    restore.

    reaction: the reaction's key name, which a rename of the reaction does not change (hazard 62). After a rename of the app, the key name
    contains the app's original name.

    The key is a hash of 64 hexadecimal digits: it reveals nothing about the record, and fits the length limit of every provider.
    """
    if _SEPARATOR in reaction:
        app, reaction = reaction.split(_SEPARATOR, 1)
    parts = json.dumps([app, reaction, record, occurrence], ensure_ascii=False)
    return IdempotencyKey(hashlib.sha256(parts.encode()).hexdigest())
