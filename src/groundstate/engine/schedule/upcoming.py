"""Lists and counts the records and ticks that will become due, for reports to people. Runs only SELECTs, and sets no timer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from groundstate.engine.rows.reaction_registry import COUNTED_MAX
from groundstate.engine.schedule.report import report_schedules
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database


@dataclass(frozen=True)
class Timer:
    """A record that will become due, or the next tick of a schedule. For a tick, `table` is empty."""

    reaction: str
    table: str
    record: str  # the record's key; for a schedule, its definition in words
    due: datetime


def database_now(database: Database, connection: Connection) -> datetime:
    """Return the time by the database's clock."""
    moment: datetime = connection.execute(select(database.now())).scalar_one()
    return moment


def count_not_yet_due(connection: Connection, query: ConditionQuery, most: int = COUNTED_MAX) -> int:
    """Return how many records meet the reaction's condition and become due later; at most `most`, since counting stops there."""
    if query.timing is None:
        return 0
    some = (
        select(query.timing.base)
        .where(query.condition.short_circuit_and(query.condition.holds, query.timing.is_still_to_come))
        .limit(most)
        .subquery()
    )
    return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


def overdue_since(connection: Connection, query: ConditionQuery) -> datetime | None:
    """Return the earliest due time of the reaction's records that are ready to be carried out; None if none is ready, or if the reaction
    has no due time. Records whose due time cannot be read are left out.
    """
    timing = query.timing
    if timing is None:
        return None
    first = (
        select(timing.base_time_or_none)
        .where(query.condition.short_circuit_and(query.condition.is_ready, timing.is_recently_due))
        .order_by(timing.base)
        .limit(1)
    )
    return timing.due_time_for(connection.execute(first).scalar())


def next_timers(connection: Connection, queries: Sequence[ConditionQuery], most: int) -> list[Timer]:
    """Return at most `most` records of all these reactions: the records that become due next, the soonest first.

    A record whose due time cannot be read is left out here, and reported by `odd_due_times`.
    """
    found: list[Timer] = []
    for query in queries:
        timing, spec = query.timing, query.spec
        if timing is None:
            continue
        statement = select(timing.base_time_or_none, *query.keys.key_columns_as_stored).where(
            query.condition.short_circuit_and(query.condition.holds, timing.is_still_to_come)
        )
        for base, *key in connection.execute(statement.order_by(timing.base, *query.keys.key_attributes).limit(most)):
            due = timing.due_time_for(base)
            if due is not None:
                found.append(Timer(spec.name, spec.table_name, query.keys.record_for_people(tuple(key)), due))
    return sorted(found, key=lambda one: (one.due, one.reaction, one.record))[:most]


def next_ticks(app: str, database: Database, connection: Connection, schedules: Sequence[ScheduleSpec]) -> list[Timer]:
    """Return one Timer per schedule, for its next tick. A schedule without a next tick is left out."""
    found = report_schedules(app, database, connection, schedules, None)
    return [Timer(one.name, "", one.words, one.next) for one in found if one.next is not None]
