"""Reports what is left to do on one database: rows to be carried out, attempts in doubt, failed or held, and records that wait.

It runs only SELECTs, calls no handler, and works on a standby and with SELECT privileges only. Row counts are bounded, so that a table of
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
from groundstate.engine.operate.unanswered_states import UnansweredState
from groundstate.engine.rows import attempt_text, attempts, data_restore_check, reaction_registry
from groundstate.engine.rows.corrupt_rows import fetch_attempts_despite_corrupt_rows
from groundstate.engine.rows.reaction_registry import BASELINE, COUNTED_MAX, UnacceptedReaction
from groundstate.engine.schedule import upcoming
from groundstate.engine.schedule.report import ScheduleReport, report_schedules
from groundstate.engine.sql import db_errors, lock_waits, mapping_check, odd_due_times, raising_rows
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.lock_waits import LockedRecord
from groundstate.engine.sql.pass_cursors import PassCursor
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.rules import blocking
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database, Liveness
from groundstate.store.tables import attempt as table
from groundstate.values.keys import NoValue

SHOWN = 20  # the most attempts of each kind that are listed; all are counted
OLDEST = 3  # the most ready records of each reaction that are named
BLOCKERS_MOST = 1_000  # the most attempts that are read to find the records that they block
# A reaction with `in_order` may have many ready records. At most this many are examined for an earlier record that must come first.
IN_LINE_SHOWN = 10


@dataclass(frozen=True)
class ToDo:
    """The rows of one reaction that are to be carried out, except rows that have an attempt or wait for another reaction's attempt."""

    reaction: str
    table: str
    condition: str
    rows: int
    at_least: bool  # whether there may be more rows than `rows`, because counting stopped at a limit
    oldest: tuple[str, ...]  # the records with the earliest due times; without due times, those with the lowest keys
    starts: bool  # False if the reaction is new or changed, and a person must accept it first
    overdue_since: datetime | None = None  # when the first of these rows became due; None without a due time
    too_late: int = 0  # number of rows that were not carried out within `valid_for`, and go to the `expired` handler
    upcoming: int = 0  # number of rows that become due later
    next_due: datetime | None = None  # when the next row becomes due; None if none does
    # a warning if some due time is stored in a wrong format (SQLite), so that its record is not carried out when it is due; None if all due
    # times are right
    odd_time: str | None = None


@dataclass(frozen=True)
class OpenAttempt:
    """One attempt, described for a person in phrases and times."""

    reaction: str
    record: str
    occurrence: str
    standing: str  # its state as a phrase, such as 'in doubt'
    next: str  # a phrase on what happens next
    next_at: datetime | None  # when the next step happens; None if not known
    # the earliest time at which a call in doubt can be settled; None if it can be settled at once, or if the attempt is not in doubt
    settled_from: datetime | None
    key_kept_until: datetime | None  # until when a call in doubt may be repeated with its idempotency key; None if there is no such limit
    since: datetime  # when its first try began; after a person's `retry`, the next try counts as the first
    tries: str
    error: str | None
    why: str | None
    worker: int
    has_outcome: bool


