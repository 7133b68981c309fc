"""Explains every reaction on one record: which clauses hold, which attempts exist, what the reaction waits for, and what comes next.

Used by `groundstate why` and the app. It runs only SELECTs and prints nothing.
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
from groundstate.engine.operate.next_step import IN_LINE, Case, Looked, WaitsFor, next_of
from groundstate.engine.operate.obstacles import Workers
from groundstate.engine.operate.pending import Open, open_of
from groundstate.engine.rows import attempt_text, attempts, data_restore_check, reaction_registry
from groundstate.engine.rows.corrupt_rows import attempts_as_they_stand
from groundstate.engine.schedule.report import Scheduled, scheduled
from groundstate.engine.sql import db_errors, key_columns, lock_waits, mapping_check, unreadable_columns
from groundstate.engine.sql.condition_query import ConditionQuery, PrimaryKey
from groundstate.engine.sql.due_expression import Timing
from groundstate.engine.sql.savepoint_query import ask_in_savepoint, cannot_be_asked, why_unasked
from groundstate.rules import blocking
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.due import InNoCalendar
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database, Liveness
from groundstate.store.tables import attempt as table
from groundstate.values import keys
from groundstate.values.errors import GroundstateError, NotFoundError

CHILDREN_MOST = 1_000  # child records of one `every_child` clause whose attempts are read
TICKS_MOST = 100  # ticks of one schedule that are listed


@dataclass(frozen=True)
class Clause:
    """One clause of a condition on this record. `holds` is None if the clause is NULL, in which case it does not hold either."""

    sql: str
    holds: bool | None


@dataclass(frozen=True)
class Answer:
    """The explanation of one reaction on the record."""

    reaction: str
    clauses: tuple[Clause, ...]
    holds: bool
    occurrence: str
    attempts: tuple[Open, ...]  # attempts of this reaction on the record, for every occurrence
    waits_for: tuple[WaitsFor, ...]
    next: str
    next_at: datetime | None
    due: datetime | None = None  # when this occurrence becomes due; None if its due time is NULL, or it has none
    timed: bool = False  # whether the reaction has a due time (`due=`)
    no_due: str | None = None  # set if the due column has a value that is no time: that value, and whether it is never due
    goes_round: str | None = None  # set if this reaction and others undo each other on the record: what happens to it


@dataclass(frozen=True)
class Why:
    """The explanation of all reactions on one record. `exists` is False if the record was deleted and only attempts on it are left."""

    now: datetime
    table: str
    record: str
    exists: bool
    worker_lives: bool | None
    answers: tuple[Answer, ...]
    others: tuple[Open, ...]  # attempts on the record that belong to other apps, or to reactions that this code does not declare


def why(app: str, database: Database, queries: Sequence[ConditionQuery], liveness: Liveness, table_name: str, record: str) -> Why:
    """Return the explanation of one record of the table or class `table_name`.

    `record` is its primary key as text, or as a JSON array if it has several columns. `queries` are those of all reactions of the app.

    Raises:
        NotFoundError: No reaction is on such a table; or neither the record nor an attempt on it exists; or keys of the table lead to no
            record.
        ValueError: `record` is not a valid key of that table.
    """
    on_it = _on(queries, table_name)
    first = on_it[0]
    with database.reading(wait=lock_waits.SEEN_WITHIN) as connection:
        now = connection.execute(select(database.now())).scalar_one()
        unseen = lock_waits.unseen(connection, on_it)
        lacks = mapping_check.lacking(connection, [query for query in on_it if query.spec.name not in unseen])
        unseen |= mapping_check.unaskable(connection, on_it, lacks)
        refused = None if first.spec.name in unseen else key_columns.refused(connection, first)
        if refused is not None:
            raise NotFoundError(str(refused))
        key, text = _key_and_text(connection, first, app, record)
        seen = living_workers.workers_of(database, connection, liveness)
        statement = attempts.select_attempts(table.c.record == text).order_by(table.c.reaction, table.c.occurrence)
        standing = attempts_as_they_stand(database, connection, statement)
        by_name = {query.spec.name: query for query in queries}
        tables = {name for query in on_it for name in query.spellings}
        mine = [one for one in standing if _concerns(one, app, by_name, tables)]
        looked = Looked(
            database,
            connection,
            by_name,
            living_workers.WhoLives(seen),
            Workers(app, connection, liveness, living_workers.of_app(app, seen), queries, now),
            reaction_registry.known(connection, app),
            mine,
            now,
            data_restore_check.waiting(database, connection, app).among(query.spec for query in queries),
            unseen,
            living_workers.lacked(living_workers.of_app(app, seen)) | lacks,
        )
        exists = key is not None and _may_be_there(looked, first, key)
        if not exists and not mine:
            raise NotFoundError(f"{first.spec.table_name} has no record {text!r}, and no attempt of it is left")
        answers = tuple(_answer(looked, query, key) for query in on_it)
        names = {query.spec.name for query in on_it}
        others = tuple(open_of(by_name, looked.alive, one) for one in mine if one.app != app or one.reaction not in names)
        return Why(now, first.spec.table_name, text, exists, looked.workers.any_lives, answers, others)


@dataclass(frozen=True)
class WhySchedule:
    """The explanation of one schedule, with its ticks that failed or are held."""

    now: datetime
    schedule: Scheduled
    ticks: tuple[Open, ...]


def why_schedule(app: str, database: Database, spec: ScheduleSpec, liveness: Liveness, tick: str | None) -> WhySchedule:
    """Return the explanation of one schedule. `tick` limits it to one tick, named by its time.

    Raises:
        NotFoundError: No attempt of that tick exists.
    """
    with database.reading() as connection:
        now = connection.execute(select(database.now())).scalar_one()
        alive = living_workers.WhoLives(living_workers.workers_of(database, connection, liveness))
        statement = (
            attempts.select_attempts(table.c.app == app, table.c.reaction == spec.name).order_by(table.c.occurrence).limit(TICKS_MOST)
        )
        if tick is not None:
            statement = statement.where(table.c.occurrence == keys.tick_text(tick))
        standing = attempts_as_they_stand(database, connection, statement)
        if tick is not None and not standing:
            raise NotFoundError(
                f"no attempt of schedule {spec.name} stands of a tick {tick!r}: it was carried out, left out, or is to come"
            )
        ticks = tuple(open_of({spec.name: spec}, alive, one) for one in standing)
        return WhySchedule(now, scheduled(app, database, connection, [spec], None)[0], ticks)


def _on(queries: Sequence[ConditionQuery], named: str) -> list[ConditionQuery]:
    """Return the condition queries of the reactions on the table or class `named`. Raises NotFoundError if there are none."""
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
    """Return the record's key, and the text by which attempts name the record.

    The key is None if the given text is not the canonical text of a key, but an attempt names its record by it.
    """
    columns = ", ".join(column.name for column in query.mapper.primary_key)
    stands = select(literal(1)).where(table.c.app == app, table.c.reaction == query.spec.name, table.c.record == record)
    try:
        key = query.key_from_text(record)
    except ValueError as error:
        if connection.execute(stands).first() is not None:
            return None, record
        raise ValueError(f"{record!r} is no key of {query.spec.table_name} ({columns}): {error}") from None
    text = query.record_text(key)
    if text != record and connection.execute(stands).first() is not None:
        return None, record
    return key, text


def _may_be_there(looked: Looked, query: ConditionQuery, key: PrimaryKey) -> bool:
    """Whether the record exists. Also True if its table is locked, since its rows cannot be seen then."""
    try:
        with looked.connection.begin_nested():
            return _is_there(looked.connection, query, key)
    except DBAPIError as error:
        if not db_errors.locked(error):
            raise
        return True


def _is_there(connection: Connection, query: ConditionQuery, key: PrimaryKey) -> bool:
    """Whether the row exists, also if it is of another class of the same table."""
    base: Any = query.mapper.base_mapper.local_table
    where = [column == value for column, value in zip(query.mapper.base_mapper.primary_key, key, strict=True)]
    where += [] if query.seen is None else [query.seen]
    try:
        return connection.execute(select(*base.primary_key.columns).where(*where)).first() is not None
    except (OverflowError, DataError) as error:  # the number is too large for the column
        raise ValueError(f"{query.record_text(key)!r} is no key of {query.spec.table_name}: {error.__cause__ or error}") from None


def _concerns(one: Attempt, app: str, queries: Mapping[str, ConditionQuery], tables: set[str]) -> bool:
    """Whether an attempt on a record with this key is on a record of one of these tables, not of another table with the same key."""
    if one.app == app and one.reaction in queries:
        return queries[one.reaction].spec.table_name in tables
    return one.blocks in tables


# ---- one reaction ----------------------------------------------------------------------------------------------------------------
def _answer(looked: Looked, query: ConditionQuery, key: PrimaryKey | None) -> Answer:
    name = query.spec.name
    if name in looked.unseen:
        return _unasked(looked, query, f"not carried out: {looked.lacking[name]}" if name in looked.lacking else looked.unseen[name])
    if key is None:
        first = next((open_of(looked.queries, looked.alive, one) for one in _own(looked, query)), None)
        words, at = ("nothing: no record is found by such a key", None) if first is None else (first.next, first.next_at)
        return replace(_unasked(looked, query, words), next_at=at)
    errors: list[Exception] = []
    found = ask_in_savepoint(looked.connection, partial(_asked, looked, query, key), errors.append)
    return _of_one_row(looked, query, errors[0]) if found is None else found


def _own(looked: Looked, query: ConditionQuery) -> list[Attempt]:
    return [one for one in looked.standing if one.app == query.spec.app and one.reaction == query.spec.name]


def _of_one_row(looked: Looked, query: ConditionQuery, error: Exception) -> Answer:
    """Return the answer for a reaction whose condition raises an error for this record.

    If a value in the record is the reason, the record's existing attempt says what comes next.
    """
    if not db_errors.of_a_value(error):
        return _unasked(looked, query, f"not carried out: {why_unasked(error)}")
    first = next((open_of(looked.queries, looked.alive, one) for one in _own(looked, query)), None)
    words = f"{cannot_be_asked(error)}; " + ("it fails once a worker meets it, until the record is mended" if first is None else first.next)
    if first is not None and any(one.state is State.BEGUN for one in _own(looked, query)):
        words += ", and what its call says waits in memory until the record is mended"
    return replace(_unasked(looked, query, words), next_at=None if first is None else first.next_at)


def _unasked(looked: Looked, query: ConditionQuery, words: str) -> Answer:
    """Return the answer for a reaction whose condition cannot be queried."""
    opens = tuple(open_of(looked.queries, looked.alive, one) for one in _own(looked, query))
    return Answer(query.spec.name, (), False, "", opens, (), words, None)


def _asked(looked: Looked, query: ConditionQuery, key: PrimaryKey) -> Answer:
    spec, own = query.spec, _own(looked, query)
    opens = tuple(open_of(looked.queries, looked.alive, one) for one in own)
    truths: list[Any] = [clause.label(f"clause_{number}") for number, clause in enumerate(spec.clauses)]
    row = looked.connection.execute(select(literal(1), *truths).select_from(query.entity).where(query.among([key]))).first()
    clauses: tuple[Clause, ...] = ()
    round_ = _Round()
    if row is not None:
        round_ = _round_of(looked, query, key)
        said = [None if value is None else bool(value) for value in row[1:]]
        clauses = tuple(Clause(query.shown(clause), holds) for clause, holds in zip(spec.clauses, said, strict=True))
    occurrence = round_.occurrence
    mine = blocking.own(spec.app, spec.name, occurrence, own, spec.occurrence_columns)
    on_table = [one for one in looked.standing if one in own or one.blocks in query.spellings]
    blocker = blocking.blocker(spec.app, spec.name, occurrence, on_table, **spec.kept_out_by)
    holds = row is not None and all(clause.holds for clause in clauses)
    waits = [_kept_out_by(looked, spec, blocker)] if blocker is not None and holds else []
    if row is not None and not holds:
        waits += _held_children(looked, query, key)
    if holds and not waits and spec.in_order is not None:
        waits += _before_it(looked, query, key)
    there = None if row is None else key
    case = Case(query, there, occurrence, holds=holds, mine=mine, waits=waits, due=round_.due, no_due=round_.no_due, unread=round_.unread)
    words, at = next_of(looked, case)
    ring = obstacles.ring_of(looked.workers, query, query.record_text(key), occurrence)
    goes_round = None if ring is None else obstacles.describe_ring(ring, spec.name)
    return Answer(
        spec.name, clauses, holds, occurrence, opens, tuple(waits), words, at,
        due=round_.due, timed=query.timing is not None, no_due=round_.no_due, goes_round=goes_round,
    )  # fmt: skip


@dataclass(frozen=True)
class _Round:
    """What the columns of a record say about its occurrence.

    `unread` is a message on what will happen, if a column cannot be read. `no_due` is as in `Answer`.
    """

    occurrence: str = ""
    due: datetime | None = None
    no_due: str | None = None
    unread: str | None = None


def _round_of(looked: Looked, query: ConditionQuery, key: PrimaryKey) -> _Round:
    errors: list[Exception] = []
    row = _read(looked, query, key, query.spec.occurrence, errors)
    try:
        occurrence = query.round_text(row) if row else ""
    except GroundstateError as error:  # it has no text
        occurrence = ""
        errors.append(error)
    due, no_due, comes = None, None, True
    timing = query.timing
    if timing is not None:
        before = len(errors)
        base = _read(looked, query, key, [timing.read], errors)
        try:
            due = timing.due_of(base[0]) if base else None
        except InNoCalendar as error:
            errors.append(error)
        if len(errors) > before:
            no_due, comes = _no_due(looked, query, timing, key)
    if not errors or not comes:  # a record that never becomes due is not read further, so its other errors do not matter
        return _Round(occurrence, due, no_due)
    where = unreadable_columns.unreadable_columns(looked.connection, query, key)
    unread = f"it fails, since its record cannot be read: {type(errors[0]).__name__}: {errors[0]}{where}"
    return _Round(occurrence, due, no_due, unread)


def _read(looked: Looked, query: ConditionQuery, key: PrimaryKey, columns: Sequence[Any], errors: list[Exception]) -> tuple[Any, ...]:
    """Return the values of these columns of the record. Empty if a value cannot be loaded; the error is then appended to `errors`."""
    if not columns:
        return ()
    try:
        row = looked.connection.execute(select(*columns).where(query.among([key]))).first()
    except Exception as error:
        if not db_errors.unreadable(error):
            raise
        errors.append(error)
        return ()
    return () if row is None else tuple(row)


def _no_due(looked: Looked, query: ConditionQuery, timing: Timing, key: PrimaryKey) -> tuple[str, bool]:
    """Return a phrase on the value that is in the due column instead of a time, and whether the database compares it as past."""
    held, comes = looked.connection.execute(select(timing.written, timing.come).where(query.among([key]))).one()
    never = not comes and not timing.may_hold_anything
    when = "never" if never else "at a time that nobody can tell"
    return f"{when}, since {timing.column} holds {held!r}", bool(comes)


def _before_it(looked: Looked, query: ConditionQuery, key: PrimaryKey) -> list[WaitsFor]:
    """Return the record that must go before this one by `in_order`, as a list of one WaitsFor or an empty list."""
    before = in_order.who_is_before(looked.connection, query, key)
    return [] if before is None else [WaitsFor(query.spec.name, query.record_text(before), IN_LINE)]


def _waits_for(looked: Looked, one: Attempt) -> WaitsFor:
    said = open_of(looked.queries, looked.alive, one)
    return WaitsFor(one.reaction, one.record, said.standing, one.why)


def _kept_out_by(looked: Looked, spec: ReactionSpec, blocker: Attempt) -> WaitsFor:
    """Return the attempt that keeps the reaction from its record, as a WaitsFor.

    If it is an attempt of the same reaction, the WaitsFor also has its occurrence and, if it is held, the command that settles it.
    """
    said = _waits_for(looked, blocker)
    if (blocker.app, blocker.reaction) != (spec.app, spec.name):
        return said
    person = attempt_text.settled_by_a_person(blocker) if blocker.state is State.HELD else None
    return replace(said, round=blocker.occurrence, person=person)


def _held_children(looked: Looked, query: ConditionQuery, key: PrimaryKey) -> list[WaitsFor]:
    """Return a WaitsFor for each held attempt on a child record that an `every_child` clause waits for (hazard 63)."""
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
        found += [_waits_for(looked, one) for one in attempts_as_they_stand(looked.database, looked.connection, statement)]
    return found
