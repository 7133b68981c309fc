"""Every reaction on one record: which clauses hold, what stands, what it waits for, what comes next. SELECTs alone; prints nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, inspect, literal, select
from sqlalchemy.exc import DataError, DBAPIError

from groundstate.engine import (
    attempts,
    broken_cells,
    fitting,
    hindrance,
    key_columns,
    line,
    living,
    locked,
    put_back,
    registry,
    trouble,
    wording,
)
from groundstate.engine.asked_apart import asked_apart, cannot_be_asked, why_unasked
from groundstate.engine.comes_next import IN_LINE, Case, Looked, WaitsFor, next_of
from groundstate.engine.hindrance import Workers
from groundstate.engine.illegible import attempts_as_they_stand
from groundstate.engine.pending import Open, open_of
from groundstate.engine.question import PrimaryKey, Question
from groundstate.engine.schedules import Scheduled, scheduled
from groundstate.engine.timing import Timing
from groundstate.rules import blocking
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.due import InNoCalendar
from groundstate.rules.reaction import ReactionSpec
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database, Lives
from groundstate.store.tables import attempt as table
from groundstate.values import keys
from groundstate.values.errors import NotFound

CHILDREN_MOST = 1_000
TICKS_MOST = 100


@dataclass(frozen=True)
class Clause:
    """One clause of a condition on this record. holds: None where it is NULL, which does not hold either."""

    sql: str
    holds: bool | None


@dataclass(frozen=True)
class Answer:
    """One reaction on the record."""

    reaction: str
    clauses: tuple[Clause, ...]
    holds: bool
    occurrence: str
    attempts: tuple[Open, ...]  # its own, of every occurrence
    waits_for: tuple[WaitsFor, ...]
    next: str
    next_at: datetime | None
    due: datetime | None = None  # of one with a due time: when this round becomes due; None where that is NULL
    timed: bool = False  # whether it has a due time
    no_due: str | None = None  # where something stands there from which no due time is made: what, and whether it is due never
    goes_round: str | None = None  # where reactions undo each other on the record, and this is one of them: what becomes of it


@dataclass(frozen=True)
class Why:
    """All reactions on one record. exists: False where the record was deleted and attempts of it are left."""

    now: datetime
    table: str
    record: str
    exists: bool
    worker_lives: bool | None
    answers: tuple[Answer, ...]
    others: tuple[Open, ...]  # attempts on it of reactions that this code does not declare, or of other apps


def why(app: str, database: Database, questions: Sequence[Question], lives: Lives, table_name: str, record: str) -> Why:
    """What there is to say of one record.

    table_name: a table or a class that has reactions. record: its primary key, as its text or, of several columns, a JSON array.

    Raises:
        NotFound: no reaction is on such a table, or there is neither such a record nor an attempt of it, or its keys lead to none.
        ValueError: this is no key of that table.
    """
    on_it = _on(questions, table_name)
    first = on_it[0]
    with database.reading(wait=locked.SEEN_WITHIN) as connection:
        now = connection.execute(select(database.now())).scalar_one()
        unseen = locked.unseen(connection, on_it)
        lacks = fitting.lacking(connection, [question for question in on_it if question.spec.name not in unseen])
        unseen |= fitting.unaskable(connection, on_it, lacks)
        refused = None if first.spec.name in unseen else key_columns.refused(connection, first)
        if refused is not None:
            raise NotFound(str(refused))
        key, text = _key_and_text(connection, first, app, record)
        seen = living.lives_of(database, connection, lives)
        statement = attempts.rows(table.c.record == text).order_by(table.c.reaction, table.c.occurrence)
        standing = attempts_as_they_stand(database, connection, statement)
        by_name = {question.spec.name: question for question in questions}
        tables = {name for question in on_it for name in question.spellings}
        mine = [one for one in standing if _concerns(one, app, by_name, tables)]
        looked = Looked(
            database,
            connection,
            by_name,
            living.WhoLives(seen),
            Workers(app, connection, lives, living.of_app(app, seen), questions, now),
            registry.known(connection, app),
            mine,
            now,
            put_back.waiting(database, connection, app).among(question.spec for question in questions),
            unseen,
            living.lacked(living.of_app(app, seen)) | lacks,
        )
        exists = key is not None and _may_be_there(looked, first, key)
        if not exists and not mine:
            raise NotFound(f"{first.spec.table_name} has no record {text!r}, and no attempt of it is left")
        answers = tuple(_answer(looked, question, key) for question in on_it)
        names = {question.spec.name for question in on_it}
        others = tuple(open_of(by_name, looked.alive, one) for one in mine if one.app != app or one.reaction not in names)
        return Why(now, first.spec.table_name, text, exists, looked.workers.lives, answers, others)


@dataclass(frozen=True)
class WhySchedule:
    """One schedule, and the ticks of it that failed or are held."""

    now: datetime
    schedule: Scheduled
    ticks: tuple[Open, ...]


def why_schedule(app: str, database: Database, spec: ScheduleSpec, lives: Lives, tick: str | None) -> WhySchedule:
    """What there is to say of a schedule. tick: of this one alone, by its time.

    Raises:
        NotFound: no attempt stands of that tick.
    """
    with database.reading() as connection:
        now = connection.execute(select(database.now())).scalar_one()
        alive = living.WhoLives(living.lives_of(database, connection, lives))
        statement = attempts.rows(table.c.app == app, table.c.reaction == spec.name).order_by(table.c.occurrence).limit(TICKS_MOST)
        if tick is not None:
            statement = statement.where(table.c.occurrence == keys.tick_text(tick))
        standing = attempts_as_they_stand(database, connection, statement)
        if tick is not None and not standing:
            raise NotFound(f"no attempt of schedule {spec.name} stands of a tick {tick!r}: it was carried out, left out, or is to come")
        ticks = tuple(open_of({spec.name: spec}, alive, one) for one in standing)
        return WhySchedule(now, scheduled(app, database, connection, [spec], None)[0], ticks)


def _on(questions: Sequence[Question], named: str) -> list[Question]:
    """The reactions on a table, or on a class, of this name."""
    found = [
        question
        for question in questions
        if named in {one.fullname for one in question.mapper.tables}
        or named.casefold() in (question.spec.record.__name__.casefold(), question.spec.table_name.casefold())
    ]
    if not found:
        there = ", ".join(sorted({question.spec.table_name for question in questions})) or "none"
        raise NotFound(f"no reaction is on a table {named!r}; tables with reactions are: {there}")
    return found


def _key_and_text(connection: Connection, question: Question, app: str, record: str) -> tuple[PrimaryKey | None, str]:
    """The record's key, and the text by which attempts name it. The key is None where it finds no record, and an attempt has that text."""
    columns = ", ".join(column.name for column in question.mapper.primary_key)
    stands = select(literal(1)).where(table.c.app == app, table.c.reaction == question.spec.name, table.c.record == record)
    try:
        key = question.key_from_text(record)
    except ValueError as error:
        if connection.execute(stands).first() is not None:
            return None, record
        raise ValueError(f"{record!r} is no key of {question.spec.table_name} ({columns}): {error}") from None
    text = question.record_text(key)
    if text != record and connection.execute(stands).first() is not None:
        return None, record
    return key, text


