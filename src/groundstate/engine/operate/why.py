"""Explains each reaction on one record: which of its clauses hold, which attempts exist, what it waits for, and what happens next.

The command `groundstate why` and the app use it. It runs only SELECTs and prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, inspect, literal, select
from sqlalchemy.exc import DataError, DBAPIError

from groundstate.engine.handle import in_order
from groundstate.engine.operate import living_workers, obstacles
from groundstate.engine.operate.next_step import IN_LINE, ReactionCase, RecordContext, WaitsFor, describe_next_step
from groundstate.engine.operate.obstacles import Workers
from groundstate.engine.operate.pending import OpenAttempt, describe_attempt
from groundstate.engine.rows import attempt_text, attempts, data_restore_check, reaction_registry
from groundstate.engine.rows.corrupt_rows import fetch_attempts_despite_corrupt_rows
from groundstate.engine.schedule.report import ScheduleReport, report_schedules
from groundstate.engine.sql import db_errors, key_refusal, lock_waits, mapping_check, unreadable_columns
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.due_expression import Timing
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.sql.savepoint_query import query_in_savepoint, why_condition_not_evaluable, why_record_not_evaluable
from groundstate.rules import blocking
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.due import OutsideCalendarError
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database, Liveness
from groundstate.store.tables import attempt as table
from groundstate.values import keys
from groundstate.values.errors import GroundstateError, NotFoundError

CHILDREN_MOST = 1_000  # the most child records of one `every_child` clause whose attempts are read
TICKS_MOST = 100  # the most ticks of one schedule that are listed


@dataclass(frozen=True)
class Clause:
    """One clause of a condition, and whether it holds on the record. `holds` is None if the clause is NULL, which counts as not holding."""

    sql: str
    holds: bool | None


@dataclass(frozen=True)
class Answer:
    """The explanation of one reaction on the record."""

    reaction: str
    clauses: tuple[Clause, ...]
    holds: bool
    occurrence: str
    attempts: tuple[OpenAttempt, ...]  # attempts of this reaction on the record, of whatever occurrence
    waits_for: tuple[WaitsFor, ...]
    next: str  # a phrase on what happens next
    next_at: datetime | None  # when the next step happens; None if not known
    due: datetime | None = None  # when the record becomes due for this reaction; None if the due time is NULL, or there is none
    timed: bool = False  # whether the reaction has a due time (`due=`)
    no_due: str | None = None  # a phrase on a due column whose value is no time; None if the value is a time or NULL
    # If this reaction and other reactions undo each other's changes, a phrase that says so and what happens then; otherwise None.
    goes_round: str | None = None


@dataclass(frozen=True)
class Why:
    """The explanation of all reactions on one record. `exists` is False if the record is gone and only attempts on it are left."""

    now: datetime
    table: str
    record: str
    exists: bool
    worker_lives: bool | None  # whether any worker of the app is alive; None if this cannot be seen
    answers: tuple[Answer, ...]
    # attempts on the record that belong to other apps, or to reactions that the application does not declare here
    others: tuple[OpenAttempt, ...]


def explain_record(
    app: str, database: Database, queries: Sequence[ConditionQuery], liveness: Liveness, table_name: str, record: str
) -> Why:
    """Return the explanation of one record of a table.

    `table_name` is the name of the table or of its class. `record` is the primary key as text, or as a JSON array if the key has several
    columns. `queries` are the condition queries of all reactions of the app.

    Raises:
        NotFoundError: No reaction is on this table; or neither the record nor an attempt on it exists; or the database does not find rows
        of the table by their keys.
        ValueError: `record` is not a valid key of the table.
    """
    on_it = _queries_on_table(queries, table_name)
    first = on_it[0]
    with database.reading(wait=lock_waits.SEEN_WITHIN) as connection:
        now = connection.execute(select(database.now())).scalar_one()
        unseen = lock_waits.reactions_behind_locked_tables(connection, on_it)
        lacks = mapping_check.why_not_carried_out(connection, [query for query in on_it if query.spec.name not in unseen])
        unseen |= mapping_check.reactions_not_evaluable(connection, on_it, lacks)
        refused = None if first.spec.name in unseen else key_refusal.find_key_refusal(connection, first)
        if refused is not None:
            raise NotFoundError(str(refused))
        key, text = _key_and_text(connection, first, app, record)
        seen = living_workers.read_workers(database, connection, liveness)
        statement = attempts.select_attempts(table.c.record == text).order_by(table.c.reaction, table.c.occurrence)
        standing = fetch_attempts_despite_corrupt_rows(database, connection, statement)
        by_name = {query.spec.name: query for query in queries}
        tables = {name for query in on_it for name in query.attempts.table_name_spellings}
        mine = [one for one in standing if _is_attempt_on_tables(one, app, by_name, tables)]
        looked = RecordContext(
            database,
            connection,
            by_name,
            living_workers.LivenessById(seen),
            Workers(app, connection, liveness, living_workers.workers_of_app(app, seen), queries, now),
            reaction_registry.read_known_reactions(connection, app),
            mine,
            now,
            data_restore_check.find_waiting_reactions(database, connection, app).names_of_waiting(query.spec for query in queries),
            unseen,
            living_workers.reactions_that_all_workers_lack(living_workers.workers_of_app(app, seen)) | lacks,
        )
        exists = key is not None and _may_record_exist(looked, first, key)
        if not exists and not mine:
            raise NotFoundError(f"{first.spec.table_name} has no record {text!r}, and no attempt of it is left")
        answers = tuple(_explain_reaction(looked, query, key) for query in on_it)
        names = {query.spec.name for query in on_it}
        others = tuple(describe_attempt(by_name, looked.alive, one) for one in mine if one.app != app or one.reaction not in names)
        return Why(now, first.spec.table_name, text, exists, looked.workers.is_any_alive, answers, others)


@dataclass(frozen=True)
class WhySchedule:
    """The explanation of one schedule. `ticks` has one attempt for each tick that failed or is held."""

    now: datetime
    schedule: ScheduleReport
    ticks: tuple[OpenAttempt, ...]


def explain_schedule(app: str, database: Database, spec: ScheduleSpec, liveness: Liveness, tick: str | None) -> WhySchedule:
    """Return the explanation of one schedule. `tick`, if given, is the time of a tick: then only the attempts of this tick are listed.

    Raises:
        NotFoundError: `tick` is given, and it has no attempt.
    """
    with database.reading() as connection:
        now = connection.execute(select(database.now())).scalar_one()
        alive = living_workers.LivenessById(living_workers.read_workers(database, connection, liveness))
        statement = (
            attempts.select_attempts(table.c.app == app, table.c.reaction == spec.name).order_by(table.c.occurrence).limit(TICKS_MOST)
        )
        if tick is not None:
            statement = statement.where(table.c.occurrence == keys.canonical_tick(tick))
        standing = fetch_attempts_despite_corrupt_rows(database, connection, statement)
        if tick is not None and not standing:
            raise NotFoundError(
                f"no attempt of schedule {spec.name} stands of a tick {tick!r}: it was carried out, left out, or is to come"
            )
        ticks = tuple(describe_attempt({spec.name: spec}, alive, one) for one in standing)
        return WhySchedule(now, report_schedules(app, database, connection, [spec], None)[0], ticks)


def _queries_on_table(queries: Sequence[ConditionQuery], named: str) -> list[ConditionQuery]:
    """Return the condition queries of the reactions on a table. `named` is the table's or the class's name. Raise NotFoundError if there
    are none.
    """
    found = [
        query
        for query in queries
        if named in {one.fullname for one in query.mapper.tables}
        or named.casefold() in (query.spec.record.__name__.casefold(), query.spec.table_name.casefold())
    ]
    if not found:
        there = ", ".join(sorted({query.spec.table_name for query in queries})) or "none"
        raise NotFoundError(f"no reaction is on a table {named!r}; tables with reactions are: {there}")
    return found


def _key_and_text(connection: Connection, query: ConditionQuery, app: str, record: str) -> tuple[PrimaryKey | None, str]:
    """Return the pair (key of the record, text by which attempts name the record).

    The key is None if the given text is not the canonical text of a key, but some attempt names its record by this text.
    """
    columns = ", ".join(column.name for column in query.mapper.primary_key)
    stands = select(literal(1)).where(table.c.app == app, table.c.reaction == query.spec.name, table.c.record == record)
    try:
        key = query.keys.key_from_text(record)
    except ValueError as error:
        if connection.execute(stands).first() is not None:
            return None, record
        raise ValueError(f"{record!r} is no key of {query.spec.table_name} ({columns}): {error}") from None
    text = query.keys.record_text(key)
    if text != record and connection.execute(stands).first() is not None:
        return None, record
    return key, text


def _may_record_exist(looked: RecordContext, query: ConditionQuery, key: PrimaryKey) -> bool:
    """Return whether the record may exist: it exists, or its table is locked, so that nobody can see whether it exists."""
    try:
        with looked.connection.begin_nested():
            return _has_row_with_key(looked.connection, query, key)
    except DBAPIError as error:
        if not db_errors.is_lock_timeout(error):
            raise
        return True


def _has_row_with_key(connection: Connection, query: ConditionQuery, key: PrimaryKey) -> bool:
    """Return whether the table has a row with this key. The row may be of the query's class or of another class mapped to the table."""
    base: Any = query.mapper.base_mapper.local_table
    where = [column == value for column, value in zip(query.mapper.base_mapper.primary_key, key, strict=True)]
    where += query.user_filter_conditions
    try:
        return connection.execute(select(*base.primary_key.columns).where(*where)).first() is not None
    except (OverflowError, DataError) as error:  # the number is too large for the column
        raise ValueError(f"{query.keys.record_text(key)!r} is no key of {query.spec.table_name}: {error.__cause__ or error}") from None


