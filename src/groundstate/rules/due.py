"""Computes when a record becomes due, and when it becomes too late to act on the record. Pure: the time is an argument.

The due time comes from a column, or an expression over columns. No timer is stored beside the row, so none can be lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.orm import InstrumentedAttribute

from groundstate.values.errors import DeclarationError

FARTHEST = timedelta(days=36_525)  # longest wait, a hundred years: with a longer one the query may fail at the end of the calendar


class OutsideCalendarError(ValueError):
    """Raised for a due time before the year 1 or after the year 9999, which Python cannot represent."""


@dataclass(frozen=True, eq=False)
class Due:
    """A Due, made by `after`, declares when a record becomes due: at the time in the column or expression `of`, plus `delta`.

    valid_for: once this much time has passed since the due time, it is too late to act on the record; None if it never becomes too late.
    """

    of: Any
    delta: timedelta = timedelta()
    valid_for: timedelta | None = None


@dataclass(frozen=True, eq=False)
class DueSpec:
    """A DueSpec is a `Due` that was checked. A record becomes due at its base time plus `delta`.

    base: the column or expression that gives the base time. attribute: the record's attribute if `base` is one of its columns, else None.
    expires: whether the reaction is the variant that runs the `expired` handler once `valid_for` has passed since the due time.
    """

    base: ColumnElement[Any]
    delta: timedelta
    valid_for: timedelta | None
    attribute: InstrumentedAttribute[Any] | None
    expires: bool = False

    @property
    def min_age(self) -> timedelta:
        """Return the time from a record's base time until the reaction may first act on the record."""
        return self.delta + self.valid_for if self.expires and self.valid_for is not None else self.delta

    @property
    def max_age(self) -> timedelta | None:
        """Return the time after a record's base time from which the reaction no longer acts on the record; None for no limit."""
        return None if self.expires or self.valid_for is None else self.delta + self.valid_for

    def due_at(self, base: object) -> datetime:
        """Return when a record with this base time becomes due. Raises OutsideCalendarError if Python cannot represent that time."""
        try:
            return as_utc_datetime(base) + self.delta
        except OverflowError:
            words = f"{self.attribute or self.base} is {base}, and {self.delta} after that is in no calendar"
            raise OutsideCalendarError(words) from None

    def is_expired(self, due: datetime, now: datetime) -> bool:
        """Return whether it is too late, at the time `now`, to act on a record with this due time."""
        return self.valid_for is not None and now - due >= self.valid_for  # subtracted, since due + valid_for may be after the year 9999


def after(column: Any, delta: timedelta = timedelta(), *, valid_for: timedelta | None = None) -> Due:
    """Make a record due at the column's time plus `delta`, by the database's clock.

    Args:
        column: a column of the record, or an SQL expression that gives a point in time. A record where it is NULL is not due.
        delta: at most a hundred years; negative for a due time before the column's time.
        valid_for: once this much time has passed since the due time, it is too late to act on the record, and the reaction's `expired`
            handler runs instead.

    Raises:
        DeclarationError: a duration is no timedelta or is too long, or `valid_for` is zero or negative.
    """
    chosen: dict[str, object] = {"delta": delta} if valid_for is None else {"delta": delta, "valid_for": valid_for}
    for name, given in chosen.items():
        if not isinstance(given, timedelta) or (name == "valid_for" and given <= timedelta()):
            more = " of more than zero" if name == "valid_for" else ""
            raise DeclarationError(f"after({column}, {name}={given!r}): give a timedelta{more}, for example timedelta(hours=24)")
    if abs(delta) > FARTHEST or (valid_for is not None and valid_for > FARTHEST):
        raise DeclarationError(f"after({column}, {delta!r}, valid_for={valid_for!r}): at most {FARTHEST.days:,} days can be waited")
    return Due(column, delta, valid_for)


def as_utc_datetime(value: object) -> datetime:
    """Return a time from the database as a datetime in UTC. A datetime without a zone is taken as UTC, a date as its midnight (rule 10)."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC)
    raise TypeError(f"{value!r} is no point in time")
