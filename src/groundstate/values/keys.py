"""Builds the canonical texts of keys and occurrences, and the idempotency key made of them. It never uses a driver's `str()`.

The texts are made here so that they are the same on each database, driver and release: datetimes in UTC, decimals normalised.
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
    """A NoValue stands for the content of a key column that its type cannot read, or would write differently. A record with this key is not
    found.
    """

    raw: object  # as the driver returns it
    why: str
    loaded: object = None  # the value that its type makes of it all the same

    def __str__(self) -> str:
        return str(self.raw)


# The types that a value of a key may have.
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


def text(value: object) -> str:
    """Return the canonical text of one value of a key. Raises GroundstateError for a type that has none."""
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
            return instant(value)
        case date() | time():
            return value.isoformat()
        case timedelta():
            return _seconds(value)
        case Decimal():
            return _decimal(value)
        case float():
            return repr(value)
        case bytes():
            return value.hex()
        case IPv4Address() | IPv6Address() | IPv4Network() | IPv6Network():
            return str(value)
        case NoValue():
            return without_nul(text(value.raw))
    raise GroundstateError(f"{type(value).__name__} cannot be part of a key: use a column of text, integer, UUID, date, time or decimal")


_NUL = "\\x00"  # as a NUL is written, at which SQLite ends the texts of an attempt that it is given as JSON


def instant(value: datetime) -> str:
    """Return the text of a datetime in UTC, to the microsecond; a naive one means UTC (rules.md 10)."""
    aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return aware.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _seconds(value: timedelta) -> str:
    microseconds = value // timedelta(microseconds=1)  # total_seconds() is a float, which rounds durations of some centuries
    whole, rest = divmod(abs(microseconds), 1_000_000)
    return f"{'-' if microseconds < 0 else ''}{whole}.{rest:06}"


def _seconds_of(written: str) -> timedelta:
    return timedelta(microseconds=int(Decimal(written).scaleb(6).to_integral_value()))


def _decimal(value: Decimal) -> str:
    plain = f"{value:f}"  # normalize() would round to the context's precision
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    return "0" if plain in {"-0", ""} else plain


def record_text(values: Sequence[object]) -> str:
    """Return the canonical text of a primary key: the text of a single column, or a JSON array of several in the mapper's order."""
    if len(values) == 1:
        return text(values[0])
    return json.dumps([value if type(value) in (int, str) else text(value) for value in values], separators=(",", ":"), ensure_ascii=False)


_NULL, _EMPTY = ":null:", ":empty:"  # texts of NULL and '' in an occurrence; for times and numbers the text of NULL has always been ''
LIKE_EMPTY = "^:+(null|empty):+$"  # a text that looks like these gets one more colon at each end; databases use this pattern as well
_LIKE_THEM = re.compile(LIKE_EMPTY.strip("^$"))


def without_nul(words: str) -> str:
    """Return the text with each NUL written out. A subclass of `str` without any is returned as it is: its own methods may refuse."""
    return words.replace("\x00", _NUL) if "\x00" in words else words


def occurrence_text(values: Sequence[object], may_be_empty: Sequence[bool] = ()) -> str:
    """Return the canonical text of the occurrence columns: empty for none, a JSON array for several. Different values have different texts.

    may_be_empty: for each column, whether it could hold an empty text beside NULL.
    """
    if not values:
        return ""
    parts = [_part(value, may_be) for value, may_be in zip_longest(values, may_be_empty, fillvalue=False)]
    return _array(parts) if len(parts) > 1 else without_nul(parts[0])


def _part(value: object, may_be_empty: object) -> str:
    if value is None:
        return _NULL if may_be_empty else ""
    written = text(value)
    if not written:
        return _EMPTY
    return f":{written}:" if written[0] == ":" and _LIKE_THEM.fullmatch(written) else written


def _array(parts: Sequence[str]) -> str:
    return json.dumps(parts, separators=(",", ":"), ensure_ascii=False)


def is_round(written: str, occurrence: str, columns: int) -> bool:
    """Return whether an attempt with the text `written` belongs to this occurrence of so many columns.

    Older code wrote '' both for NULL and for an empty text: an attempt that it left may belong to either.
    """
    return written == occurrence or (":" in occurrence and written == _formerly(occurrence, columns))


def _formerly(occurrence: str, columns: int) -> str:
    if not (_NULL in occurrence or _EMPTY in occurrence):
        return occurrence
    if columns <= 1:
        return _part_formerly(occurrence)
    return _array([_part_formerly(part) for part in occurrence_of(occurrence, columns)])