def _is_attempt_on_tables(one: Attempt, app: str, queries: Mapping[str, ConditionQuery], tables: set[str]) -> bool:
    """Return whether an attempt is on a record of one of these tables, and not on a record with the same key in another table."""
    if one.app == app and one.reaction in queries:
        return queries[one.reaction].spec.table_name in tables
    return one.blocks in tables


# ---- one reaction ----------------------------------------------------------------------------------------------------------------
def _explain_reaction(looked: RecordContext, query: ConditionQuery, key: PrimaryKey | None) -> Answer:
    name = query.spec.name
    if name in looked.unseen:
        return _answer_without_query(
            looked, query, f"not carried out: {looked.lacking[name]}" if name in looked.lacking else looked.unseen[name]
        )
    if key is None:
        first = next((describe_attempt(looked.queries, looked.alive, one) for one in _own_attempts(looked, query)), None)
        words, at = ("nothing: no record is found by such a key", None) if first is None else (first.next, first.next_at)
        return replace(_answer_without_query(looked, query, words), next_at=at)
    errors: list[Exception] = []
    found = query_in_savepoint(looked.connection, partial(_answer_by_query, looked, query, key), errors.append)
    return _answer_if_raised(looked, query, errors[0]) if found is None else found


def _own_attempts(looked: RecordContext, query: ConditionQuery) -> list[Attempt]:
    return [one for one in looked.standing if one.app == query.spec.app and one.reaction == query.spec.name]


