"""Computes when records of a run become due or expire, and when its schedules tick, from the committed rows."""

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

Record = tuple[str, str]  # reaction name, record key as text


class Times:
    """The due times of an app's reactions; each reaction comes with the number of its store."""

    def __init__(self, place: Place, specs: Sequence[tuple[int, ReactionSpec]]) -> None:
        self._place = place
        self._specs = [(number, spec) for number, spec in specs if spec.due is not None]
        self._timings: dict[str, Timing] = {}

    def to_come(self, now: datetime, ends: datetime | None) -> Iterator[tuple[str, str, datetime]]:
        """Yield reaction, record and time for each record that becomes due or expires between `now` and `ends`."""
        for (reaction, record), due, spec in self._all():
            late = [] if spec.due is None or spec.due.valid_for is None else [due + spec.due.valid_for]
            for at in (due, *late):
                if now < at and (ends is None or at <= ends):
                    yield reaction, record, at

    def ticks(self, schedules: Sequence[Sequence[ScheduleSpec]], now: datetime, ends: datetime | None) -> Iterator[tuple[str, datetime]]:
        """Yield each schedule with the time of its next tick by `ends`; without `ends`, yield nothing."""
        marks = f"SELECT name, condition, mark FROM {tables.reaction.name}"  # noqa: S608  # the table is groundstate's own
        for number, some in enumerate(schedules) if ends is not None else ():
            seen = {name: ScheduleCursor(words, mark).at for name, words, mark in self._place.ask(number, marks)} if some else {}
            for spec in some:
                mark = seen.get(spec.name)
                following = None if mark is None else spec.timing.following(mark)
                if following is not None and ends is not None and now < following <= ends:
                    yield spec.name, following

    def early(self, until: datetime) -> set[Record]:
        """Return the records whose condition holds and that become due after `until`, or never."""
        due = {record: at for record, at, _ in self._all()}
        return {record for record in self._held() if record not in due or due[record] > until}

    def _all(self) -> Iterator[tuple[Record, datetime, ReactionSpec]]:
        for number, spec in self._specs:
            timing = self._timing(number, spec)
            width = len(spec.mapper.primary_key)
            with self._place.connect(number) as connection:
                for *key, base in connection.execute(select(*_key(spec), timing.read).where(*spec.clauses, timing.base.is_not(None))):
                    yield (spec.name, keys.record_text(tuple(key[:width]))), timing.begins(base), spec

    def _held(self) -> Iterator[Record]:
        for number, spec in self._specs:
            with self._place.connect(number) as connection:
                for key in connection.execute(select(*_key(spec)).where(*spec.clauses)):
                    yield spec.name, keys.record_text(tuple(key))

    def _timing(self, number: int, spec: ReactionSpec) -> Timing:
        if spec.name not in self._timings:
            self._timings[spec.name] = Timing(spec, connect.open_store(self._place.settings[number])[0])
        return self._timings[spec.name]


def _key(spec: ReactionSpec) -> list[Any]:
    return [getattr(spec.record, spec.mapper.get_property_by_column(column).key) for column in spec.mapper.primary_key]