def _may_be_there(looked: Looked, question: Question, key: PrimaryKey) -> bool:
    """True where its table is locked as well, so that nobody sees it."""
    try:
        with looked.connection.begin_nested():
            return _is_there(looked.connection, question, key)
    except DBAPIError as error:
        if not trouble.locked(error):
            raise
        return True


def _is_there(connection: Connection, question: Question, key: PrimaryKey) -> bool:
    """Whether the row is there, be it of another class of the same table."""
    base: Any = question.mapper.base_mapper.local_table
    where = [column == value for column, value in zip(question.mapper.base_mapper.primary_key, key, strict=True)]
    where += [] if question.seen is None else [question.seen]
    try:
        return connection.execute(select(*base.primary_key.columns).where(*where)).first() is not None
    except (OverflowError, DataError) as error:  # a number that no such column can hold
        raise ValueError(f"{question.record_text(key)!r} is no key of {question.spec.table_name}: {error.__cause__ or error}") from None


def _concerns(one: Attempt, app: str, questions: Mapping[str, Question], tables: set[str]) -> bool:
    """Whether an attempt on a record of this key is on a record of these tables."""
    if one.app == app and one.reaction in questions:
        return questions[one.reaction].spec.table_name in tables
    return one.blocks in tables


# ---- one reaction ----------------------------------------------------------------------------------------------------------------
def _answer(looked: Looked, question: Question, key: PrimaryKey | None) -> Answer:
    name = question.spec.name
    if name in looked.unseen:
        return _unasked(looked, question, f"not carried out: {looked.lacking[name]}" if name in looked.lacking else looked.unseen[name])
    if key is None:
        first = next((open_of(looked.questions, looked.alive, one) for one in _own(looked, question)), None)
        words, at = ("nothing: no record is found by such a key", None) if first is None else (first.next, first.next_at)
        return replace(_unasked(looked, question, words), next_at=at)
    errors: list[DBAPIError] = []
    found = asked_apart(looked.connection, partial(_asked, looked, question, key), errors.append)
    return _of_one_row(looked, question, errors[0]) if found is None else found