def _answer_if_raised(looked: RecordContext, query: ConditionQuery, error: Exception) -> Answer:
    """Return the answer for a reaction whose condition raises an error for this record.

    If a value of the record causes the error and the record has an attempt, the attempt decides what happens next.
    """
    if not db_errors.is_caused_by_value(error):
        return _answer_without_query(looked, query, f"not carried out: {why_condition_not_evaluable(error)}")
    first = next((describe_attempt(looked.queries, looked.alive, one) for one in _own_attempts(looked, query)), None)
    words = f"{why_record_not_evaluable(error)}; " + (
        "it fails once a worker meets it, until the record is mended" if first is None else first.next
    )
    if first is not None and any(one.state is State.BEGUN for one in _own_attempts(looked, query)):
        words += ", and what its call says waits in memory until the record is mended"
    return replace(_answer_without_query(looked, query, words), next_at=None if first is None else first.next_at)


def _answer_without_query(looked: RecordContext, query: ConditionQuery, words: str) -> Answer:
    """Return the answer for a reaction whose condition cannot be queried. `words` is the phrase on what happens next."""
    opens = tuple(describe_attempt(looked.queries, looked.alive, one) for one in _own_attempts(looked, query))
    return Answer(query.spec.name, (), False, "", opens, (), words, None)


