"""The due time of one reaction as this database keeps it: what is compared with its clock, and what comes back. Reads no clock of ours.

A column is compared as it stands, so that its index is used: what it holds must sort as time does. That is asked of the column's type.
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

from groundstate.engine.one_moment import OneMoment
from groundstate.rules import stored_time
from groundstate.rules.due import FARTHEST, DueSpec
from groundstate.rules.reaction import ReactionSpec
from groundstate.store.port import Database
from groundstate.store.tables import Instant
from groundstate.values.errors import DeclarationError


class InstantIfAny(Instant):
    """A point in time as it is read where others may have written what is none, as on SQLite: as None, and the rows beside it are read."""

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
    """Of one reaction on one database. `moment`: instead of the database's clock, to ask what would be due then.

    Raises:
        DeclarationError: what the column holds on this database does not compare with time; the message names the cure.
    """

    def __init__(self, spec: ReactionSpec, database: Database, moment: datetime | None = None) -> None:
        assert spec.due is not None  # noqa: S101  # who makes this asked before
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
        """The clock that due times are compared with, moved ahead: in a transaction one value for all of its statements."""
        if self._moment is None:
            return OneMoment(self._database, ahead) if self._embedded else self._database.now(ahead)
        return type_coerce(self._moment + ahead, Instant())

    @property
    def come(self) -> ColumnElement[bool]:
        """Its time has come, however long ago."""
        return self._compared(le, -self._due.since)

    @property
    def ready(self) -> ColumnElement[bool]:
        """Its time has come, and it is not too late."""
        until = self._due.until
        return self.come if until is None else and_(self.come, self._compared(gt, -until))

    @property
    def early(self) -> ColumnElement[bool]:
        """Its time is still to come, within a hundred years: what lies beyond every calendar of Python's is never read."""
        return self.within(FARTHEST)

    @property
    def recent(self) -> ColumnElement[bool]:
        """Its time came within a hundred years, likewise."""
        return and_(self._compared(gt, -self._due.since - FARTHEST), *self._is_a_time)

    def within(self, horizon: timedelta, since: ColumnElement[datetime] | None = None) -> ColumnElement[bool]:
        """Its time is still to come (or came after `since`, which is said as `base_of` has it), and will have come by then."""
        begins = self._compared(gt, -self._due.since) if since is None else self.base.operate(gt, since)
        return and_(begins, self._compared(le, horizon - self._due.since), *self._is_a_time)

    @property
    def _is_a_time(self) -> list[ColumnElement[bool]]:
        """On SQLite '2026-13-45' sorts among times, and is none. Of the rows in sight alone: what it says of each is not indexed."""
        if not self._embedded or self._due.attribute is None:
            return []
        return [is_a_day(type_coerce(self.base, Text()))]

    def base_of(self, ready: datetime) -> datetime:
        """The base time of a record that is taken from then on."""
        return ready - self._due.since

    def _compared(self, operator: Any, ahead: timedelta) -> ColumnElement[bool]:
        """Always in this order: Python would turn `base <= now` round where the one's type is derived from the other's."""
        compared: ColumnElement[bool] = self.base.operate(operator, self.now(ahead))
        return compared

    @property
    def written(self) -> ColumnElement[str]:
        """The base time as the database writes it, whatever stands there: for the cursor of a pass, which nobody reads."""
        return type_coerce(self.base, Text()) if self._embedded else cast(self.base, Text)

    def as_written(self, said: str) -> ColumnElement[Any]:
        """The same as a value that compares with the base time."""
        return literal(said, Text()) if self._embedded else cast(literal(said, Text()), DateTime(timezone=True))

    @property
    def read(self) -> ColumnElement[datetime]:
        """What `due_of` reads, as a column to select."""
        return type_coerce(self.base, Instant())

    @property
    def read_if_any(self) -> ColumnElement[datetime | None]:
        """The same for many rows at once: None where what stands there is no time."""
        return type_coerce(self.base, InstantIfAny())

    def due_of(self, base: object) -> datetime | None:
        """When a record with this base time becomes due; None where none is said."""
        return None if base is None else self._due.at(base)

    def begins(self, base: object) -> datetime:
        """When a record with this base time is taken: when it becomes due, or is too late."""
        return self._due.at(base) + (self._due.since - self._due.delta)

    @property
    def column(self) -> str:
        """What the due time is made of, for people."""
        return str(self._due.attribute or self._due.base)

    @property
    def may_hold_anything(self) -> bool:
        """Whether others may have written what is no time: SQLite keeps that, and compares it as text."""
        return self._embedded

    @property
    def words(self) -> str:
        """When it is due, for people."""
        column = str(self._due.base)
        if not self._due.delta:
            return column
        return f"{_span(abs(self._due.delta))} {'after' if self._due.delta > timedelta() else 'before'} {column}"

    def _as_it_sorts(self) -> Any:
        if self._due.attribute is not None:
            return self._due.attribute
        # Its constants are written out: an index over an expression is found by its very text.
        given: Any = self._due.base
        base: Any = visitors.replacement_traverse(given, {}, _written_out)
        if self._embedded:
            written: Any = func.strftime(literal_column("'%Y-%m-%d %H:%M:%f'"), base)
            return written.op("||")(literal_column("'000'"))  # as Instant stores it: what the expression gives may be any of SQLite's times
        return base

    # ---- whether it compares -----------------------------------------------------------------------------------------------------
    def _refused(self) -> str | None:
        if self._due.attribute is None:
            return None  # `miscomputed` has looked at it
        kind = self._due.base.type
        stored = stored_time.stored(kind, self._database.engine.dialect)
        if self._embedded and isinstance(kind, DateTime) and kind.timezone:
            return (
                "is a DateTime(timezone=True), and SQLite drops the zone of what is written there, so that it may be due hours off: map it"
                " as groundstate.Instant"
            )
        if isinstance(stored, bool) or not isinstance(stored, (datetime, date, str)) or (isinstance(stored, str) and not self._embedded):
            return (
                f"stores a time as {stored!r}, which does not compare with the database's clock: map it as groundstate.Instant, or turn it"
                " into a time by an SQL expression, as in func.datetime(column, 'unixepoch') on SQLite, func.to_timestamp(column) on"
                " PostgreSQL"
            )
        if isinstance(stored, str) and not stored_time.WRITTEN.startswith(stored[: len(stored_time.WRITTEN)]):
            return f"stores {stored_time.WRITTEN}Z as {stored!r}, which does not sort as time does: map it as groundstate.Instant"
        if isinstance(stored, datetime) and stored.tzinfo is None and stored != stored_time.SAMPLE.replace(tzinfo=None):
            return f"stores {stored_time.WRITTEN}Z as {stored}: what has no zone must be in UTC; map it as groundstate.Instant"
        return None


def is_a_day(written: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether this text in SQLite begins with a day of the calendar: 30 February would be read there as one in March."""
    day = func.substr(written, 1, 10)  # alone: its last half of a millisecond may be rounded into the next day
    read = func.strftime(literal_column("'%Y-%m-%d'"), day, literal_column("'+0 days'"))
    return func.coalesce(read, literal_column("''")) == day


def _span(delta: timedelta) -> str:
    """A duration in words, as in '1 d 12 h'."""
    hours, seconds = divmod(delta.seconds, 3600)
    parts = ((delta.days, "d"), (hours, "h"), (seconds // 60, "min"), (seconds % 60 + delta.microseconds / 1e6, "s"))
    return " ".join(f"{count:g} {unit}" for count, unit in parts if count)


def _written_out(element: Any, **_: Any) -> Any:
    if not isinstance(element, BindParameter):
        return None
    if isinstance(element.value, timedelta):
        return literal_column(f"interval '{element.value / timedelta(seconds=1):.6f} seconds'", type_=Interval())
    return element.render_literal_execute()