def _own(looked: Looked, question: Question) -> list[Attempt]:
    return [one for one in looked.standing if one.app == question.spec.app and one.reaction == question.spec.name]


def _of_one_row(looked: Looked, question: Question, error: DBAPIError) -> Answer:
    """Where its condition cannot be asked of the record. Of a value in it, what comes next is said by the attempt that stands on it."""
    if not trouble.of_a_value(error):
        return _unasked(looked, question, f"not carried out: {why_unasked(error)}")
    first = next((open_of(looked.questions, looked.alive, one) for one in _own(looked, question)), None)
    words = f"{cannot_be_asked(error)}; " + ("it fails once a worker meets it, until the record is mended" if first is None else first.next)
    return replace(_unasked(looked, question, words), next_at=None if first is None else first.next_at)


def _unasked(looked: Looked, question: Question, words: str) -> Answer:
    """Of one whose condition cannot be asked."""
    opens = tuple(open_of(looked.questions, looked.alive, one) for one in _own(looked, question))
    return Answer(question.spec.name, (), False, "", opens, (), words, None)


def _asked(looked: Looked, question: Question, key: PrimaryKey) -> Answer:
    spec, own = question.spec, _own(looked, question)
    opens = tuple(open_of(looked.questions, looked.alive, one) for one in own)
    truths: list[Any] = [clause.label(f"clause_{number}") for number, clause in enumerate(spec.clauses)]
    row = looked.connection.execute(select(literal(1), *truths).select_from(question.entity).where(question.among([key]))).first()
    clauses: tuple[Clause, ...] = ()
    round_ = _Round()
    if row is not None:
        round_ = _round_of(looked, question, key)
        said = [None if value is None else bool(value) for value in row[1:]]
        clauses = tuple(Clause(question.shown(clause), holds) for clause, holds in zip(spec.clauses, said, strict=True))
    occurrence = round_.occurrence
    mine = blocking.own(spec.app, spec.name, occurrence, own, spec.occurrence_columns)
    on_table = [one for one in looked.standing if one in own or one.blocks in question.spellings]
    blocker = blocking.blocker(spec.app, spec.name, occurrence, on_table, **spec.kept_out_by)
    holds = row is not None and all(clause.holds for clause in clauses)
    waits = [_kept_out_by(looked, spec, blocker)] if blocker is not None and holds else []
    if row is not None and not holds:
        waits += _held_children(looked, question, key)
    if holds and not waits and spec.in_order is not None:
        waits += _before_it(looked, question, key)
    there = None if row is None else key
    case = Case(
        question, there, occurrence, holds=holds, mine=mine, waits=waits, due=round_.due, no_due=round_.no_due, unread=round_.unread
    )
    words, at = next_of(looked, case)
    ring = hindrance.ring_of(looked.workers, question, question.record_text(key), occurrence)
    goes_round = None if ring is None else hindrance.in_words(ring, spec.name)
    return Answer(
        spec.name, clauses, holds, occurrence, opens, tuple(waits), words, at,
        due=round_.due, timed=question.timing is not None, no_due=round_.no_due, goes_round=goes_round,
    )  # fmt: skip


