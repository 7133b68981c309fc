"""Lists what will become due, in the order of time: for people, and for counts. Runs only SELECTs and sets no timer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from groundstate.engine.rows.reaction_registry import COUNTED_MAX
from groundstate.engine.schedule.report import scheduled
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database


@dataclass(frozen=True)
class Timer:
    """A record that will become due, or the next tick of a schedule (which has no table)."""

    reaction: str
    table: str
    record: str  # the record's key; for a schedule, its definition in words
    due: datetime


def now(database: Database, connection: Connection) -> datetime:
    """Return the database's clock, by which upcoming times are judged."""
    moment: datetime = connection.execute(select(database.now())).scalar_one()
    return moment


def count(connection: Connection, query: ConditionQuery, most: int = COUNTED_MAX) -> int:
    """Return how many of the reaction's records have a due time that is still to come, counted up to `most`."""
    if query.timing is None:
        return 0
    some = select(query.timing.base).where(query.and_then(query.condition, query.timing.early)).limit(most).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


def overdue_since(connection: Connection, query: ConditionQuery) -> datetime | None:
    """Return when the first of the reaction's ready records became due; records whose due time cannot be read are left out."""
    timing = query.timing
    if timing is None:
        return None
    first = select(timing.read_if_any).where(query.and_then(query.ready, timing.recent)).order_by(timing.base).limit(1)
    return timing.due_of(connection.execute(first).scalar())


def timers(connection: Connection, queries: Sequence[ConditionQuery], most: int) -> list[Timer]:
    """Return the next timers of all reactions, the soonest first. A record whose due time cannot be read is left out; `odd_due_times`
    reports it.
    """
    found: list[Timer] = []
    for query in queries:
        timing, spec = query.timing, query.spec
        if timing is None:
            continue
        statement = select(timing.read_if_any, *query.keys_as_they_stand).where(query.and_then(query.condition, timing.early))
        for base, *key in connection.execute(statement.order_by(timing.base, *query.key_attributes).limit(most)):
            due = timing.due_of(base)
            if due is not None:
                found.append(Timer(spec.name, spec.table_name, query.record_shown(tuple(key)), due))
    return sorted(found, key=lambda one: (one.due, one.reaction, one.record))[:most]


def ticks(app: str, database: Database, connection: Connection, schedules: Sequence[ScheduleSpec]) -> list[Timer]:
    """Return the next tick of each schedule."""
    found = scheduled(app, database, connection, schedules, None)
    return [Timer(one.name, "", one.words, one.next) for one in found if one.next is not None]
