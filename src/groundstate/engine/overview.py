"""A store at a glance: its workers by their locks, and of each reaction what waits, how long, and what stands open. SELECTs alone.

Bounded, so that it may be asked again and again: `status` and the metrics do. What each row is and who waits for whom, `pending` tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Select, and_, func, not_, null, select
from sqlalchemy.exc import DBAPIError

from groundstate.engine import attempts, fitting, living, locked, odd_times, pending, put_back, raising, registry, trouble, upcoming
from groundstate.engine.living import LifeSeen
from groundstate.engine.pending import Looked
from groundstate.engine.question import Question
from groundstate.engine.registry import COUNTED_MAX, Known, Newcomer
from groundstate.rules.attempt import State
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database, Lives
from groundstate.store.tables import attempt as table

STATES = tuple(str(state) for state in State)


@dataclass(frozen=True)
class Standing:
    """Attempts of one reaction in one state: how many, and when the first of them began."""

    count: int = 0
    since: datetime | None = None


@dataclass(frozen=True)
class ReactionSeen:
    """One reaction, or one schedule."""

    name: str
    makes: str  # "call", "change" (its handler alone) or "rows" (a schedule)
    rows: int = 0  # that wait to be carried out
    at_least: bool = False  # there are more than were counted
    too_late: int = 0
    first: str | None = None  # the first record that waits: of the lowest key, or due for the longest
    overdue_since: datetime | None = None  # of one with a due time: when the first that waits became due
    attempts: Mapping[str, Standing] = field(default_factory=dict)  # by state
    on: bool = True  # False: it is new or changed, and a person must accept it
    partly: bool = False  # meanwhile what the accepted condition matches as well is carried out
    suspect: bool = False  # the database went back: it starts each call as a doubt
    waits: bool = False  # the database may have been put back, and a person must say whether it was
    asked: bool = True  # False: its condition cannot be asked here, such as of a table that is gone
    unseen: str | None = None  # why nothing of it can be seen: who keeps a table locked that it asks, or why it cannot be asked
    odd_time: str | None = None  # a stored due time that does not sort as one, in words; looked for with the lives
    lacks: str | None = None  # why no worker carries it out here (`fitting.lacking`, `living.lacked`); looked for with the lives


@dataclass(frozen=True)
class Overview:
    """One store. lives: of every app there; None where nobody looked."""

    now: datetime
    standby: bool
    reactions: tuple[ReactionSeen, ...]
    undeclared: Mapping[str, int]  # attempts of reactions that this code does not declare
    lives: tuple[LifeSeen, ...] | None = None
    careful: bool = False
    last_end: str | None = None
    gone: tuple[str, ...] = ()  # reactions and schedules that were accepted here, and that this code does not declare


def overview(
    app: str,
    database: Database,
    questions: Sequence[Question],
    schedules: Sequence[ScheduleSpec],
    *,
    lives: Lives | None = None,
    most: int = COUNTED_MAX,
) -> Overview:
    """lives: to look who is alive, and which reactions wait to be accepted; None: neither is asked. most: rows counted of each reaction."""
    for question in questions:
        if question.in_turn:
            question.ask_plainly()  # what raised when it was asked before
    try:
        return _asked(app, database, questions, schedules, lives=lives, most=most, apart=False)
    except DBAPIError as error:
        if trouble.transient(error):
            raise
        return _asked(app, database, questions, schedules, lives=lives, most=most, apart=True)


def _asked(  # noqa: PLR0913  # as overview
    app: str,
    database: Database,
    questions: Sequence[Question],
    schedules: Sequence[ScheduleSpec],
    *,
    lives: Lives | None,
    most: int,
    apart: bool,
) -> Overview:
    """apart: each reaction in a savepoint, so that one which cannot be asked does not hide the others."""
    with database.reading(wait=locked.SEEN_WITHIN) as connection:
        now = upcoming.now(database, connection)
        by_name, nobody = {question.spec.name: question for question in questions}, living.WhoLives([])
        looked = Looked(app, database, connection, by_name, nobody, {spec.name: spec for spec in schedules})
        known = registry.known(connection, app)
        waiting = put_back.waiting(database, connection, app).among(question.spec for question in questions)
        unseen = locked.unseen(connection, questions)
        seen_ones = [question for question in questions if question.spec.name not in unseen]
        loud = registry.newcomers(connection, seen_ones, known, lambda *_: None)[1] if lives is not None else []
        # Rows before attempts, and those before lives: what is begun meanwhile is seen twice, and never not at all.
        reactions = [(_reaction_apart if apart else _reaction)(looked, one, most) for one in seen_ones]
        lacks = fitting.lacking(connection, seen_ones) if lives is not None else {}
        odd = {one.spec.name: odd_times.first(connection, one) for one in seen_ones} if lives is not None and not apart else {}
        reactions = [replace(one, lacks=lacks.get(one.name), odd_time=odd.get(one.name)) for one in reactions]
        reactions += [replace(_not_asked(one), unseen=unseen[one.spec.name]) for one in questions if one.spec.name in unseen]
        reactions += [ReactionSeen(spec.name, "rows") for spec in schedules]
        open_, undeclared = _attempts(looked)
        seen = None if lives is None else tuple(living.lives_of(database, connection, lives))
        ours = living.of_app(app, seen or ())
        said = living.lacked(ours)
        reactions = [replace(one, lacks=one.lacks or said.get(one.name)) for one in reactions]
        return Overview(
            now=now,
            standby=pending.is_standby(connection),
            reactions=tuple(replace(_stands(one, open_, known, loud), waits=one.name in waiting) for one in reactions),
            undeclared=undeclared,
            gone=registry.gone(known, {*by_name, *looked.schedules}),
            lives=seen,
            careful=living.is_careful(ours, now),
            last_end=None if seen is None else living.last_end_in_words(ours),
        )


def _stands(
    one: ReactionSeen, open_: Mapping[str, Mapping[str, Standing]], known: Mapping[str, Known], loud: Sequence[Newcomer]
) -> ReactionSeen:
    suspect = one.makes != "rows" and one.name in known and known[one.name].suspect
    new = next((new for new in loud if new.name == one.name), None)
    return replace(one, attempts=open_.get(one.name, {}), on=new is None, partly=new is not None and new.both, suspect=suspect)


def _reaction_apart(looked: Looked, question: Question, most: int) -> ReactionSeen:
    why: list[str] = []
    ask = partial(_reaction, looked, question, most)
    found = raising.asked_of_the_others(looked.connection, question, ask, lambda _, words: why.append(words))
    return replace(_not_asked(question), unseen=why[0]) if found is None else found


def _not_asked(question: Question) -> ReactionSeen:
    return ReactionSeen(question.spec.name, "change" if question.spec.call is None else "call", asked=False)


def _reaction(looked: Looked, question: Question, most: int) -> ReactionSeen:
    spec = question.spec
    rows, oldest = pending.ready(looked, question, most)
    return ReactionSeen(
        name=spec.name,
        makes="change" if spec.call is None else "call",
        rows=rows,
        at_least=rows >= most,
        too_late=pending.ready(looked, question.late, most)[0] if question.late is not None else 0,
        first=question.record_shown(question.key_in(oldest[0])) if oldest else None,
        overdue_since=upcoming.overdue_since(looked.connection, question) if rows and question.timing is not None else None,
    )


def _attempts(looked: Looked) -> tuple[dict[str, dict[str, Standing]], dict[str, int]]:
    """By reaction and state, without what was there before its reaction (a baseline); and of reactions that are not declared."""
    mine = and_(table.c.app == looked.app, not_(attempts.is_baseline))
    some = select(table.c.reaction, table.c.state, table.c.since).where(mine).limit(COUNTED_MAX).subquery()
    by = (some.c.reaction, some.c.state)
    try:
        rows = _rows(looked.connection, select(*by, func.count(), func.min(some.c.since)).group_by(*by))
    except (ValueError, TypeError):  # somebody edited a time
        rows = _rows(looked.connection, select(*by, func.count(), null()).group_by(*by))
    found: dict[str, dict[str, Standing]] = {}
    undeclared: dict[str, int] = {}
    for reaction, written, count, since in rows:
        if reaction in looked.questions or reaction in looked.schedules:
            state = str(attempts.state_of(written))
            before = found.setdefault(reaction, {}).get(state, Standing())
            found[reaction][state] = Standing(before.count + count, min(filter(None, (before.since, since)), default=None))
        else:
            undeclared[reaction] = undeclared.get(reaction, 0) + count
    return found, undeclared


def _rows(connection: Connection, statement: Select[Any]) -> list[tuple[str, str, int, datetime | None]]:
    return [tuple(row) for row in connection.execute(statement)]
