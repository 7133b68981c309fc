"""When a record becomes due, and how late it may still be carried out. Pure: the time is an argument, and no clock is read.

A due time is a column, or an expression over columns, so that a timer is stored nowhere else and cannot be lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.orm import InstrumentedAttribute

from groundstate.values.errors import DeclarationError

FARTHEST = timedelta(days=36_525)  # a hundred years: beyond it a database's calendar may end, and a condition would say nothing


class InNoCalendar(ValueError):
    """A due time before the year 1, or after 9999: there is no such moment for Python."""


@dataclass(frozen=True, eq=False)
class Due:
    """What `after` makes: due so long after a column's time, and for how long it is worth doing."""

    of: Any
    delta: timedelta = timedelta()
    valid_for: timedelta | None = None


@dataclass(frozen=True, eq=False)
class DueSpec:
    """The same, checked. `attribute` is the record's own column that `base` is, None where it is an expression.

    expires: this is the part of the reaction that answers what is too late, by the `expired` handler.
    """

    base: ColumnElement[Any]
    delta: timedelta
    valid_for: timedelta | None
    attribute: InstrumentedAttribute[Any] | None
    expires: bool = False

    @property
    def since(self) -> timedelta:
        """How long ago the base time of what is taken now must be, at least."""
        return self.delta + self.valid_for if self.expires and self.valid_for is not None else self.delta

    @property
    def until(self) -> timedelta | None:
        """How long ago it must not be yet; None for ever."""
        return None if self.expires or self.valid_for is None else self.delta + self.valid_for

    def at(self, base: object) -> datetime:
        """When a record with this base time becomes due. Raises InNoCalendar."""
        try:
            return instant(base) + self.delta
        except OverflowError:
            words = f"{self.attribute or self.base} is {base}, and {self.delta} after that is in no calendar"
            raise InNoCalendar(words) from None

    def expired(self, due: datetime, now: datetime) -> bool:
        """Whether it is too late for what was due then."""
        return self.valid_for is not None and now - due >= self.valid_for  # and not due + valid_for, which may be in no calendar


def after(column: Any, delta: timedelta = timedelta(), *, valid_for: timedelta | None = None) -> Due:
    """Due `delta` after the column's time, by the database's clock; a negative delta: so long before it.

    Args:
        column: a column of the record, or an SQL expression that gives a point in time. Where it is NULL nothing is due.
        delta: at most a hundred years either way.
        valid_for: from so long after the due time on it is not carried out any more: the reaction's `expired` handler answers instead.

    Raises:
        DeclarationError: a duration that cannot be meant.
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
    """A point in time in UTC, as the database gives it: naive ones mean UTC, a date its midnight there (rules.md 10)."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC)
    raise TypeError(f"{value!r} is no point in time")
