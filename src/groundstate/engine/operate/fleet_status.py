"""Gives an overview of one database: its workers, by their locks, and for each reaction its attempts and the rows that wait.

All counts are bounded, so that `status` and the metrics may query it often. For single rows, and what each waits for, see pending.py. It
runs only SELECTs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Select, and_, func, not_, null, select

from groundstate.engine.operate import living_workers, pending
from groundstate.engine.operate.living_workers import WorkerSeen
from groundstate.engine.operate.pending import Looked
from groundstate.engine.rows import attempts, data_restore_check, reaction_registry
from groundstate.engine.rows.reaction_registry import COUNTED_MAX, Known, Newcomer
from groundstate.engine.schedule import upcoming
from groundstate.engine.sql import db_errors, lock_waits, mapping_check, odd_due_times, raising_rows
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules.attempt import State
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database, Liveness
from groundstate.store.tables import attempt as table

STATES = tuple(str(state) for state in State)


@dataclass(frozen=True)
class AttemptCount:
    """The attempts of one reaction in one state: how many there are, and when the oldest of them began."""

    count: int = 0
    since: datetime | None = None


@dataclass(frozen=True)
class ReactionSeen:
    """One reaction or one schedule in the overview."""

    name: str
    makes: str  # "call", "change" (its handler alone) or "rows" (a schedule)
    rows: int = 0  # rows that wait to be carried out
    at_least: bool = False  # whether there may be more rows than `rows`, since counting stopped there
    too_late: int = 0  # rows that were not carried out in time, which the `expired` handler answers
    first: str | None = None  # the waiting record with the lowest key or, if there are due times, the one due for the longest
    overdue_since: datetime | None = None  # when the first waiting record became due, if the reaction has a due time
    attempts: Mapping[str, AttemptCount] = field(default_factory=dict)  # attempts by state
    on: bool = True  # False if the reaction is new or changed, and a person must accept it first
    partly: bool = False  # whether, while `on` is False, rows that the accepted condition matches too are carried out
    suspect: bool = False  # whether each call begins as in doubt, since the database went back in time
    waits: bool = False  # whether it waits until a person says if the database was restored from a backup
    asked: bool = True  # False if its condition cannot be queried here, for example because a table is missing
    unseen: str | None = None  # why its rows cannot be seen: which session locks one of its tables, or why its query fails
    odd_time: str | None = None  # message on a stored due time that does not sort in order of time; only with `liveness`
    lacks: str | None = None  # why no worker carries it out here (mapping_check.lacking, living_workers.lacked); only with `liveness`


@dataclass(frozen=True)
class Overview:
    """The overview of one database. `workers` has the workers of all apps on it; None if they were not looked for."""

    now: datetime
    standby: bool
    reactions: tuple[ReactionSeen, ...]
    undeclared: Mapping[str, int]  # number of attempts of each reaction that this code does not declare
    workers: tuple[WorkerSeen, ...] | None = None
    careful: bool = False
    last_end: str | None = None
    gone: tuple[str, ...] = ()  # reactions and schedules that were accepted here and that this code does not declare


def overview(
    app: str,
    database: Database,
    queries: Sequence[ConditionQuery],
    schedules: Sequence[ScheduleSpec],
    *,
    liveness: Liveness | None = None,
    most: int = COUNTED_MAX,
) -> Overview:
    """Return the overview of one database.

    With `liveness` it also shows which workers are alive and which reactions wait to be accepted; None leaves both out. Of each reaction at
    most `most` rows are counted.
    """
    for query in queries:
        if query.in_turn:
            query.ask_plainly()  # a condition that raised an error before may have been repaired since
    try:
        return _asked(app, database, queries, schedules, liveness=liveness, most=most, apart=False)
    except Exception as error:
        if not db_errors.is_its_own(error):
            raise
        return _asked(app, database, queries, schedules, liveness=liveness, most=most, apart=True)


def _asked(  # noqa: PLR0913  # it has the arguments of `overview`
    app: str,
    database: Database,
    queries: Sequence[ConditionQuery],
    schedules: Sequence[ScheduleSpec],
    *,
    liveness: Liveness | None,
    most: int,
    apart: bool,
) -> Overview:
    """Run the queries of `overview`. With `apart` each reaction has a savepoint, so that one whose query fails does not hide the others."""
    with database.reading(wait=lock_waits.SEEN_WITHIN) as connection:
        now = upcoming.now(database, connection)
        by_name, nobody = {query.spec.name: query for query in queries}, living_workers.WhoLives([])
        looked = Looked(app, database, connection, by_name, nobody, {spec.name: spec for spec in schedules})
        known = reaction_registry.known(connection, app)
        waiting = data_restore_check.waiting(database, connection, app).among(query.spec for query in queries)
        unseen = lock_waits.unseen(connection, queries)
        seen_ones = [query for query in queries if query.spec.name not in unseen]
        loud = reaction_registry.newcomers(connection, seen_ones, known, lambda *_: None)[1] if liveness is not None else []
        # Rows are read before attempts, and attempts before workers: what is begun meanwhile may be counted twice, but is never missed.
        reactions = [(_reaction_apart if apart else _reaction)(looked, one, most) for one in seen_ones]
        lacks = mapping_check.lacking(connection, seen_ones) if liveness is not None else {}
        odd = (
            {one.spec.name: odd_due_times.first_odd_due_time(connection, one) for one in seen_ones}
            if liveness is not None and not apart
            else {}
        )
        reactions = [replace(one, lacks=lacks.get(one.name), odd_time=odd.get(one.name)) for one in reactions]
        reactions += [replace(_not_asked(one), unseen=unseen[one.spec.name]) for one in queries if one.spec.name in unseen]
        reactions += [ReactionSeen(spec.name, "rows") for spec in schedules]
        open_, undeclared = _attempts(looked)
        seen = None if liveness is None else tuple(living_workers.workers_of(database, connection, liveness))
        ours = living_workers.of_app(app, seen or ())
        said = living_workers.lacked(ours)
        reactions = [replace(one, lacks=one.lacks or said.get(one.name)) for one in reactions]
        return Overview(
            now=now,
            standby=pending.is_standby(connection),
            reactions=tuple(replace(_add_attempts_and_acceptance(one, open_, known, loud), waits=one.name in waiting) for one in reactions),
            undeclared=undeclared,
            gone=reaction_registry.gone(known, {*by_name, *looked.schedules}),
            workers=seen,
            careful=living_workers.is_careful(ours, now),
            last_end=None if seen is None else living_workers.last_end_in_words(ours),
        )


def _add_attempts_and_acceptance(
    one: ReactionSeen, open_: Mapping[str, Mapping[str, AttemptCount]], known: Mapping[str, Known], loud: Sequence[Newcomer]
) -> ReactionSeen:
    suspect = one.makes != "rows" and one.name in known and known[one.name].suspect
    new = next((new for new in loud if new.name == one.name), None)
    return replace(one, attempts=open_.get(one.name, {}), on=new is None, partly=new is not None and new.both, suspect=suspect)


def _reaction_apart(looked: Looked, query: ConditionQuery, most: int) -> ReactionSeen:
    why: list[str] = []
    ask = partial(_reaction, looked, query, most)
    found = raising_rows.ask_excluding_raising_rows(looked.connection, query, ask, lambda _, words: why.append(words))
    return replace(_not_asked(query), unseen=why[0]) if found is None else found


def _not_asked(query: ConditionQuery) -> ReactionSeen:
    return ReactionSeen(query.spec.name, "change" if query.spec.call is None else "call", asked=False)


def _reaction(looked: Looked, query: ConditionQuery, most: int) -> ReactionSeen:
    spec = query.spec
    rows, oldest = pending.ready(looked, query, most)
    return ReactionSeen(
        name=spec.name,
        makes="change" if spec.call is None else "call",
        rows=rows,
        at_least=rows >= most,
        too_late=pending.ready(looked, query.late, most)[0] if query.late is not None else 0,
        first=query.record_shown(query.key_in(oldest[0])) if oldest else None,
        overdue_since=upcoming.overdue_since(looked.connection, query) if rows and query.timing is not None else None,
    )


def _attempts(looked: Looked) -> tuple[dict[str, dict[str, AttemptCount]], dict[str, int]]:
    """Return the attempts by reaction and state, without baselines, and the number of attempts of each reaction that is not declared."""
    mine = and_(table.c.app == looked.app, not_(attempts.is_baseline))
    some = select(table.c.reaction, table.c.state, table.c.since).where(mine).limit(COUNTED_MAX).subquery()
    by = (some.c.reaction, some.c.state)
    try:
        rows = _rows(looked.connection, select(*by, func.count(), func.min(some.c.since)).group_by(*by))
    except (ValueError, TypeError):  # a time was edited by hand and cannot be read
        rows = _rows(looked.connection, select(*by, func.count(), null()).group_by(*by))
    found: dict[str, dict[str, AttemptCount]] = {}
    undeclared: dict[str, int] = {}
    for reaction, written, count, since in rows:
        if reaction in looked.queries or reaction in looked.schedules:
            state = str(attempts.state_of(written))
            before = found.setdefault(reaction, {}).get(state, AttemptCount())
            found[reaction][state] = AttemptCount(before.count + count, min(filter(None, (before.since, since)), default=None))
        else:
            undeclared[reaction] = undeclared.get(reaction, 0) + count
    return found, undeclared


def _rows(connection: Connection, statement: Select[Any]) -> list[tuple[str, str, int, datetime | None]]:
    return [tuple(row) for row in connection.execute(statement)]
