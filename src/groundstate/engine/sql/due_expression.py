"""Builds the SQL for the due time of one reaction: how it is compared with the database's clock, and how it is read. Reads no clock of
ours.

A column is compared as it is stored, so that its index is used. Its stored values must therefore sort as time does; the column's type is
checked for that.
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

from groundstate.engine.sql.transaction_time import OneMoment
from groundstate.rules import stored_values
from groundstate.rules.due import FARTHEST, DueSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database
from groundstate.store.tables import UtcDateTime
from groundstate.values.errors import DeclarationError


class UtcDateTimeIfAny(UtcDateTime):
    """A point in time that is read as None where SQLite stores something that is no time, so that the rows beside it can be read."""

    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        made = super().result_processor(dialect, coltype)
        return None if made is None or dialect.name != "sqlite" else partial(_if_any, made)


def _if_any(made: Callable[[Any], Any], value: Any) -> Any:
    try:
        return made(value)
    except (ValueError, TypeError):
        return None


class Timing:
    """The SQL expressions for the due time of one reaction on one database.

    `moment` takes the place of the database's clock, to ask what would be due then.

    Raises:
        DeclarationError: the column's stored values do not compare with time on this database; the message names the cure.
    """

    def __init__(self, spec: ReactionSpec, database: Database, moment: datetime | None = None) -> None:
        assert spec.due is not None  # noqa: S101  # callers have checked it
        self._due: DueSpec = spec.due
        self._database = database
        self._moment = moment
        self._embedded = database.name == "sqlite"
        why = self._refused()
        if why is not None:
            raise DeclarationError(f"reaction {spec.name}: due={self._due.attribute or self._due.base} {why}")
        self.base: Any = self._as_it_sorts()

    # ---- SQL ---------------------------------------------------------------------------------------------------------------------
    def now(self, ahead: timedelta) -> ColumnElement[datetime]:
        """Return the clock that due times are compared with, plus `ahead`: one value for all statements of a transaction."""
        if self._moment is None:
            return OneMoment(self._database, ahead) if self._embedded else self._database.now(ahead)
        return type_coerce(self._moment + ahead, UtcDateTime())

    @property
    def come(self) -> ColumnElement[bool]:
        """Return the SQL condition that the due time has come, however long ago."""
        return self._compared(le, -self._due.since)

    @property
    def ready(self) -> ColumnElement[bool]:
        """Return the SQL condition that the due time has come and that it is not too late."""
        until = self._due.until
        return self.come if until is None else and_(self.come, self._compared(gt, -until))

    @property
    def early(self) -> ColumnElement[bool]:
        """Return the SQL condition that the due time is still to come, within a hundred years.

        Later times may lie beyond Python's calendar, so they are never read.
        """
        return self.within(FARTHEST)

    @property
    def recent(self) -> ColumnElement[bool]:
        """Return the SQL condition that the due time came within the last hundred years. Earlier times may lie beyond Python's calendar."""
        return and_(self._compared(gt, -self._due.since - FARTHEST), *self._is_a_time)

    def within(self, horizon: timedelta, since: ColumnElement[datetime] | None = None) -> ColumnElement[bool]:
        """Return the SQL condition that the due time is still to come, and will have come at the end of the horizon.

        With `since`, which is a base time as `base_of` computes it, the condition holds also for due times that came after it.
        """
        begins = self._compared(gt, -self._due.since) if since is None else self.base.operate(gt, since)
        return and_(begins, self._compared(le, horizon - self._due.since), *self._is_a_time)

    @property
    def _is_a_time(self) -> list[ColumnElement[bool]]:
        """Return SQL conditions that exclude texts such as '2026-13-45', which SQLite sorts among times.

        No index serves them, so they are used only beside conditions that leave few rows.
        """
        if not self._embedded or self._due.attribute is None:
            return []
        return [is_a_day(type_coerce(self.base, Text()))]

    def base_of(self, ready: datetime) -> datetime:
        """Return the base time of a record that can be taken from the moment `ready` on."""
        return ready - self._due.since

    def _compared(self, operator: Any, ahead: timedelta) -> ColumnElement[bool]:
        """Compare the base time with the clock, always in this order.

        Python would swap `base <= now` where the type of one side is derived from that of the other.
        """
        compared: ColumnElement[bool] = self.base.operate(operator, self.now(ahead))
        return compared

    @property
    def written(self) -> ColumnElement[str]:
        """Select the base time as the database writes it, valid or not: for the cursor of a pass, which does not interpret it."""
        return type_coerce(self.base, Text()) if self._embedded else cast(self.base, Text)

    def as_written(self, said: str) -> ColumnElement[Any]:
        """Turn a text that `written` selected into a value that compares with the base time."""
        return literal(said, Text()) if self._embedded else cast(literal(said, Text()), DateTime(timezone=True))

    @property
    def read(self) -> ColumnElement[datetime]:
        """Select the base time in the form that `due_of` takes."""
        return type_coerce(self.base, UtcDateTime())

    @property
    def read_if_any(self) -> ColumnElement[datetime | None]:
        """Select the base times of many rows at once, with None where the stored value is no time."""
        return type_coerce(self.base, UtcDateTimeIfAny())

    def due_of(self, base: object) -> datetime | None:
        """Return when a record with this base time becomes due; None where the record has no base time."""
        return None if base is None else self._due.at(base)

    def begins(self, base: object) -> datetime:
        """Return when a record with this base time can be taken: when it becomes due or, for the `expired` handler, when it is too late."""
        return self._due.at(base) + (self._due.since - self._due.delta)

    @property
    def column(self) -> str:
        """Return the column or expression of the due time, for people."""
        return str(self._due.attribute or self._due.base)

    @property
    def may_hold_anything(self) -> bool:
        """Whether the column may hold something that is no time: SQLite keeps what others write, and compares it as text."""
        return self._embedded

    @property
    def words(self) -> str:
        """Return in words when a record is due, such as '2 h after orders.paid_at'."""
        column = str(self._due.base)
        if not self._due.delta:
            return column
        return f"{_span(abs(self._due.delta))} {'after' if self._due.delta > timedelta() else 'before'} {column}"

    def _as_it_sorts(self) -> Any:
        if self._due.attribute is not None:
            return self._due.attribute
        # Its constants are written as literals: the database finds an index over an expression by its exact text.
        given: Any = self._due.base
        base: Any = visitors.replacement_traverse(given, {}, _written_out)
        if self._embedded:
            written: Any = func.strftime(literal_column("'%Y-%m-%d %H:%M:%f'"), base)
            return written.op("||")(
                literal_column("'000'")
            )  # in the format of UtcDateTime: the expression may give any of SQLite's time formats
        return base

    # ---- whether it compares -----------------------------------------------------------------------------------------------------
    def _refused(self) -> str | None:
        if self._due.attribute is None:
            return None  # `miscomputed` has checked the expression
        kind = self._due.base.type
        stored = stored_values.stored(kind, self._database.engine.dialect)
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


def is_a_day(written: ColumnElement[str]) -> ColumnElement[bool]:
    """Return the SQL condition that this text in SQLite begins with a calendar day: SQLite would read 30 February as a day in March."""
    day = func.substr(written, 1, 10)  # without the time, which SQLite may round up into the next day
    read = func.strftime(literal_column("'%Y-%m-%d'"), day, literal_column("'+0 days'"))
    return func.coalesce(read, literal_column("''")) == day


def _span(delta: timedelta) -> str:
    """Return a duration in words, such as '1 d 12 h'."""
    hours, seconds = divmod(delta.seconds, 3600)
    parts = ((delta.days, "d"), (hours, "h"), (seconds // 60, "min"), (seconds % 60 + delta.microseconds / 1e6, "s"))
    return " ".join(f"{count:g} {unit}" for count, unit in parts if count)


def _written_out(element: Any, **_: Any) -> Any:
    if not isinstance(element, BindParameter):
        return None
    if isinstance(element.value, timedelta):
        return literal_column(f"interval '{element.value / timedelta(seconds=1):.6f} seconds'", type_=Interval())
    return element.render_literal_execute()
