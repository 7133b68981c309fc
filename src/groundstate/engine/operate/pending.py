"""Reports what is left to do on one database: rows to be carried out, and attempts in doubt, failed, held or waiting.

It runs only SELECTs, calls no handler, and works on a standby and with SELECT privileges only. Each count is bounded, so that a table of
any size is reported soon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from groundstate.engine.handle import in_order
from groundstate.engine.operate import left_by_other_apps, living_workers, unanswered_states
from groundstate.engine.operate.left_by_other_apps import LeftByOther
from groundstate.engine.operate.living_workers import WorkerSeen
from groundstate.engine.operate.unanswered_states import Unanswered
from groundstate.engine.rows import attempt_text, attempts, data_restore_check, reaction_registry
from groundstate.engine.rows.corrupt_rows import attempts_as_they_stand
from groundstate.engine.rows.reaction_registry import BASELINE, COUNTED_MAX, Newcomer
from groundstate.engine.schedule import upcoming
from groundstate.engine.schedule.report import Scheduled, scheduled
from groundstate.engine.sql import db_errors, lock_waits, mapping_check, odd_due_times, raising_rows
from groundstate.engine.sql.condition_query import ConditionQuery, Place, PrimaryKey
from groundstate.engine.sql.lock_waits import Locked
from groundstate.rules import blocking
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database, Liveness
from groundstate.store.tables import attempt as table
from groundstate.values.keys import NoValue

SHOWN = 20  # attempts of each kind that are listed; all of them are counted
OLDEST = 3  # ready records of each reaction that are named
BLOCKERS_MOST = 1_000  # attempts that are read to find the records that they block
IN_LINE_SHOWN = 10  # ready records of an ordered reaction that are checked for an earlier one


@dataclass(frozen=True)
class ToDo:
    """The rows of one reaction that are to be carried out, without those that have an attempt or wait for another reaction's attempt."""

    reaction: str
    table: str
    condition: str
    rows: int
    at_least: bool
    oldest: tuple[str, ...]  # the records with the lowest keys or, if there are due times, those due for the longest
    starts: bool  # False if the reaction is new or changed, and a person must accept it first
    overdue_since: datetime | None = None  # when the first of these rows became due
    too_late: int = 0  # rows that were not carried out within `valid_for`, which the `expired` handler answers
    upcoming: int = 0  # rows that will become due later
    next_due: datetime | None = None  # when the next of these rows becomes due
    odd_time: str | None = None  # message on a stored due time that does not sort in order of time


@dataclass(frozen=True)
class Open:
    """One attempt, described for a person in phrases and times."""

    reaction: str
    record: str
    occurrence: str
    standing: str
    next: str
    next_at: datetime | None
    settled_from: datetime | None
    key_kept_until: datetime | None
    since: datetime
    tries: str
    error: str | None
    why: str | None
    worker: int
    has_outcome: bool


@dataclass(frozen=True)
class Waits:
    """A record that a reaction would take if another attempt did not keep it off: of another reaction, or its own of another occurrence.

    `round` is the occurrence of its own attempt. `person` is the command by which a person settles that attempt, if it is held.
    """

    reaction: str
    record: str
    waits_for: str
    standing: str
    round: str | None = None
    person: str | None = None


@dataclass(frozen=True)
class Pending:
    """The whole report on one database."""

    now: datetime
    at: datetime | None  # the time for which the report says what is due; None for now
    standby: bool
    to_do: tuple[ToDo, ...]
    counts: Mapping[str, int]  # the number of all attempts, by how they stand (such as 'in doubt')
    in_doubt: tuple[Open, ...]
    failed: tuple[Open, ...]
    held: tuple[Open, ...]
    waits: tuple[Waits, ...]
    locked: tuple[Locked, ...]
    unseen: Mapping[str, str]  # reactions whose rows cannot be seen, since a table is locked or missing, each with the reason
    lacks: Mapping[str, str]  # reactions that no worker carries out here (mapping_check.lacking, living_workers.lacked): why, and the cure
    newcomers: tuple[Newcomer, ...]
    suspects: tuple[str, ...]
    waiting: tuple[str, ...]  # reactions that wait until a person says whether the database was restored from a backup
    undeclared: Mapping[str, int]  # number of open attempts of each reaction that this code does not declare
    baseline: int
    others: tuple[LeftByOther, ...]  # open attempts of other apps that have no worker alive
    workers: tuple[WorkerSeen, ...]
    careful: bool
    last_end: str
    in_flight: str
    lock: str
    schedules: tuple[Scheduled, ...] = ()
    states: tuple[Unanswered, ...] | None = None
    gone: tuple[str, ...] = ()  # reactions and schedules that were accepted here and that this code does not declare
    left: bool = field(default=False)  # whether anything is left to do, for a worker or for a person


