"""Builds the SQL for the due time of one reaction: to compare it with the database's clock, and to select it.

A column is compared as it is stored, so that its index is used. Its stored values must therefore sort in the order of time; the column's
type is checked for that.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, DateTime, Dialect, Interval, Text, and_, cast, func, literal, literal_column, type_coerce
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import BindParameter
from sqlalchemy.sql.operators import gt, le

from groundstate.engine.sql.transaction_time import TransactionTime
from groundstate.rules import stored_values
from groundstate.rules.due import FARTHEST, DueSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database
from groundstate.store.tables import UtcDateTime
from groundstate.values.errors import DeclarationError


class UtcDateTimeOrNone(UtcDateTime):
    """A UtcDateTime that loads None if SQLite stores something that is no time, so that one such row does not make the whole query fail."""

    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        made = super().result_processor(dialect, coltype)
        return None if made is None or dialect.name != "sqlite" else partial(_convert_or_none, made)


def _convert_or_none(made: Callable[[Any], Any], value: Any) -> Any:
    try:
        return made(value)
    except (ValueError, TypeError):
        return None


class Timing:
    """The SQL expressions for the due time of one reaction on one database.

    The due time is a base time (a column or an expression) plus a constant duration. If `moment` is given, it replaces the database's
    clock, to find what would be due at that time.

    Raises:
        DeclarationError: The column's stored values do not sort in the order of time on this database; the message names the cure.
    """

    def __init__(self, spec: ReactionSpec, database: Database, moment: datetime | None = None) -> None:
        assert spec.due is not None  # noqa: S101  # callers have checked it
        self._due: DueSpec = spec.due
        self._database = database
        self._moment = moment
        self._embedded = database.name == "sqlite"
        why = self._reason_for_refusal()
        if why is not None:
            raise DeclarationError(f"reaction {spec.name}: due={self._due.attribute or self._due.base} {why}")
        self.base: Any = self._sortable_base()

    # ---- SQL ---------------------------------------------------------------------------------------------------------------------
    def clock_plus(self, ahead: timedelta) -> ColumnElement[datetime]:
        """Return the SQL for the current time plus the duration `ahead`. All statements of a transaction get the same time."""
        if self._moment is None:
            return TransactionTime(self._database, ahead) if self._embedded else self._database.now(ahead)
        return type_coerce(self._moment + ahead, UtcDateTime())

    @property
    def is_due(self) -> ColumnElement[bool]:
        """Return the SQL condition that the due time has come, however long ago."""
        return self._compare_with_clock(le, -self._due.min_age)

    @property
    def is_due_and_valid(self) -> ColumnElement[bool]:
        """Return the SQL condition that the due time has come, and that the record is not too late by the reaction's `max_age`."""
        until = self._due.max_age
        return self.is_due if until is None else and_(self.is_due, self._compare_with_clock(gt, -until))

    @property
    def is_still_to_come(self) -> ColumnElement[bool]:
        """Return the SQL condition that the due time comes within the next hundred years.

        Later times may lie beyond Python's calendar, so they are never loaded.
        """
        return self.is_due_within(FARTHEST)

    @property
    def is_recently_due(self) -> ColumnElement[bool]:
        """Return the SQL condition that the due time came within the last hundred years. Earlier times may lie before Python's calendar
        begins.
        """
        return and_(self._compare_with_clock(gt, -self._due.min_age - FARTHEST), *self._calendar_conditions)

    def is_due_within(self, horizon: timedelta, since: ColumnElement[datetime] | None = None) -> ColumnElement[bool]:
        """Return the SQL condition that the due time comes later than now, and not later than now plus `horizon`.

        since: A base time, as `base_time_for` returns it, to use in place of now as the earliest time.
        """
        begins = self._compare_with_clock(gt, -self._due.min_age) if since is None else self.base.operate(gt, since)
        return and_(begins, self._compare_with_clock(le, horizon - self._due.min_age), *self._calendar_conditions)

    @property
    def _calendar_conditions(self) -> list[ColumnElement[bool]]:
        """Return SQL conditions that exclude texts such as '2026-13-45', which SQLite sorts among the times. Empty if there can be no such
        text.

        No index supports these conditions, so use them only together with conditions that few rows meet.
        """
        if not self._embedded or self._due.attribute is None:
            return []
        return [begins_with_calendar_day(type_coerce(self.base, Text()))]

    def base_time_for(self, ready: datetime) -> datetime:
        """Return the base time of a record which becomes ready to be taken at the time `ready`."""
        return ready - self._due.min_age

    def _compare_with_clock(self, operator: Any, ahead: timedelta) -> ColumnElement[bool]:
        """Compare the base time with the current time plus `ahead`, always with the base time on the left.

        If the class of one side is derived from the class of the other, Python would swap the two sides of `base <= now`.
        """
        compared: ColumnElement[bool] = self.base.operate(operator, self.clock_plus(ahead))
        return compared

    @property
    def base_time_as_text(self) -> ColumnElement[str]:
        """Return the SQL for the base time as the text that the database writes, whether or not it is a time. It is used for the cursor of
        a pass over the records: there the text is only compared, and never converted to a time.
        """
        return type_coerce(self.base, Text()) if self._embedded else cast(self.base, Text)

    def base_time_from_text(self, said: str) -> ColumnElement[Any]:
        """Return the SQL for a text that was selected by `base_time_as_text`, so that it can be compared with the base time."""
        return literal(said, Text()) if self._embedded else cast(literal(said, Text()), DateTime(timezone=True))

    @property
    def base_time(self) -> ColumnElement[datetime]:
        """Return the SQL that selects the base time in the form that `due_time_for` takes."""
        return type_coerce(self.base, UtcDateTime())

    @property
    def base_time_or_none(self) -> ColumnElement[datetime | None]:
        """Return the SQL that selects the base time, or None if the stored value is no time. It is used for queries of many rows."""
        return type_coerce(self.base, UtcDateTimeOrNone())

    def due_time_for(self, base: object) -> datetime | None:
        """Return when a record with this base time becomes due; None if `base` is None."""
        return None if base is None else self._due.due_at(base)

    def takeable_from(self, base: object) -> datetime:
        """Return the earliest time at which a record with this base time can be taken.

        This is its due time. For the `expired` handler, it is the time at which the record becomes too late.
        """
        return self._due.due_at(base) + (self._due.min_age - self._due.delta)

    @property
    def column_for_people(self) -> str:
        """Return the column or expression of the due time as a text for people."""
        return str(self._due.attribute or self._due.base)

    @property
    def may_hold_non_times(self) -> bool:
        """Whether the column may hold something that is no time: SQLite stores any value, and compares it as text."""
        return self._embedded

    @property
    def in_words(self) -> str:
        """When a record is due, in words such as '2 h after orders.paid_at'."""
        column = str(self._due.base)
        if not self._due.delta:
            return column
        return f"{_duration_in_words(abs(self._due.delta))} {'after' if self._due.delta > timedelta() else 'before'} {column}"

    def _sortable_base(self) -> Any:
        """Return the SQL for the base time in the form that is compared and indexed."""
        if self._due.attribute is not None:
            return self._due.attribute
        # Write its constants as literals: the database uses an index over an expression only if the texts are exactly the same.
        given: Any = self._due.base
        base: Any = visitors.replacement_traverse(given, {}, _parameter_as_literal)
        if self._embedded:
            written: Any = func.strftime(literal_column("'%Y-%m-%d %H:%M:%f'"), base)
            # Convert to the format of UtcDateTime, since the result of the expression may have any of SQLite's formats for times.
            return written.op("||")(literal_column("'000'"))
        return base

    # ---- whether its values sort as times
    # -------------------------------------------------------------------------------------------------
    def _reason_for_refusal(self) -> str | None:
        """Return why the column's stored values do not sort in the order of time, with the cure; None if they do."""
        if self._due.attribute is None:
            return None  # an expression was checked before, by sqlite_pitfalls.reason_to_refuse_reaction
        kind = self._due.base.type
        stored = stored_values.stored_sample_time(kind, self._database.engine.dialect)
        if self._embedded and isinstance(kind, DateTime) and kind.timezone:
            return (
                "is a DateTime(timezone=True), and SQLite drops the zone of what is written there, so that it may be due hours off: map it"
                " as groundstate.UtcDateTime"
            )
        if isinstance(stored, bool) or not isinstance(stored, (datetime, date, str)) or (isinstance(stored, str) and not self._embedded):
            return (
                f"stores a time as {stored!r}, which does not compare with the database's clock: map it as groundstate.UtcDateTime, or"
                " turn it"
                " into a time by an SQL expression, as in func.datetime(column, 'unixepoch') on SQLite, func.to_timestamp(column) on"
                " PostgreSQL"
            )
        if isinstance(stored, str) and not stored_values.WRITTEN.startswith(stored[: len(stored_values.WRITTEN)]):
            return f"stores {stored_values.WRITTEN}Z as {stored!r}, which does not sort as time does: map it as groundstate.UtcDateTime"
        if isinstance(stored, datetime) and stored.tzinfo is None and stored != stored_values.SAMPLE.replace(tzinfo=None):
            return f"stores {stored_values.WRITTEN}Z as {stored}: what has no zone must be in UTC; map it as groundstate.UtcDateTime"
        return None


def begins_with_calendar_day(written: ColumnElement[str]) -> ColumnElement[bool]:
    """Return the SQL condition that this text in SQLite begins with a day of the calendar. SQLite itself would read 30 February as a day in
    March.
    """
    day = func.substr(written, 1, 10)  # only the day, since SQLite may round the time of day up into the next day
    read = func.strftime(literal_column("'%Y-%m-%d'"), day, literal_column("'+0 days'"))
    return func.coalesce(read, literal_column("''")) == day


def _duration_in_words(delta: timedelta) -> str:
    """Return a duration in words, such as '1 d 12 h'."""
    hours, seconds = divmod(delta.seconds, 3600)
    parts = ((delta.days, "d"), (hours, "h"), (seconds // 60, "min"), (seconds % 60 + delta.microseconds / 1e6, "s"))
    return " ".join(f"{count:g} {unit}" for count, unit in parts if count)


def _parameter_as_literal(element: Any, **_: Any) -> Any:
    if not isinstance(element, BindParameter):
        return None
    if isinstance(element.value, timedelta):
        return literal_column(f"interval '{element.value / timedelta(seconds=1):.6f} seconds'", type_=Interval())
    return element.render_literal_execute()