@dataclass(frozen=True)
class _Round:
    """What a record says of its round. unread: what becomes of it, in words, where it cannot be read; likewise `Answer.no_due`."""

    occurrence: str = ""
    due: datetime | None = None
    no_due: str | None = None
    unread: str | None = None


def _round_of(looked: Looked, question: Question, key: PrimaryKey) -> _Round:
    errors: list[Exception] = []
    row = _read(looked, question, key, question.spec.occurrence, errors)
    occurrence = question.round_text(row) if row else ""
    due, no_due, comes = None, None, True
    timing = question.timing
    if timing is not None:
        before = len(errors)
        base = _read(looked, question, key, [timing.read], errors)
        try:
            due = timing.due_of(base[0]) if base else None
        except InNoCalendar as error:
            errors.append(error)
        if len(errors) > before:
            no_due, comes = _no_due(looked, question, timing, key)
    if not errors or not comes:  # of what never becomes due nothing else is read either
        return _Round(occurrence, due, no_due)
    where = broken_cells.unreadable_columns(looked.connection, question, key)
    unread = f"it fails, since its record cannot be read: {type(errors[0]).__name__}: {errors[0]}{where}"
    return _Round(occurrence, due, no_due, unread)


def _read(looked: Looked, question: Question, key: PrimaryKey, columns: Sequence[Any], errors: list[Exception]) -> tuple[Any, ...]:
    """These of the record; empty where one of them is no value, of which `errors` tells then."""
    if not columns:
        return ()
    try:
        row = looked.connection.execute(select(*columns).where(question.among([key]))).first()
    except Exception as error:
        if not trouble.unreadable(error):
            raise
        errors.append(error)
        return ()
    return () if row is None else tuple(row)


def _no_due(looked: Looked, question: Question, timing: Timing, key: PrimaryKey) -> tuple[str, bool]:
    """What stands there in place of a due time, and whether the database takes it for one that has come."""
    held, comes = looked.connection.execute(select(timing.written, timing.come).where(question.among([key]))).one()
    never = not comes and not timing.may_hold_anything
    when = "never" if never else "at a time that nobody can tell"
    return f"{when}, since {timing.column} holds {held!r}", bool(comes)


def _before_it(looked: Looked, question: Question, key: PrimaryKey) -> list[WaitsFor]:
    """Who is before it in its line."""
    before = line.who_is_before(looked.connection, question, key)
    return [] if before is None else [WaitsFor(question.spec.name, question.record_text(before), IN_LINE)]


def _waits_for(looked: Looked, one: Attempt) -> WaitsFor:
    said = open_of(looked.questions, looked.alive, one)
    return WaitsFor(one.reaction, one.record, said.standing, one.why)


def _kept_out_by(looked: Looked, spec: ReactionSpec, blocker: Attempt) -> WaitsFor:
    """What the attempt that keeps the reaction from its record is; of its own attempt also which round, and how it is settled."""
    said = _waits_for(looked, blocker)
    if (blocker.app, blocker.reaction) != (spec.app, spec.name):
        return said
    person = wording.settled_by_a_person(blocker) if blocker.state is State.HELD else None
    return replace(said, round=blocker.occurrence, person=person)


def _held_children(looked: Looked, question: Question, key: PrimaryKey) -> list[WaitsFor]:
    """Held attempts on children that an `every_child` clause waits for (hazard 63)."""
    found: list[WaitsFor] = []
    for every in question.spec.children:
        names = [name for name, other in looked.questions.items() if issubclass(every.child, other.spec.record)]
        mapper: Any = inspect(every.child)
        columns = [mapper.get_property_by_column(column).class_attribute for column in mapper.primary_key]
        parents = [column == value for column, value in zip(every.parent_key, key, strict=True)]
        children = looked.connection.execute(select(*columns).where(*parents).limit(CHILDREN_MOST)).all()
        texts = [keys.record_text(tuple(row)) for row in children]
        statement = attempts.rows(
            table.c.app == question.spec.app, table.c.state == State.HELD.value, table.c.reaction.in_(names), table.c.record.in_(texts)
        )
        found += [_waits_for(looked, one) for one in attempts_as_they_stand(looked.database, looked.connection, statement)]
    return found