def _answer_by_query(looked: RecordContext, query: ConditionQuery, key: PrimaryKey) -> Answer:
    spec, own = query.spec, _own_attempts(looked, query)
    opens = tuple(describe_attempt(looked.queries, looked.alive, one) for one in own)
    truths: list[Any] = [clause.label(f"clause_{number}") for number, clause in enumerate(spec.clauses)]
    row = looked.connection.execute(select(literal(1), *truths).select_from(query.entity).where(query.keys.has_key_among([key]))).first()
    clauses: tuple[Clause, ...] = ()
    round_ = _OccurrenceFacts()
    if row is not None:
        round_ = _read_occurrence(looked, query, key)
        said = [None if value is None else bool(value) for value in row[1:]]
        clauses = tuple(Clause(query.texts.sql_for_people(clause), holds) for clause, holds in zip(spec.clauses, said, strict=True))
    occurrence = round_.occurrence
    mine = blocking.find_own_attempt(spec.app, spec.name, occurrence, own, spec.occurrence_columns)
    on_table = [one for one in looked.standing if one in own or one.blocks in query.attempts.table_name_spellings]
    blocker = blocking.find_blocking_attempt(spec.app, spec.name, occurrence, on_table, **spec.blocking_arguments)
    holds = row is not None and all(clause.holds for clause in clauses)
    waits = [_describe_blocker(looked, spec, blocker)] if blocker is not None and holds else []
    if row is not None and not holds:
        waits += _describe_held_children(looked, query, key)
    if holds and not waits and spec.in_order is not None:
        waits += _earlier_record_in_order(looked, query, key)
    there = None if row is None else key
    case = ReactionCase(
        query, there, occurrence, holds=holds, mine=mine, waits=waits, due=round_.due, no_due=round_.no_due, unread=round_.unread
    )
    words, at = describe_next_step(looked, case)
    ring = obstacles.find_reported_cycle(looked.workers, query, query.keys.record_text(key), occurrence)
    goes_round = None if ring is None else obstacles.describe_ring(ring, spec.name)
    return Answer(
        spec.name, clauses, holds, occurrence, opens, tuple(waits), words, at,
        due=round_.due, timed=query.timing is not None, no_due=round_.no_due, goes_round=goes_round,
    )  # fmt: skip


@dataclass(frozen=True)
class _OccurrenceFacts:
    """What a record's columns say about its occurrence (which round of a recurring event it is in) and its due time.

    If a column cannot be read, `unread` is a phrase on what happens because of this; otherwise it is None. `due` and `no_due` are as in
    `Answer`.
    """

    occurrence: str = ""
    due: datetime | None = None
    no_due: str | None = None
    unread: str | None = None


def _read_occurrence(looked: RecordContext, query: ConditionQuery, key: PrimaryKey) -> _OccurrenceFacts:
    errors: list[Exception] = []
    row = _read_columns(looked, query, key, query.spec.occurrence, errors)
    try:
        occurrence = query.occurrences.occurrence_text_of_values(row) if row else ""
    except GroundstateError as error:  # it has no text
        occurrence = ""
        errors.append(error)
    due, no_due, comes = None, None, True
    timing = query.timing
    if timing is not None:
        before = len(errors)
        base = _read_columns(looked, query, key, [timing.base_time], errors)
        try:
            due = timing.due_time_for(base[0]) if base else None
        except OutsideCalendarError as error:
            errors.append(error)
        if len(errors) > before:
            no_due, comes = _describe_unusable_due(looked, query, timing, key)
    if not errors or not comes:  # no worker loads a record that is not due, so its other errors do not matter
        return _OccurrenceFacts(occurrence, due, no_due)
    where = unreadable_columns.describe_unreadable_columns(looked.connection, query, key)
    unread = f"it fails, since its record cannot be read: {type(errors[0]).__name__}: {errors[0]}{where}"
    return _OccurrenceFacts(occurrence, due, no_due, unread)


