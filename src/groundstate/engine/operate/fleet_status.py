"""Gives an overview of one database: which workers it has, and which of them are alive. The overview also shows the attempts of each
reaction, and the rows that wait.

All counts are bounded, so that `status` and the metrics may ask for the overview often. pending.py lists single rows, and what each waits
for. This module runs only SELECTs.
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
from groundstate.engine.operate.pending import ReportContext
from groundstate.engine.rows import attempts, data_restore_check, reaction_registry
from groundstate.engine.rows.reaction_registry import COUNTED_MAX, Known, UnacceptedReaction
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
    """The attempts of one reaction in one state: their number, and the time since which the oldest of them exists (None if it is not
    known).
    """

    count: int = 0
    since: datetime | None = None


@dataclass(frozen=True)
class ReactionSeen:
    """One reaction or one schedule in the overview."""

    name: str
    makes: str  # "call", "change" (its handler alone) or "rows" (a schedule)
    rows: int = 0  # number of rows that wait to be carried out
    at_least: bool = False  # whether there may be more rows than `rows`, since counting stopped there
    too_late: int = 0  # number of rows that were not carried out in time, and go to the `expired` handler
    first: str | None = None  # the waiting record with the lowest key or, with due times, the earliest due time; None if no record waits
    overdue_since: datetime | None = None  # when the first waiting record became due; None without a waiting record or a due time
    attempts: Mapping[str, AttemptCount] = field(default_factory=dict)  # attempts by state
    on: bool = True  # False if the reaction is new or changed, and a person must accept it first
    partly: bool = False  # whether workers carry out rows that match both the declared and the accepted condition while `on` is False
    suspect: bool = False  # whether each call begins as an attempt in doubt, since the database went back in time
    waits: bool = False  # whether the reaction waits until a person says if the database was restored from a backup
    asked: bool = True  # False if the condition cannot be queried here, for example because a table is missing
    unseen: str | None = None  # why its rows cannot be seen (a session locks a table, or the query fails); None if they can
    # A warning if some due time is stored in a wrong format (SQLite): its record is not carried out when it is due. None if all due times
    # are right, or if `liveness` is not given.
    odd_time: str | None = None
    # why no worker carries out the reaction here, such as a missing column; None if nothing prevents it, or if `liveness` is not given
    lacks: str | None = None


@dataclass(frozen=True)
class Overview:
    """The overview of one database. `workers` has the workers of all apps in it; None if they were not looked up."""

    now: datetime
    standby: bool
    reactions: tuple[ReactionSeen, ...]
    undeclared: Mapping[str, int]  # for each reaction that the application does not declare here, the number of its attempts
    workers: tuple[WorkerSeen, ...] | None = None
    careful: bool = False  # whether careful mode is on, since workers ended uncleanly
    last_end: str | None = None  # a sentence on how the last worker ended; None if workers were not looked up
    gone: tuple[str, ...] = ()  # reactions and schedules that were accepted here, and that the application does not declare any more


def build_overview(
    app: str,
    database: Database,
    queries: Sequence[ConditionQuery],
    schedules: Sequence[ScheduleSpec],
    *,
    liveness: Liveness | None = None,
    most: int = COUNTED_MAX,
) -> Overview:
    """Return the overview of one database.

    With `liveness` the overview also shows which workers are alive and which reactions wait to be accepted. Without it, both are left out.
    At most `most` rows of each reaction are counted.
    """
    for query in queries:
        if query.in_turn:
            query.evaluate_clauses_in_any_order()  # the rows for which this condition raised an error may have been corrected since
    try:
        return _query_overview(app, database, queries, schedules, liveness=liveness, most=most, apart=False)
    except Exception as error:
        if not db_errors.is_fault_of_statement(error):
            raise
        return _query_overview(app, database, queries, schedules, liveness=liveness, most=most, apart=True)


def _query_overview(  # noqa: PLR0913  # it has the arguments of `build_overview`
    app: str,
    database: Database,
    queries: Sequence[ConditionQuery],
    schedules: Sequence[ScheduleSpec],
    *,
    liveness: Liveness | None,
    most: int,
    apart: bool,
) -> Overview:
    """Run the queries of `build_overview`. `apart`: give each reaction a savepoint, so that a failing query hides only its reaction."""
    with database.reading(wait=lock_waits.SEEN_WITHIN) as connection:
        now = upcoming.database_now(database, connection)
        by_name, nobody = {query.spec.name: query for query in queries}, living_workers.LivenessById([])
        looked = ReportContext(app, database, connection, by_name, nobody, {spec.name: spec for spec in schedules})
        known = reaction_registry.read_known_reactions(connection, app)
        waiting = data_restore_check.find_waiting_reactions(database, connection, app).names_of_waiting(query.spec for query in queries)
        unseen = lock_waits.reactions_behind_locked_tables(connection, queries)
        seen_ones = [query for query in queries if query.spec.name not in unseen]
        loud = reaction_registry.split_newcomers(connection, seen_ones, known, lambda *_: None)[1] if liveness is not None else []
        # Rows are read first, then attempts, then workers: a row that becomes an attempt meanwhile is counted twice, and never missed.
        reactions = [(_read_reaction_in_savepoint if apart else _read_reaction)(looked, one, most) for one in seen_ones]
        lacks = mapping_check.why_not_carried_out(connection, seen_ones) if liveness is not None else {}
        odd = (
            {one.spec.name: odd_due_times.first_odd_due_time(connection, one) for one in seen_ones}
            if liveness is not None and not apart
            else {}
        )
        reactions = [replace(one, lacks=lacks.get(one.name), odd_time=odd.get(one.name)) for one in reactions]
        reactions += [replace(_reaction_without_counts(one), unseen=unseen[one.spec.name]) for one in queries if one.spec.name in unseen]
        reactions += [ReactionSeen(spec.name, "rows") for spec in schedules]
        open_, undeclared = _count_attempts(looked)
        seen = None if liveness is None else tuple(living_workers.read_workers(database, connection, liveness))
        ours = living_workers.workers_of_app(app, seen or ())
        said = living_workers.reactions_that_all_workers_lack(ours)
        reactions = [replace(one, lacks=one.lacks or said.get(one.name)) for one in reactions]
        return Overview(
            now=now,
            standby=pending.is_standby(connection),
            reactions=tuple(replace(_add_attempts_and_acceptance(one, open_, known, loud), waits=one.name in waiting) for one in reactions),
            undeclared=undeclared,
            gone=reaction_registry.undeclared_names(known, {*by_name, *looked.schedules}),
            workers=seen,
            careful=living_workers.is_careful(ours, now),
            last_end=None if seen is None else living_workers.last_end_in_words(ours),
        )


def _add_attempts_and_acceptance(
    one: ReactionSeen, open_: Mapping[str, Mapping[str, AttemptCount]], known: Mapping[str, Known], loud: Sequence[UnacceptedReaction]
) -> ReactionSeen:
    suspect = one.makes != "rows" and one.name in known and known[one.name].suspect
    new = next((new for new in loud if new.name == one.name), None)
    return replace(one, attempts=open_.get(one.name, {}), on=new is None, partly=new is not None and new.both, suspect=suspect)


def _read_reaction_in_savepoint(looked: ReportContext, query: ConditionQuery, most: int) -> ReactionSeen:
    why: list[str] = []
    ask = partial(_read_reaction, looked, query, most)
    found = raising_rows.ask_excluding_raising_rows(looked.connection, query, ask, lambda _, words: why.append(words))
    return replace(_reaction_without_counts(query), unseen=why[0]) if found is None else found


def _reaction_without_counts(query: ConditionQuery) -> ReactionSeen:
    return ReactionSeen(query.spec.name, "change" if query.spec.call is None else "call", asked=False)


def _read_reaction(looked: ReportContext, query: ConditionQuery, most: int) -> ReactionSeen:
    spec = query.spec
    rows, oldest = pending.read_ready_rows(looked, query, most)
    return ReactionSeen(
        name=spec.name,
        makes="change" if spec.call is None else "call",
        rows=rows,
        at_least=rows >= most,
        too_late=pending.read_ready_rows(looked, query.query_for_expired, most)[0] if query.query_for_expired is not None else 0,
        first=query.keys.record_for_people(query.cursors.key_in_cursor(oldest[0])) if oldest else None,
        overdue_since=upcoming.overdue_since(looked.connection, query) if rows and query.timing is not None else None,
    )


def _count_attempts(looked: ReportContext) -> tuple[dict[str, dict[str, AttemptCount]], dict[str, int]]:
    """Return a pair: the counts of attempts by reaction and state, and the number of attempts of each undeclared reaction. Baselines (rows
    that were left out when a reaction was new) are not counted.
    """
    mine = and_(table.c.app == looked.app, not_(attempts.is_baseline))
    some = select(table.c.reaction, table.c.state, table.c.since).where(mine).limit(COUNTED_MAX).subquery()
    by = (some.c.reaction, some.c.state)
    try:
        rows = _fetch_rows(looked.connection, select(*by, func.count(), func.min(some.c.since)).group_by(*by))
    except (ValueError, TypeError):  # a time was edited by hand and cannot be read
        rows = _fetch_rows(looked.connection, select(*by, func.count(), null()).group_by(*by))
    found: dict[str, dict[str, AttemptCount]] = {}
    undeclared: dict[str, int] = {}
    for reaction, written, count, since in rows:
        if reaction in looked.queries or reaction in looked.schedules:
            state = str(attempts.parse_state(written))
            before = found.setdefault(reaction, {}).get(state, AttemptCount())
            found[reaction][state] = AttemptCount(before.count + count, min(filter(None, (before.since, since)), default=None))
        else:
            undeclared[reaction] = undeclared.get(reaction, 0) + count
    return found, undeclared


def _fetch_rows(connection: Connection, statement: Select[Any]) -> list[tuple[str, str, int, datetime | None]]:
    return [tuple(row) for row in connection.execute(statement)]