def _part_formerly(part: str) -> str:
    if part in (_NULL, _EMPTY):
        return ""
    return part[1:-1] if _LIKE_THEM.fullmatch(part) else part


def occurrence_of(written: str, columns: int) -> Occurrence:
    """Return the parts of an occurrence of so many columns from the text in an attempt. If a person's edit left no JSON array, the text is
    the only part.
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


def _instant_of(written: str) -> datetime:
    """Return the datetime that `instant` wrote as this text. A person may have left out the zone, which then is UTC."""
    value = datetime.fromisoformat(written.replace("Z", "+00:00"))
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


def tick_text(written: str) -> str:
    """Return the canonical text of a point in time that a person wrote; any other text is returned unchanged."""
    try:
        return instant(_instant_of(written))
    except (ValueError, OverflowError):
        return written


def _bool_of(written: str) -> bool:
    return {"true": True, "false": False}[written.lower()]


DIGITS_MOST = 131_072  # digits of a number before its decimal point: PostgreSQL's limit


def _decimal_of(written: str) -> Decimal:
    value = Decimal(written)
    if value.is_finite() and abs(value.adjusted()) > DIGITS_MOST:
        raise ValueError(written)
    return value


_READ: Mapping[type, tuple[Callable[[str], Any], str]] = {
    str: (str, "a text"),
    int: (int, "a whole number"),
    bool: (_bool_of, "true or false"),
    float: (float, "a number"),
    Decimal: (_decimal_of, "a number that every database can hold"),
    uuid.UUID: (uuid.UUID, "a UUID"),
    datetime: (_instant_of, "a time, such as 2026-01-31T12:00:00Z"),
    date: (date.fromisoformat, "a date, such as 2026-01-31"),
    time: (time.fromisoformat, "a time of day, such as 12:30:00"),
    bytes: (bytes.fromhex, "bytes in hexadecimal digits"),
    timedelta: (_seconds_of, "a number of seconds"),
}


def value_of(written: str, kind: type) -> Any:
    """Return the value that `written` stands for: its canonical text, or what a person typed. Raises ValueError with what was expected."""
    if issubclass(kind, enum.Enum):
        try:
            return kind[written]
        except KeyError:
            raise ValueError(f"{_short(written)} is none of {', '.join(member.name for member in kind)}") from None
    read, expected = _READ.get(kind, _READ[str])
    try:
        return read(written)
    except (ArithmeticError, LookupError, ValueError):
        raise ValueError(f"{_short(written)} is not {expected}") from None


def _short(written: str) -> str:
    return repr(written if len(written) <= SHOWN else f"{written[:SHOWN]}...")


SHOWN = 80  # characters: a message shows at most this many of an invalid key


def record_texts(written: str, columns: int) -> list[str]:
    """Return the texts of the values of a primary key of so many columns. Raises ValueError with what was expected."""
    if columns == 1:
        return [written]
    expected = f"a JSON array of {columns} values"
    try:
        parts = json.loads(written)
    except (ValueError, RecursionError):
        raise ValueError(f"{_short(written)} is not {expected}") from None
    if not isinstance(parts, list) or len(parts) != columns or any(isinstance(part, list | dict) for part in parts):
        raise ValueError(f"{_short(written)} is not {expected}")
    return [text(part) for part in parts]


_FORMERLY = "\x1f"  # between the app's first name and the reaction's; not printable, so that no name contains it


def key_name_under(app: str, key_name: str) -> str:
    """Return the key name of a reaction whose app is about to get another name: from then on it contains the app's first name as well."""
    return key_name if _FORMERLY in key_name else f"{app}{_FORMERLY}{key_name}"


def key_name_parts(key_name: str) -> tuple[str, ...]:
    """Return the parts of a key name: only the reaction's name or, after a rename of the app, the app's first name and that name."""
    return tuple(key_name.split(_FORMERLY, 1))


def call_key(app: str, reaction: str, record: str, occurrence: str) -> IdempotencyKey:
    """Return the idempotency key of a call: the same for the same (app, reaction, record, occurrence), in each worker incarnation and after
    a restore.

    reaction: its key name, which a rename does not change (hazard 62), and which after a rename of the app contains the app's first name.
    The key has 64 hexadecimal digits, so that it tells nothing of the record and fits every provider's limit of length.
    """
    if _FORMERLY in reaction:
        app, reaction = reaction.split(_FORMERLY, 1)
    parts = json.dumps([app, reaction, record, occurrence], ensure_ascii=False)
    return IdempotencyKey(hashlib.sha256(parts.encode()).hexdigest())