def _read_columns(
    looked: RecordContext, query: ConditionQuery, key: PrimaryKey, columns: Sequence[Any], errors: list[Exception]
) -> tuple[Any, ...]:
    """Return the values of these columns of the record. If a value cannot be loaded, append the error to `errors` and return ()."""
    if not columns:
        return ()
    try:
        row = looked.connection.execute(select(*columns).where(query.keys.has_key_among([key]))).first()
    except Exception as error:
        if not db_errors.is_conversion_error(error):
            raise
        errors.append(error)
        return ()
    return () if row is None else tuple(row)


def _describe_unusable_due(looked: RecordContext, query: ConditionQuery, timing: Timing, key: PrimaryKey) -> tuple[str, bool]:
    """The value of the due column is not a time. Return a pair: a phrase that describes the value, and whether the database treats the
    record as due.
    """
    held, comes = looked.connection.execute(select(timing.base_time_as_text, timing.is_due).where(query.keys.has_key_among([key]))).one()
    never = not comes and not timing.may_hold_non_times
    when = "never" if never else "at a time that nobody can tell"
    return f"{when}, since {timing.column_for_people} holds {held!r}", bool(comes)


def _earlier_record_in_order(looked: RecordContext, query: ConditionQuery, key: PrimaryKey) -> list[WaitsFor]:
    """Return a list with one WaitsFor for the record that must be carried out before this record (`in_order`), or an empty list."""
    before = in_order.record_before_in_line(looked.connection, query, key)
    return [] if before is None else [WaitsFor(query.spec.name, query.keys.record_text(before), IN_LINE)]


def _describe_blocking_attempt(looked: RecordContext, one: Attempt) -> WaitsFor:
    said = describe_attempt(looked.queries, looked.alive, one)
    return WaitsFor(one.reaction, one.record, said.standing, one.why)


def _describe_blocker(looked: RecordContext, spec: ReactionSpec, blocker: Attempt) -> WaitsFor:
    """Return a WaitsFor that describes the attempt `blocker`, which keeps the reaction from its record.

    If the blocking attempt is of the same reaction, the WaitsFor also has the attempt's occurrence and, if the attempt is held, the command
    that settles it.
    """
    said = _describe_blocking_attempt(looked, blocker)
    if (blocker.app, blocker.reaction) != (spec.app, spec.name):
        return said
    person = attempt_text.describe_settling_by_person(blocker) if blocker.state is State.HELD else None
    return replace(said, round=blocker.occurrence, person=person)


def _describe_held_children(looked: RecordContext, query: ConditionQuery, key: PrimaryKey) -> list[WaitsFor]:
    """Return one WaitsFor for each held attempt on a child record. An `every_child` clause of this reaction waits for these (hazard 63)."""
    found: list[WaitsFor] = []
    for every in query.spec.children:
        names = [name for name, other in looked.queries.items() if issubclass(every.child, other.spec.record)]
        mapper: Any = inspect(every.child)
        columns = [mapper.get_property_by_column(column).class_attribute for column in mapper.primary_key]
        parents = [column == value for column, value in zip(every.parent_key, key, strict=True)]
        children = looked.connection.execute(select(*columns).where(*parents).limit(CHILDREN_MOST)).all()
        texts = [keys.record_text(tuple(row)) for row in children]
        statement = attempts.select_attempts(
            table.c.app == query.spec.app, table.c.state == State.HELD.value, table.c.reaction.in_(names), table.c.record.in_(texts)
        )
        found += [
            _describe_blocking_attempt(looked, one)
            for one in fetch_attempts_despite_corrupt_rows(looked.database, looked.connection, statement)
        ]
    return found
