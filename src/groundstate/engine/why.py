"""Every reaction on one record: which clauses hold, what stands, what it waits for, what comes next. SELECTs alone; prints nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, inspect, select
from sqlalchemy.exc import DataError

from groundstate.engine import attempts, line, living, put_back, registry, wording
from groundstate.engine.illegible import attempts_as_they_stand
from groundstate.engine.pending import Open, open_of
from groundstate.engine.question import PrimaryKey, Question, sql_text
from groundstate.engine.schedules import Scheduled, scheduled
from groundstate.rules import blocking, rounds
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.reaction import ReactionSpec
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database, Lives
from groundstate.store.tables import attempt as table
from groundstate.values import keys
from groundstate.values.errors import NotFound

CHILDREN_MOST = 1_000
TICKS_MOST = 100
IN_LINE = "before it in line"


@dataclass(frozen=True)
class Clause:
    """One clause of a condition on this record. holds: None where it is NULL, which does not hold either."""

    sql: str
    holds: bool | None


@dataclass(frozen=True)
class WaitsFor:
    """What keeps a reaction from the record: another's call on it, its own call of another round, or a held child of it.

    round: of its own attempt: of which occurrence that is. person: what a person types to settle it, where it is held.
    """

    reaction: str
    record: str
    standing: str
    why: str | None = None
    round: str | None = None
    person: str | None = None


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


@dataclass(frozen=True)
class _Looked:
    database: Database
    connection: Connection
    questions: Mapping[str, Question]
    alive: living.WhoLives
    lives: bool | None
    known: Mapping[str, registry.Known]
    standing: Sequence[Attempt]
    now: datetime
    waiting: frozenset[str]


def why(app: str, database: Database, questions: Sequence[Question], lives: Lives, table_name: str, record: str) -> Why:
    """What there is to say of one record.

    table_name: a table or a class that has reactions. record: its primary key, as its text or, of several columns, a JSON array.

    Raises:
        NotFound: no reaction is on such a table, or there is neither such a record nor an attempt of it.
        ValueError: this is no key of that table.
    """
    on_it = _on(questions, table_name)
    first = on_it[0]
    key = _key(first, record)
    text = first.record_text(key)
    with database.reading() as connection:
        now = connection.execute(select(database.now())).scalar_one()
        seen = living.lives_of(database, connection, lives)
        statement = attempts.rows(table.c.record == text).order_by(table.c.reaction, table.c.occurrence)
        standing = attempts_as_they_stand(database, connection, statement)
        by_name = {question.spec.name: question for question in questions}
        tables = {question.spec.table_name for question in on_it}
        mine = [one for one in standing if _concerns(one, app, by_name, tables)]
        looked = _Looked(
            database,
            connection,
            by_name,
            living.WhoLives(seen),
            _any_alive(seen),
            registry.known(connection, app),
            mine,
            now,
            put_back.waiting(database, connection, app).among(question.spec for question in questions),
        )
        exists = _is_there(connection, first, key)
        if not exists and not mine:
            raise NotFound(f"{first.spec.table_name} has no record {text!r}, and no attempt of it is left")
        answers = tuple(_answer(looked, question, key) for question in on_it)
        names = {question.spec.name for question in on_it}
        others = tuple(open_of(by_name, looked.alive, one) for one in mine if one.app != app or one.reaction not in names)
        return Why(now, first.spec.table_name, text, exists, looked.lives, answers, others)


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


def _key(question: Question, record: str) -> PrimaryKey:
    columns = ", ".join(column.name for column in question.mapper.primary_key)
    try:
        return question.key_from_text(record)
    except ValueError as error:
        raise ValueError(f"{record!r} is no key of {question.spec.table_name} ({columns}): {error}") from None


def _is_there(connection: Connection, question: Question, key: PrimaryKey) -> bool:
    """Whether the row is there, be it of another class of the same table."""
    base: Any = question.mapper.base_mapper.local_table
    where = [column == value for column, value in zip(question.mapper.base_mapper.primary_key, key, strict=True)]
    try:
        return connection.execute(select(*base.primary_key.columns).where(*where)).first() is not None
    except (OverflowError, DataError) as error:  # a number that no such column can hold
        raise ValueError(f"{question.record_text(key)!r} is no key of {question.spec.table_name}: {error.__cause__ or error}") from None


def _concerns(one: Attempt, app: str, questions: Mapping[str, Question], tables: set[str]) -> bool:
    """Whether an attempt on a record of this key is on a record of these tables."""
    if one.app == app and one.reaction in questions:
        return questions[one.reaction].spec.table_name in tables
    return one.blocks in tables


def _any_alive(seen: Sequence[living.LifeSeen]) -> bool | None:
    if any(one.alive for one in seen):
        return True
    return None if any(one.alive is None for one in seen) else False


# ---- one reaction ----------------------------------------------------------------------------------------------------------------
def _answer(looked: _Looked, question: Question, key: PrimaryKey) -> Answer:
    spec = question.spec
    truths: list[Any] = [clause.label(f"clause_{number}") for number, clause in enumerate(spec.clauses)]
    timed = [] if question.timing is None else [question.timing.read]
    asked = select(*spec.occurrence, *truths, *timed).select_from(question.entity).where(question.among([key]))
    row = looked.connection.execute(asked).first()
    due = question.timing.due_of(row[-1]) if question.timing is not None and row is not None else None
    clauses: tuple[Clause, ...] = ()
    occurrence = ""
    if row is not None:
        size = len(spec.occurrence)
        occurrence = rounds.text_of(spec, tuple(row[:size]))
        said = [None if value is None else bool(value) for value in row[size : size + len(truths)]]
        clauses = tuple(Clause(sql_text(clause, looked.database), holds) for clause, holds in zip(spec.clauses, said, strict=True))
    own = [one for one in looked.standing if one.app == spec.app and one.reaction == spec.name]
    mine = blocking.own(spec.app, spec.name, occurrence, own, spec.occurrence_columns)
    on_table = [one for one in looked.standing if one in own or one.blocks == spec.table_name]
    blocker = blocking.blocker(spec.app, spec.name, occurrence, on_table, **spec.kept_out_by)
    holds = row is not None and all(clause.holds for clause in clauses)
    waits = [_kept_out_by(looked, spec, blocker)] if blocker is not None and holds else []
    if row is not None and not holds:
        waits += _held_children(looked, question, key)
    if holds and not waits and spec.in_order is not None:
        waits += _before_it(looked, question, key)
    timely = None if mine is not None or not holds else _by_its_time(looked, question, due)
    words, at = timely or _next(looked, question, row is not None, holds, mine, waits)
    opens = tuple(open_of(looked.questions, looked.alive, one) for one in own)
    return Answer(spec.name, clauses, holds, occurrence, opens, tuple(waits), words, at, due, question.timing is not None)


def _by_its_time(looked: _Looked, question: Question, due: datetime | None) -> tuple[str, datetime | None] | None:
    """What comes next by its due time alone; None where that has come."""
    if question.spec.due is None:
        return None
    if due is None:
        return "nothing: its due time is NULL", None
    if due > looked.now:
        return "carried out when it is due", due
    return ("too late: its expired handler answers", None) if question.spec.due.expired(due, looked.now) else None


def _before_it(looked: _Looked, question: Question, key: PrimaryKey) -> list[WaitsFor]:
    """Who is before it in its line."""
    before = line.who_is_before(looked.connection, question, key)
    return [] if before is None else [WaitsFor(question.spec.name, question.record_text(before), IN_LINE)]


def _waits_for(looked: _Looked, one: Attempt) -> WaitsFor:
    said = open_of(looked.questions, looked.alive, one)
    return WaitsFor(one.reaction, one.record, said.standing, one.why)


def _kept_out_by(looked: _Looked, spec: ReactionSpec, blocker: Attempt) -> WaitsFor:
    """What the attempt that keeps the reaction from its record is; of its own attempt also which round, and how it is settled."""
    said = _waits_for(looked, blocker)
    if (blocker.app, blocker.reaction) != (spec.app, spec.name):
        return said
    person = wording.settled_by_a_person(blocker) if blocker.state is State.HELD else None
    return replace(said, round=blocker.occurrence, person=person)


def _next(
    looked: _Looked, question: Question, exists: bool, holds: bool, mine: Attempt | None, waits: Sequence[WaitsFor]
) -> tuple[str, datetime | None]:
    if question.spec.name in looked.waiting and (holds or mine is not None):
        return f"waits for a person, since the database may have been put back: {put_back.CURE}", None
    if mine is not None:
        if mine.state is State.FAILED and not holds:
            return "its condition does not hold any more, so its failed attempt is deleted", None
        said = open_of(looked.questions, looked.alive, mine)
        return said.next, said.next_at
    if not exists:
        return "nothing: the record is not there, or not of its class", None
    if not holds:
        if waits:
            return f"nothing yet: {waits[0].reaction} on its child {waits[0].record} is held, and waits for a person", None
        return "nothing: its condition does not hold", None
    if waits and waits[0].standing == IN_LINE:
        return f"waits for its turn behind record {waits[0].record}", None
    if waits:
        return _waits_in_words(waits[0]), None
    known = looked.known.get(question.spec.name)
    if known is None or known.condition != question.condition_text:
        return _unaccepted(looked, question, known)
    if looked.lives:
        return "carried out now", None
    return "carried out as soon as a worker runs" if looked.lives is False else "carried out by a worker, if one lives", None


def _waits_in_words(one: WaitsFor) -> str:
    if one.person is not None:
        return f"waits until a person settles its own held attempt of round {one.round}: {one.person}"
    if one.round is not None:
        return f"waits for its own call of round {one.round}, which is {one.standing}"
    return f"waits for {one.reaction}, which is {one.standing}"


def _unaccepted(looked: _Looked, question: Question, known: registry.Known | None) -> tuple[str, datetime | None]:
    _, loud = registry.newcomers(looked.connection, [question], {} if known is None else {known.name: known})
    return (loud[0].words if loud else "carried out as soon as a worker starts with this code"), None


def _held_children(looked: _Looked, question: Question, key: PrimaryKey) -> list[WaitsFor]:
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
