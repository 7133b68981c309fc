"""Computes when a record becomes due, and how late it may still be carried out. Pure: the time is an argument, and no clock is read.

A due time is a column, or an expression over columns, so that a timer is stored nowhere else and cannot be lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.orm import InstrumentedAttribute

from groundstate.values.errors import DeclarationError

FARTHEST = timedelta(days=36_525)  # a hundred years: beyond it a database's calendar may end, and a condition would have no result


class InNoCalendar(ValueError):
    """This is raised for a due time before the year 1 or after 9999, which Python cannot represent."""


@dataclass(frozen=True, eq=False)
class Due:
    """A Due is what `after` returns: a record is due `delta` after the time `of`, and is worth carrying out for `valid_for`."""

    of: Any
    delta: timedelta = timedelta()
    valid_for: timedelta | None = None


@dataclass(frozen=True, eq=False)
class DueSpec:
    """A DueSpec is a `Due` that was checked. `attribute` is the record's own column that `base` is, None where `base` is an expression.

    expires: this belongs to the part of the reaction that runs the `expired` handler for records that are too late.
    """

    base: ColumnElement[Any]
    delta: timedelta
    valid_for: timedelta | None
    attribute: InstrumentedAttribute[Any] | None
    expires: bool = False

    @property
    def since(self) -> timedelta:
        """Return the age that the base time of a record must have reached for the record to be taken."""
        return self.delta + self.valid_for if self.expires and self.valid_for is not None else self.delta

    @property
    def until(self) -> timedelta | None:
        """Return the age of the base time from which on a record is no longer taken; None for no limit."""
        return None if self.expires or self.valid_for is None else self.delta + self.valid_for

    def at(self, base: object) -> datetime:
        """Return when a record with this base time becomes due. Raises InNoCalendar."""
        try:
            return instant(base) + self.delta
        except OverflowError:
            words = f"{self.attribute or self.base} is {base}, and {self.delta} after that is in no calendar"
            raise InNoCalendar(words) from None

    def expired(self, due: datetime, now: datetime) -> bool:
        """Return whether it is too late at `now` for a record with this due time."""
        return self.valid_for is not None and now - due >= self.valid_for  # due + valid_for may be in no calendar


def after(column: Any, delta: timedelta = timedelta(), *, valid_for: timedelta | None = None) -> Due:
    """Make a record due `delta` after the column's time, by the database's clock; with a negative delta it is due before that time.

    Args:
        column: a column of the record, or an SQL expression that gives a point in time. Where it is NULL nothing is due.
        delta: at most a hundred years either way.
        valid_for: from this long after the due time on the record is not carried out any more: the reaction's `expired` handler runs
            instead.

    Raises:
        DeclarationError: a duration is no timedelta, is too long, or is a `valid_for` that is not more than zero.
    """
    chosen: dict[str, object] = {"delta": delta} if valid_for is None else {"delta": delta, "valid_for": valid_for}
    for name, given in chosen.items():
        if not isinstance(given, timedelta) or (name == "valid_for" and given <= timedelta()):
            more = " of more than zero" if name == "valid_for" else ""
            raise DeclarationError(f"after({column}, {name}={given!r}): give a timedelta{more}, for example timedelta(hours=24)")
    if abs(delta) > FARTHEST or (valid_for is not None and valid_for > FARTHEST):
        raise DeclarationError(f"after({column}, {delta!r}, valid_for={valid_for!r}): at most {FARTHEST.days:,} days can be waited")
    return Due(column, delta, valid_for)


def instant(value: object) -> datetime:
    """Return a time from the database as a datetime in UTC: a naive one means UTC, a date its midnight in UTC (rules.md 10)."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC)
    raise TypeError(f"{value!r} is no point in time")