@dataclass(frozen=True)
class WaitingRecord:
    """A record on which a reaction is not carried out yet, since it waits for an attempt of another reaction, for its own attempt of
    another occurrence, or for its turn.

    If the record waits for the reaction's own attempt, `round` is the attempt's occurrence; otherwise it is None. If that attempt is held,
    `person` is the command that settles it.
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
    counts: Mapping[str, int]  # the number of all attempts in each state (such as 'in doubt')
    in_doubt: tuple[OpenAttempt, ...]
    failed: tuple[OpenAttempt, ...]
    held: tuple[OpenAttempt, ...]
    waits: tuple[WaitingRecord, ...]
    locked: tuple[LockedRecord, ...]
    unseen: Mapping[str, str]  # by reaction: why its rows cannot be seen, such as a table that is locked or missing
    # for each reaction that no worker carries out here: what is lacking, such as a column or privilege, and the cure
    lacks: Mapping[str, str]
    newcomers: tuple[UnacceptedReaction, ...]
    suspects: tuple[str, ...]  # reactions whose calls begin as attempts in doubt, because the database went back in time
    waiting: tuple[str, ...]  # reactions that wait until a person says whether the database was restored from a backup
    undeclared: Mapping[str, int]  # for each reaction that the application does not declare here, the number of its open attempts
    baseline: int  # number of rows that were left out when their reaction was new
    others: tuple[LeftByOther, ...]  # open attempts of other apps that have no worker alive
    workers: tuple[WorkerSeen, ...]
    careful: bool
    last_end: str
    in_flight: str
    lock: str
    schedules: tuple[ScheduleReport, ...] = ()
    states: tuple[UnansweredState, ...] | None = None
    gone: tuple[str, ...] = ()  # reactions and schedules that were accepted here, and that the application does not declare any more
    left: bool = field(default=False)  # whether anything is left to do, for a worker or for a person


@dataclass(frozen=True)
class ReportContext:
    """The data from which each part of the report is made: the app, its database, and what it declares."""

    app: str
    database: Database
    connection: Connection
    queries: Mapping[str, ConditionQuery]
    alive: living_workers.LivenessById
    schedules: Mapping[str, ScheduleSpec] = field(default_factory=dict)
    unseen: Mapping[str, str] = field(default_factory=dict)


def build_pending_report(  # noqa: PLR0913  # an app's database and declarations, and the extent of the report
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

    `queries` and `schedules` are those of the app. `rested` has the states that the app declared with `at_rest`, as pairs (class, clause);
    if it is None, the report does not list unanswered states. At most `shown` attempts of each kind are listed. If `then` is given, the
    report says what is due at that time, for which `queries` must have been made.
    """
    with database.reading(wait=lock_waits.SEEN_WITHIN) as connection:
        now = connection.execute(select(database.now())).scalar_one()
        seen = living_workers.read_workers(database, connection, liveness)
        ours = living_workers.workers_of_app(app, seen)
        alive = living_workers.LivenessById(seen)
        declared, unseen = {q.spec.name: q for q in queries}, lock_waits.reactions_behind_locked_tables(connection, queries)
        lacks = mapping_check.why_not_carried_out(connection, [query for query in queries if query.spec.name not in unseen])
        unseen |= mapping_check.reactions_not_evaluable(connection, queries, lacks)
        looked = ReportContext(app, database, connection, declared, alive, {spec.name: spec for spec in schedules}, unseen)
        waiting = data_restore_check.find_waiting_reactions(database, connection, app).names_of_waiting(query.spec for query in queries)
        others = left_by_other_apps.count_left_by_others(connection, app, queries, left_by_other_apps.apps_with_workers(seen))
        queries = [query for query in queries if query.spec.name not in unseen]
        ticks = tuple(report_schedules(app, database, connection, schedules, then))
        known = reaction_registry.read_known_reactions(connection, app)

        def unasked(query: ConditionQuery, _error: Exception, words: str) -> None:
            unseen[query.spec.name] = words

        found = [
            raising_rows.ask_excluding_raising_rows(connection, one, partial(_read_to_do, looked, one), partial(unasked, one))
            for one in queries
        ]
        queries = [query for query in queries if query.spec.name not in unseen]
        _, loud = reaction_registry.split_newcomers(connection, queries, known, unasked)
        off = {*(one.name for one in loud), *waiting}
        to_do = tuple(replace(one, starts=one.reaction not in off) for one in found if one is not None)
        counts, baseline = _count_attempts(looked)
        names = list(looked.queries)
        in_doubt = _read_attempts(looked, table.c.state.in_([State.BEGUN.value, State.DOUBT.value]), (table.c.since,), shown)
        failed = _read_attempts(looked, table.c.state == State.FAILED.value, (table.c.next_at,), shown)
        held = _read_attempts(looked, and_(attempts.is_held, _is_no_baseline()), (table.c.since,), shown)
        waits = _read_waiting_records(looked, shown)
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
            locked=tuple(lock_waits.find_locked_records(connection, queries)),
            unseen=unseen,
            lacks={name: why for name, why in living_workers.reactions_that_all_workers_lack(ours).items() if name in names} | lacks,
            newcomers=tuple(loud),
            suspects=tuple(sorted(name for name, one in known.items() if one.suspect and name not in looked.schedules)),
            waiting=tuple(sorted(waiting)),
            undeclared=dict(reaction_registry.undeclared_with_open_attempts(connection, app, names, list(looked.schedules))),
            gone=reaction_registry.undeclared_names(known, {*names, *looked.schedules}),
            baseline=baseline,
            others=others,
            workers=tuple(seen),
            careful=living_workers.is_careful(ours, now),
            last_end=living_workers.last_end_in_words(ours),
            in_flight=_in_flight_in_words(counts, ours, others),
            lock=living_workers.lock_in_words(database),
            schedules=ticks,
            states=None if rested is None else tuple(unanswered_states.find_unanswered_states(connection, queries, rested)),
            left=any(one.rows or one.too_late for one in to_do)
            or any(counts.values())
            or bool(waits or unseen)
            or any(one.ours for one in others)
            or any(one.missed for one in ticks),
        )