@dataclass(frozen=True)
class Looked:
    """The data from which all parts of the report are made."""

    app: str
    database: Database
    connection: Connection
    queries: Mapping[str, ConditionQuery]
    alive: living_workers.WhoLives
    schedules: Mapping[str, ScheduleSpec] = field(default_factory=dict)
    unseen: Mapping[str, str] = field(default_factory=dict)


def pending(  # noqa: PLR0913  # an app's database and declarations, and the extent of the report
    app: str,
    database: Database,
    queries: Sequence[ConditionQuery],
    liveness: Liveness,
    *,
    schedules: Sequence[ScheduleSpec] = (),
    rested: Sequence[tuple[type, ColumnElement[bool]]] | None = None,
    shown: int = SHOWN,
    then: datetime | None = None,
) -> Pending:
    """Return the report on one database of an app.

    `queries` and `schedules` are those that the app declares, and `rested` the states that it declared to be at rest; None leaves
    unanswered states out. `shown` attempts of each kind are listed. `then` is the time for which `queries` were made, to report what is due
    then.
    """
    with database.reading(wait=lock_waits.SEEN_WITHIN) as connection:
        now = connection.execute(select(database.now())).scalar_one()
        seen = living_workers.workers_of(database, connection, liveness)
        ours = living_workers.of_app(app, seen)
        alive = living_workers.WhoLives(seen)
        declared, unseen = {q.spec.name: q for q in queries}, lock_waits.unseen(connection, queries)
        lacks = mapping_check.lacking(connection, [query for query in queries if query.spec.name not in unseen])
        unseen |= mapping_check.unaskable(connection, queries, lacks)
        looked = Looked(app, database, connection, declared, alive, {spec.name: spec for spec in schedules}, unseen)
        waiting = data_restore_check.waiting(database, connection, app).among(query.spec for query in queries)
        others = left_by_other_apps.left_by_others(connection, app, queries, left_by_other_apps.alive_among(seen))
        queries = [query for query in queries if query.spec.name not in unseen]
        ticks = tuple(scheduled(app, database, connection, schedules, then))
        known = reaction_registry.known(connection, app)

        def unasked(query: ConditionQuery, _error: Exception, words: str) -> None:
            unseen[query.spec.name] = words

        found = [
            raising_rows.ask_excluding_raising_rows(connection, one, partial(_to_do, looked, one), partial(unasked, one)) for one in queries
        ]
        queries = [query for query in queries if query.spec.name not in unseen]
        _, loud = reaction_registry.newcomers(connection, queries, known, unasked)
        off = {*(one.name for one in loud), *waiting}
        to_do = tuple(replace(one, starts=one.reaction not in off) for one in found if one is not None)
        counts, baseline = _counts(looked)
        names = list(looked.queries)
        in_doubt = _opens(looked, table.c.state.in_([State.BEGUN.value, State.DOUBT.value]), (table.c.since,), shown)
        failed = _opens(looked, table.c.state == State.FAILED.value, (table.c.next_at,), shown)
        held = _opens(looked, and_(attempts.is_held, _not_baseline()), (table.c.since,), shown)
        waits = _waits(looked, shown)
        return Pending(
            now=now,
            at=then,
            standby=is_standby(connection),
            to_do=to_do,
            counts=counts,
            in_doubt=in_doubt,
            failed=failed,
            held=held,
            waits=waits,
            locked=tuple(lock_waits.locked(connection, queries)),
            unseen=unseen,
            lacks={name: why for name, why in living_workers.lacked(ours).items() if name in names} | lacks,
            newcomers=tuple(loud),
            suspects=tuple(sorted(name for name, one in known.items() if one.suspect and name not in looked.schedules)),
            waiting=tuple(sorted(waiting)),
            undeclared=dict(reaction_registry.removed(connection, app, names, list(looked.schedules))),
            gone=reaction_registry.gone(known, {*names, *looked.schedules}),
            baseline=baseline,
            others=others,
            workers=tuple(seen),
            careful=living_workers.is_careful(ours, now),
            last_end=living_workers.last_end_in_words(ours),
            in_flight=_in_flight(counts, ours, others),
            lock=living_workers.lock_in_words(database),
            schedules=ticks,
            states=None if rested is None else tuple(unanswered_states.unanswered(connection, queries, rested)),
            left=any(one.rows or one.too_late for one in to_do)
            or any(counts.values())
            or bool(waits or unseen)
            or any(one.ours for one in others)
            or any(one.missed for one in ticks),
        )


