"""What is still to become due, in the order of its time: for people, and for counts. SELECTs alone; holds no timer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from groundstate.engine.question import Question
from groundstate.engine.registry import COUNTED_MAX
from groundstate.engine.schedules import scheduled
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database


@dataclass(frozen=True)
class Timer:
    """A record that is to become due; or the next tick of a schedule, which has no table."""

    reaction: str
    table: str
    record: str  # of a schedule its words
    due: datetime


def now(database: Database, connection: Connection) -> datetime:
    """The clock by which it is said what is to come."""
    moment: datetime = connection.execute(select(database.now())).scalar_one()
    return moment


def count(connection: Connection, question: Question, most: int = COUNTED_MAX) -> int:
    """How many records of the reaction are still to become due; at most so many are counted."""
    if question.timing is None:
        return 0
    some = select(question.timing.base).where(question.and_then(question.condition, question.timing.early)).limit(most).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


def overdue_since(connection: Connection, question: Question) -> datetime | None:
    """When the first of those that are ready became due: of those whose time can be read."""
    timing = question.timing
    if timing is None:
        return None
    first = select(timing.read_if_any).where(question.and_then(question.ready, timing.recent)).order_by(timing.base).limit(1)
    return timing.due_of(connection.execute(first).scalar())


def timers(connection: Connection, questions: Sequence[Question], most: int) -> list[Timer]:
    """The next of all reactions, the soonest first. One whose time cannot be read is in no order: `odd_times` tells of it."""
    found: list[Timer] = []
    for question in questions:
        timing, spec = question.timing, question.spec
        if timing is None:
            continue
        statement = select(timing.read_if_any, *question.keys_as_they_stand).where(question.and_then(question.condition, timing.early))
        for base, *key in connection.execute(statement.order_by(timing.base, *question.key_attributes).limit(most)):
            due = timing.due_of(base)
            if due is not None:
                found.append(Timer(spec.name, spec.table_name, question.record_shown(tuple(key)), due))
    return sorted(found, key=lambda one: (one.due, one.reaction, one.record))[:most]


def ticks(app: str, database: Database, connection: Connection, schedules: Sequence[ScheduleSpec]) -> list[Timer]:
    """The next tick of each schedule."""
    found = scheduled(app, database, connection, schedules, None)
    return [Timer(one.name, "", one.words, one.next) for one in found if one.next is not None]