def is_standby(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql" and bool(connection.execute(select(func.pg_is_in_recovery())).scalar_one())


def _is_no_baseline() -> ColumnElement[bool]:
    return func.coalesce(table.c.why, "") != BASELINE


# ---- rows ----------------------------------------------------------------------------------------------------------------------
def _read_to_do(looked: ReportContext, query: ConditionQuery) -> ToDo:
    rows, oldest = read_ready_rows(looked, query)
    spec = query.spec
    texts = tuple(query.keys.record_for_people(query.cursors.key_in_cursor(place)) for place in oldest)
    to_do = ToDo(spec.name, spec.table_name, query.texts.condition_for_people, rows, rows >= COUNTED_MAX, texts, starts=True)
    return to_do if query.timing is None else _add_due_times(looked, query, to_do)


def read_ready_rows(looked: ReportContext, query: ConditionQuery, most: int = COUNTED_MAX) -> tuple[int, list[PassCursor]]:
    """Return a pair: the number of rows that are to be carried out, and a list with the first few of them.

    Counting stops at `most`. Each item of the list has the row's due time, if the reaction has due times, and its key.
    """
    if query.attempts.has_no_blocking_attempt is None:
        return _count_ready_rows_in_python(looked, query, most)
    some = query.selects.select_cursors_after(None, most, crowded=True).order_by(None).subquery()
    rows = int(looked.connection.execute(select(func.count()).select_from(some)).scalar_one())
    first = query.selects.select_cursors_after(None, OLDEST, crowded=True)
    return rows, [tuple(row) for row in looked.connection.execute(first)] if rows else []


def _add_due_times(looked: ReportContext, query: ConditionQuery, to_do: ToDo) -> ToDo:
    next_ = upcoming.next_timers(looked.connection, [query], 1)
    return replace(
        to_do,
        overdue_since=upcoming.overdue_since(looked.connection, query) if to_do.rows else None,
        too_late=read_ready_rows(looked, query.query_for_expired)[0] if query.query_for_expired is not None else 0,
        upcoming=upcoming.count_not_yet_due(looked.connection, query) if next_ else 0,
        next_due=next_[0].due if next_ else None,
        odd_time=odd_due_times.first_odd_due_time(looked.connection, query),
    )


def _count_ready_rows_in_python(looked: ReportContext, query: ConditionQuery, most: int) -> tuple[int, list[PassCursor]]:
    """Return the same pair as `read_ready_rows`. Call it if SQL cannot produce the text of the reaction's keys.

    The query also returns rows that have attempts. Python code removes these rows from the result.
    """
    spec = query.spec
    mine = and_(table.c.app == spec.app, table.c.reaction == spec.name)
    stands = mine if spec.done_column else or_(mine, and_(table.c.blocks.in_(query.attempts.table_name_spellings), _is_blocking()))
    taken = set(looked.connection.execute(select(table.c.record).where(stands).limit(COUNTED_MAX)).scalars())
    found = [tuple(row) for row in looked.connection.execute(query.selects.select_cursors_after(None, most, crowded=False))]
    free = [place for place in found if query.keys.record_for_people(query.cursors.key_in_cursor(place)) not in taken] if taken else found
    return len(free), free[:OLDEST]


def _is_blocking() -> ColumnElement[bool]:
    return or_(table.c.state == State.BEGUN.value, table.c.unsure)


# ---- attempts ------------------------------------------------------------------------------------------------------------------
def _count_attempts(looked: ReportContext) -> tuple[dict[str, int], int]:
    """Return a pair: the number of the app's attempts in each state (such as 'in doubt') without baselines, and the number of baselines
    (rows that were left out when their reaction was new).
    """
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
        name = _standing_in_words(looked, reaction, attempts.parse_state(state), worker)
        counts[name] = counts.get(name, 0) + count
    return counts, left_alone


def _standing_in_words(looked: ReportContext, reaction: str, state: State, worker: int) -> str:
    query = looked.queries.get(reaction)
    if state not in (State.BEGUN, State.DOUBT):
        return str(state)
    if state is State.DOUBT:
        return attempt_text.IN_DOUBT
    has_call = reaction not in looked.schedules and (query is None or query.spec.call is not None)
    return attempt_text.describe_begun_state(alive=looked.alive.get(worker), has_call=has_call)


def _read_attempts(
    looked: ReportContext, where: ColumnElement[bool], order: Sequence[ColumnElement[Any]], shown: int
) -> tuple[OpenAttempt, ...]:
    statement: Select[Any] = (
        attempts.select_attempts(table.c.app == looked.app, where).order_by(*order, table.c.reaction, table.c.record).limit(shown)
    )
    found = fetch_attempts_despite_corrupt_rows(looked.database, looked.connection, statement)
    return tuple(describe_attempt({**looked.queries, **looked.schedules}, looked.alive, one) for one in found)


def describe_attempt(
    declared: Mapping[str, ConditionQuery | ScheduleSpec], alive: living_workers.LivenessById, attempt: Attempt
) -> OpenAttempt:
    """Return one attempt described in phrases and times. `declared` has the app's condition queries and schedules by name."""
    found = declared.get(attempt.reaction)
    query = found if isinstance(found, ConditionQuery) else None
    terms = query.spec.terms if query else found.terms if isinstance(found, ScheduleSpec) else None
    liveness, known_in_s = alive.get(attempt.worker), alive.known_in_s.get(attempt.worker)
    has_call = found is None or (query is not None and query.spec.call is not None)
    doubtful = attempt.state in (State.BEGUN, State.DOUBT)
    return OpenAttempt(
        reaction=attempt.reaction,
        record=attempt.record,
        occurrence=attempt.occurrence,
        standing=attempt_text.describe_state(attempt, alive=liveness, has_call=has_call, known_in_s=known_in_s),
        next=attempt_text.describe_next_step(attempt, terms, alive=liveness, known_in_s=known_in_s),
        next_at=attempt.next_at,
        settled_from=attempt_text.earliest_settling_time(attempt, terms) if doubtful else None,
        key_kept_until=attempt_text.key_kept_until(attempt, terms) if doubtful else None,
        since=attempt.since,
        tries=attempt_text.describe_tries(attempt, terms),
        error=attempt.error,
        why=attempt.why,
        worker=attempt.worker,
        has_outcome=attempt.outcome is not None,
    )


# ---- records that wait for another attempt -------------------------------------------------------------------------------------
def _read_waiting_records(looked: ReportContext, shown: int) -> tuple[WaitingRecord, ...]:
    own_held = and_(table.c.app == looked.app, table.c.state == State.HELD.value, table.c.outcome.is_not(None))
    statement = attempts.select_attempts(or_(_is_blocking(), own_held)).order_by(table.c.since).limit(BLOCKERS_MOST)
    standing: dict[str, list[Attempt]] = {}
    for one in fetch_attempts_despite_corrupt_rows(looked.database, looked.connection, statement):
        standing.setdefault(one.record, []).append(one)
    found: list[WaitingRecord] = []
    for name, query in looked.queries.items():
        if name not in looked.unseen:
            found += _records_waiting_for_attempts(looked, query, standing)
            found += _records_waiting_in_line(looked, query)
    return tuple(found[:shown])


def _records_waiting_in_line(looked: ReportContext, query: ConditionQuery) -> list[WaitingRecord]:
    """Return one item for each of the first ready records that must wait for an earlier record, by `in_order`."""
    if query.spec.in_order is None:
        return []
    rows = looked.connection.execute(query.selects.select_cursors_after(None, IN_LINE_SHOWN, crowded=True))
    some = {(key := query.cursors.key_in_cursor(tuple(row))): _key_of_earlier_record(looked, query, key) for row in rows}
    name, text = query.spec.name, query.keys.record_text
    return [
        WaitingRecord(name, text(key), f"its turn behind record {text(one)}", "before it in line")
        for key, one in some.items()
        if one is not None
    ]


def _key_of_earlier_record(looked: ReportContext, query: ConditionQuery, key: PrimaryKey) -> PrimaryKey | None:
    """Return the key of the record that must be carried out before this record, by `in_order`.

    Return None if there is no such record, or if a key or a value of `in_order` cannot be read. A worker reports an unreadable record.
    """
    if any(isinstance(value, NoValue) for value in key):
        return None
    try:
        return in_order.record_before_in_line(looked.connection, query, key)
    except Exception as error:
        if not db_errors.is_record_load_error(error):
            raise
        return None


def _records_waiting_for_attempts(
    looked: ReportContext, query: ConditionQuery, standing: Mapping[str, list[Attempt]]
) -> list[WaitingRecord]:
    spec = query.spec
    wanted = {}
    for text, some in standing.items():
        if any(one.blocks in query.attempts.table_name_spellings or (one.app, one.reaction) == (spec.app, spec.name) for one in some):
            key = query.keys.key_from_text_or_none(text)
            if key is not None:
                wanted[text] = key
    if not wanted:
        return []
    columns = (*query.keys.key_attributes, *spec.occurrence)
    size = len(query.keys.key_attributes)
    found = []
    for row in _read_ready_records(looked, query, columns, list(wanted.values())):
        text, occurrence = query.keys.record_text(tuple(row[:size])), query.occurrences.occurrence_text_of_values(tuple(row[size:]))
        mine = [one for one in standing.get(text, ()) if one.blocks in (None, *query.attempts.table_name_spellings)]
        if blocking.find_own_attempt(spec.app, spec.name, occurrence, mine, spec.occurrence_columns) is not None:
            continue
        other = blocking.find_blocking_attempt(spec.app, spec.name, occurrence, mine, **spec.blocking_arguments)
        if other is not None:
            found.append(_describe_waiting_record(looked, query, text, other))
    return found


def _read_ready_records(looked: ReportContext, query: ConditionQuery, columns: Sequence[Any], wanted: Sequence[PrimaryKey]) -> list[Any]:
    """Return the values of `columns` for each wanted record that is ready. Leave out a record if one of the values cannot be loaded."""
    try:
        return list(looked.connection.execute(select(*columns).where(query.condition.is_ready, query.keys.has_key_among(wanted))))
    except Exception as error:
        if not db_errors.is_conversion_error(error):
            raise
    return [] if len(wanted) == 1 else [row for key in wanted for row in _read_ready_records(looked, query, columns, [key])]


def _describe_waiting_record(looked: ReportContext, query: ConditionQuery, text: str, other: Attempt) -> WaitingRecord:
    spec, standing = query.spec, _standing_in_words(looked, other.reaction, other.state, other.worker)
    if (other.app, other.reaction) != (spec.app, spec.name):
        return WaitingRecord(spec.name, text, other.reaction, standing)
    person = attempt_text.describe_settling_by_person(other) if other.state is State.HELD else None
    return WaitingRecord(spec.name, text, f"its own round {other.occurrence}", standing, other.occurrence, person)


def _in_flight_in_words(counts: Mapping[str, int], seen: Sequence[WorkerSeen], others: Sequence[LeftByOther]) -> str:
    """Return the sentence that says which calls are in flight, and how this is known."""
    keeps = "no transport here keeps anything, so no queue and no log holds work"
    alive = [one for one in seen if one.alive]
    unseen = [one for one in seen if one.alive is None]
    awaited = [one.known_in_s for one in seen if one.known_in_s is not None]
    if awaited:
        known_in = attempt_text.liveness_known_in(max(awaited))
        return f"What is in flight is in workers that are alive, and in those that may be: {known_in}; {keeps}."
    if unseen:
        return f"Nothing of ours is in flight but what a living worker has begun: {keeps}; from here no lock tells who is alive."
    if alive:
        flying = counts.get(attempt_text.IN_THE_AIR, 0)
        calls = attempt_text.count_with_noun(flying, "call is", "calls are")
        return f"{calls} in the air, in {len(alive)} living {'worker' if len(alive) == 1 else 'workers'}; beside that {keeps}."
    beside = [f"what app {one.app!r} left in doubt" for one in others if one.ours and one.in_doubt]
    what = f"Nothing of ours is in flight, beside {' and '.join(beside)}" if beside else "Nothing of ours is in flight"
    return f"{what}: {keeps}, and no worker lives, by its lock."