def is_standby(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql" and bool(connection.execute(select(func.pg_is_in_recovery())).scalar_one())


def _not_baseline() -> ColumnElement[bool]:
    return func.coalesce(table.c.why, "") != BASELINE


# ---- rows ----------------------------------------------------------------------------------------------------------------------
def _to_do(looked: Looked, query: ConditionQuery) -> ToDo:
    rows, oldest = ready(looked, query)
    spec = query.spec
    texts = tuple(query.record_shown(query.key_in(place)) for place in oldest)
    to_do = ToDo(spec.name, spec.table_name, query.shown_text, rows, rows >= COUNTED_MAX, texts, starts=True)
    return to_do if query.timing is None else _timed(looked, query, to_do)


def ready(looked: Looked, query: ConditionQuery, most: int = COUNTED_MAX) -> tuple[int, list[Place]]:
    """Return how many rows are to be carried out (counted up to `most`), and the cursors (due time and key) of the first of them."""
    if query.unattempted is None:
        return _counted_here(looked, query, most)
    some = query.places_after(None, most, crowded=True).order_by(None).subquery()
    rows = int(looked.connection.execute(select(func.count()).select_from(some)).scalar_one())
    first = query.places_after(None, OLDEST, crowded=True)
    return rows, [tuple(row) for row in looked.connection.execute(first)] if rows else []


def _timed(looked: Looked, query: ConditionQuery, to_do: ToDo) -> ToDo:
    next_ = upcoming.timers(looked.connection, [query], 1)
    return replace(
        to_do,
        overdue_since=upcoming.overdue_since(looked.connection, query) if to_do.rows else None,
        too_late=ready(looked, query.late)[0] if query.late is not None else 0,
        upcoming=upcoming.count(looked.connection, query) if next_ else 0,
        next_due=next_[0].due if next_ else None,
        odd_time=odd_due_times.first_odd_due_time(looked.connection, query),
    )


def _counted_here(looked: Looked, query: ConditionQuery, most: int) -> tuple[int, list[Place]]:
    """Count the rows to be carried out in Python: keys are read, and those with attempts are left out.

    Used if SQL cannot produce the text of the reaction's keys.
    """
    spec = query.spec
    mine = and_(table.c.app == spec.app, table.c.reaction == spec.name)
    stands = mine if spec.done_column else or_(mine, and_(table.c.blocks.in_(query.spellings), _blocks()))
    taken = set(looked.connection.execute(select(table.c.record).where(stands).limit(COUNTED_MAX)).scalars())
    found = [tuple(row) for row in looked.connection.execute(query.places_after(None, most, crowded=False))]
    free = [place for place in found if query.record_shown(query.key_in(place)) not in taken] if taken else found
    return len(free), free[:OLDEST]


def _blocks() -> ColumnElement[bool]:
    return or_(table.c.state == State.BEGUN.value, table.c.unsure)


# ---- attempts ------------------------------------------------------------------------------------------------------------------
def _counts(looked: Looked) -> tuple[dict[str, int], int]:
    """Return the number of the app's attempts by how they stand (such as 'in doubt'), without baselines, and the number of baselines."""
    baseline = (func.coalesce(table.c.why, "") == BASELINE).label("baseline")
    rows = looked.connection.execute(
        select(table.c.reaction, table.c.state, table.c.worker, baseline, func.count())
        .where(table.c.app == looked.app)
        .group_by(table.c.reaction, table.c.state, table.c.worker, baseline)
    )
    counts = {"in doubt": 0, "in the air": 0, "failed": 0, "held": 0}
    left_alone = 0
    for reaction, state, worker, is_baseline, count in rows:
        if is_baseline and state == State.HELD.value:
            left_alone += count
            continue
        name = _standing_of(looked, reaction, attempts.state_of(state), worker)
        counts[name] = counts.get(name, 0) + count
    return counts, left_alone


def _standing_of(looked: Looked, reaction: str, state: State, worker: int) -> str:
    query = looked.queries.get(reaction)
    if state not in (State.BEGUN, State.DOUBT):
        return str(state)
    if state is State.DOUBT:
        return attempt_text.IN_DOUBT
    has_call = reaction not in looked.schedules and (query is None or query.spec.call is not None)
    return attempt_text.begun(alive=looked.alive.get(worker), has_call=has_call)


def _opens(looked: Looked, where: ColumnElement[bool], order: Sequence[ColumnElement[Any]], shown: int) -> tuple[Open, ...]:
    statement: Select[Any] = (
        attempts.select_attempts(table.c.app == looked.app, where).order_by(*order, table.c.reaction, table.c.record).limit(shown)
    )
    found = attempts_as_they_stand(looked.database, looked.connection, statement)
    return tuple(open_of({**looked.queries, **looked.schedules}, looked.alive, one) for one in found)


def open_of(declared: Mapping[str, ConditionQuery | ScheduleSpec], alive: living_workers.WhoLives, attempt: Attempt) -> Open:
    """Return the phrases and times that describe one attempt."""
    found = declared.get(attempt.reaction)
    query = found if isinstance(found, ConditionQuery) else None
    terms = query.spec.terms if query else found.terms if isinstance(found, ScheduleSpec) else None
    liveness, known_in_s = alive.get(attempt.worker), alive.known_in_s.get(attempt.worker)
    has_call = found is None or (query is not None and query.spec.call is not None)
    doubtful = attempt.state in (State.BEGUN, State.DOUBT)
    return Open(
        reaction=attempt.reaction,
        record=attempt.record,
        occurrence=attempt.occurrence,
        standing=attempt_text.standing(attempt, alive=liveness, has_call=has_call, known_in_s=known_in_s),
        next=attempt_text.comes_next(attempt, terms, alive=liveness, known_in_s=known_in_s),
        next_at=attempt.next_at,
        settled_from=attempt_text.settled_from(attempt, terms) if doubtful else None,
        key_kept_until=attempt_text.key_kept_until(attempt, terms) if doubtful else None,
        since=attempt.since,
        tries=attempt_text.tries(attempt, terms),
        error=attempt.error,
        why=attempt.why,
        worker=attempt.worker,
        has_outcome=attempt.outcome is not None,
    )


# ---- records that wait for another attempt -------------------------------------------------------------------------------------
def _waits(looked: Looked, shown: int) -> tuple[Waits, ...]:
    own_held = and_(table.c.app == looked.app, table.c.state == State.HELD.value, table.c.outcome.is_not(None))
    statement = attempts.select_attempts(or_(_blocks(), own_held)).order_by(table.c.since).limit(BLOCKERS_MOST)
    standing: dict[str, list[Attempt]] = {}
    for one in attempts_as_they_stand(looked.database, looked.connection, statement):
        standing.setdefault(one.record, []).append(one)
    found: list[Waits] = []
    for name, query in looked.queries.items():
        if name not in looked.unseen:
            found += _waits_of(looked, query, standing)
            found += _waits_in_line(looked, query)
    return tuple(found[:shown])


def _waits_in_line(looked: Looked, query: ConditionQuery) -> list[Waits]:
    """Return those of the first ready records that must wait for an earlier record in the order of `in_order`."""
    if query.spec.in_order is None:
        return []
    rows = looked.connection.execute(query.places_after(None, IN_LINE_SHOWN, crowded=True))
    some = {(key := query.key_in(tuple(row))): _who_is_before(looked, query, key) for row in rows}
    name, text = query.spec.name, query.record_text
    return [
        Waits(name, text(key), f"its turn behind record {text(one)}", "before it in line") for key, one in some.items() if one is not None
    ]


def _who_is_before(looked: Looked, query: ConditionQuery, key: PrimaryKey) -> PrimaryKey | None:
    """Return the key of the record that is before this one in the order of `in_order`; None if there is none.

    Also None if one of the two keys cannot be read; a worker reports that.
    """
    if any(isinstance(value, NoValue) for value in key):
        return None
    try:
        return in_order.who_is_before(looked.connection, query, key)
    except Exception as error:
        if not db_errors.unloadable(error):
            raise
        return None


def _waits_of(looked: Looked, query: ConditionQuery, standing: Mapping[str, list[Attempt]]) -> list[Waits]:
    spec = query.spec
    wanted = {}
    for text, some in standing.items():
        if any(one.blocks in query.spellings or (one.app, one.reaction) == (spec.app, spec.name) for one in some):
            key = query.key_of_text(text)
            if key is not None:
                wanted[text] = key
    if not wanted:
        return []
    columns = (*query.key_attributes, *spec.occurrence)
    size = len(query.key_attributes)
    found = []
    for row in _ready_among(looked, query, columns, list(wanted.values())):
        text, occurrence = query.record_text(tuple(row[:size])), query.round_text(tuple(row[size:]))
        mine = [one for one in standing.get(text, ()) if one.blocks in (None, *query.spellings)]
        if blocking.own(spec.app, spec.name, occurrence, mine, spec.occurrence_columns) is not None:
            continue
        other = blocking.blocker(spec.app, spec.name, occurrence, mine, **spec.kept_out_by)
        if other is not None:
            found.append(_waits_for(looked, query, text, other))
    return found


def _ready_among(looked: Looked, query: ConditionQuery, columns: Sequence[Any], wanted: Sequence[PrimaryKey]) -> list[Any]:
    """Return these columns of the wanted records that are ready, without records that have a value which cannot be loaded."""
    try:
        return list(looked.connection.execute(select(*columns).where(query.ready, query.among(wanted))))
    except Exception as error:
        if not db_errors.unreadable(error):
            raise
    return [] if len(wanted) == 1 else [row for key in wanted for row in _ready_among(looked, query, columns, [key])]


def _waits_for(looked: Looked, query: ConditionQuery, text: str, other: Attempt) -> Waits:
    spec, standing = query.spec, _standing_of(looked, other.reaction, other.state, other.worker)
    if (other.app, other.reaction) != (spec.app, spec.name):
        return Waits(spec.name, text, other.reaction, standing)
    person = attempt_text.settled_by_a_person(other) if other.state is State.HELD else None
    return Waits(spec.name, text, f"its own round {other.occurrence}", standing, other.occurrence, person)


def _in_flight(counts: Mapping[str, int], seen: Sequence[WorkerSeen], others: Sequence[LeftByOther]) -> str:
    """Return the sentence that says what is in flight, and how that is known."""
    keeps = "no transport here keeps anything, so no queue and no log holds work"
    alive = [one for one in seen if one.alive]
    unseen = [one for one in seen if one.alive is None]
    awaited = [one.known_in_s for one in seen if one.known_in_s is not None]
    if awaited:
        return f"What is in flight is in workers that are alive, and in those that may be: {attempt_text.known_in(max(awaited))}; {keeps}."
    if unseen:
        return f"Nothing of ours is in flight but what a living worker has begun: {keeps}; from here no lock tells who is alive."
    if alive:
        flying = counts.get(attempt_text.IN_THE_AIR, 0)
        calls = attempt_text.counted(flying, "call is", "calls are")
        return f"{calls} in the air, in {len(alive)} living {'worker' if len(alive) == 1 else 'workers'}; beside that {keeps}."
    beside = [f"what app {one.app!r} left in doubt" for one in others if one.ours and one.in_doubt]
    what = f"Nothing of ours is in flight, beside {' and '.join(beside)}" if beside else "Nothing of ours is in flight"
    return f"{what}: {keeps}, and no worker lives, by its lock."
