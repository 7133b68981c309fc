"""Computes from the committed rows when records become due or expire, and when schedules tick (are to run)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select

from groundstate.engine.schedule.cursors import ScheduleCursor
from groundstate.engine.sql.due_expression import Timing
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.store import connect, tables
from groundstate.testing.databases.scratch_db import Place
from groundstate.values import keys

Record = tuple[str, str]  # (name of a reaction, key of a record as text)


class DueTimes:
    """Computes the due times of an app's reactions. specs: pairs (number of the reaction's store, reaction)."""

    def __init__(self, place: Place, specs: Sequence[tuple[int, ReactionSpec]]) -> None:
        self._place = place
        self._specs = [(number, spec) for number, spec in specs if spec.due is not None]
        self._timings: dict[str, Timing] = {}

    def upcoming_due_times(self, now: datetime, ends: datetime | None) -> Iterator[tuple[str, str, datetime]]:
        """Yield (reaction, record, time) for each record that becomes due or expires after `now` and not after `ends`. If `ends` is None,
        there is no limit.
        """
        for (reaction, record), due, spec in self._due_records():
            late = [] if spec.due is None or spec.due.valid_for is None else [due + spec.due.valid_for]
            for at in (due, *late):
                if now < at and (ends is None or at <= ends):
                    yield reaction, record, at

    def upcoming_ticks(
        self, schedules: Sequence[Sequence[ScheduleSpec]], now: datetime, ends: datetime | None
    ) -> Iterator[tuple[str, datetime]]:
        """Yield (schedule, time of its next tick) for each schedule whose next tick is not after `ends`. If `ends` is None, yield
        nothing.
        """
        marks = f"SELECT name, condition, mark FROM {tables.reaction.name}"  # noqa: S608  # the table's name is groundstate's own
        for number, some in enumerate(schedules) if ends is not None else ():
            seen = {name: ScheduleCursor(words, mark).moment for name, words, mark in self._place.query_rows(number, marks)} if some else {}
            for spec in some:
                mark = seen.get(spec.name)
                following = None if mark is None else spec.timing.first_tick_after(mark)
                if following is not None and ends is not None and now < following <= ends:
                    yield spec.name, following

    def records_not_yet_due(self, until: datetime) -> set[Record]:
        """Return the pairs (reaction, record) for which the condition holds and the record becomes due after `until`, or never."""
        due = {record: at for record, at, _ in self._due_records()}
        return {record for record in self._records_meeting_condition() if record not in due or due[record] > until}

    def _due_records(self) -> Iterator[tuple[Record, datetime, ReactionSpec]]:
        for number, spec in self._specs:
            timing = self._timing_of_reaction(number, spec)
            width = len(spec.mapper.primary_key)
            with self._place.connect(number) as connection:
                for *key, base in connection.execute(
                    select(*_key_columns(spec), timing.base_time).where(*spec.clauses, timing.base.is_not(None))
                ):
                    yield (spec.name, keys.record_text(tuple(key[:width]))), timing.takeable_from(base), spec

    def _records_meeting_condition(self) -> Iterator[Record]:
        for number, spec in self._specs:
            with self._place.connect(number) as connection:
                for key in connection.execute(select(*_key_columns(spec)).where(*spec.clauses)):
                    yield spec.name, keys.record_text(tuple(key))

    def _timing_of_reaction(self, number: int, spec: ReactionSpec) -> Timing:
        if spec.name not in self._timings:
            self._timings[spec.name] = Timing(spec, connect.open_store(self._place.settings[number])[0])
        return self._timings[spec.name]


def _key_columns(spec: ReactionSpec) -> list[Any]:
    return [getattr(spec.record, spec.mapper.get_property_by_column(column).key) for column in spec.mapper.primary_key]
