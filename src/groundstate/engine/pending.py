"""What is left to do, told by SELECTs alone: to be carried out, in doubt, failed, held, waiting. Runs no handler, writes nothing.

Works with SELECT grants alone and on a standby. Each count is bounded, so that a table of any size is answered soon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select
from sqlalchemy.exc import DBAPIError

from groundstate.engine import (
    attempts,
    fitting,
    left_by_others,
    line,
    living,
    locked,
    odd_times,
    put_back,
    raising,
    registry,
    states,
    trouble,
    upcoming,
    wording,
)
from groundstate.engine.illegible import attempts_as_they_stand
from groundstate.engine.left_by_others import LeftByOther
from groundstate.engine.living import LifeSeen
from groundstate.engine.locked import Locked
from groundstate.engine.question import Place, PrimaryKey, Question
from groundstate.engine.registry import BASELINE, COUNTED_MAX, Newcomer
from groundstate.engine.schedules import Scheduled, scheduled
from groundstate.engine.states import Unanswered
from groundstate.rules import blocking
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database, Lives
from groundstate.store.tables import attempt as table
from groundstate.values.keys import NoValue

SHOWN = 20  # attempts of each kind that are listed; all are counted
OLDEST = 3
BLOCKERS_MOST = 1_000
IN_LINE_SHOWN = 10


@dataclass(frozen=True)
class ToDo:
    """Rows of one reaction that are to be carried out: those with an attempt, and those that wait for another's, not among them."""

    reaction: str
    table: str
    condition: str
    rows: int
    at_least: bool
    oldest: tuple[str, ...]  # the lowest keys, or those that are due the longest
    starts: bool  # False: it is new or changed, and a person must accept it first
    overdue_since: datetime | None = None  # when the first of these rows became due
    too_late: int = 0  # rows that were not carried out within `valid_for`: its `expired` handler answers those
    upcoming: int = 0  # rows that are still to become due
    next_due: datetime | None = None  # when the next of them does
    odd_time: str | None = None  # a stored due time that does not sort as one, in words


@dataclass(frozen=True)
class Open:
    """One attempt, in words and times."""

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
    """A record that one reaction would take, and that another's call keeps it from, or its own call of another round.

    round: of its own attempt: of which occurrence that is. person: what a person types to settle it, where it is held.
    """

    reaction: str
    record: str
    waits_for: str
    standing: str
    round: str | None = None
    person: str | None = None


@dataclass(frozen=True)
class Pending:
    """The whole report on one store."""

    now: datetime
    at: datetime | None  # the moment for which it was asked what is due; None: now
    standby: bool
    to_do: tuple[ToDo, ...]
    counts: Mapping[str, int]  # attempts by standing, all of them
    in_doubt: tuple[Open, ...]
    failed: tuple[Open, ...]
    held: tuple[Open, ...]
    waits: tuple[Waits, ...]
    locked: tuple[Locked, ...]
    unseen: Mapping[str, str]  # reactions of which nothing can be seen, since somebody has locked a table, or one is missing: why, in words
    lacks: Mapping[str, str]  # reactions that no worker carries out here (`fitting.lacking`, `living.lacked`): why, with the cure
    newcomers: tuple[Newcomer, ...]
    suspects: tuple[str, ...]
    waiting: tuple[str, ...]  # not carried out before a person has said whether the database was put back
    undeclared: Mapping[str, int]  # reactions with open attempts that this code does not declare
    baseline: int
    others: tuple[LeftByOther, ...]  # open attempts of apps of which no worker lives
    lives: tuple[LifeSeen, ...]
    careful: bool
    last_end: str
    in_flight: str
    lock: str
    schedules: tuple[Scheduled, ...] = ()
    states: tuple[Unanswered, ...] | None = None
    gone: tuple[str, ...] = ()  # reactions and schedules that were accepted here, and that this code does not declare
    left: bool = field(default=False)  # whether anything is left to do, for anybody


@dataclass(frozen=True)
class Looked:
    """What each part of the report is made from."""

    app: str
    database: Database
    connection: Connection
    questions: Mapping[str, Question]
    alive: living.WhoLives
    schedules: Mapping[str, ScheduleSpec] = field(default_factory=dict)
    unseen: Mapping[str, str] = field(default_factory=dict)


def pending(  # noqa: PLR0913  # a store of an app, with what it declares, and how much is told
    app: str,
    database: Database,
    questions: Sequence[Question],
    lives: Lives,
    *,
    schedules: Sequence[ScheduleSpec] = (),
    rested: Sequence[tuple[type, ColumnElement[bool]]] | None = None,
    shown: int = SHOWN,
    then: datetime | None = None,
) -> Pending:
    """The report. rested: what the app declared to rest; None leaves the states out. shown: attempts listed of each kind.

    then: the moment that the questions were made for: what would be due then is told.
    """
    with database.reading(wait=locked.SEEN_WITHIN) as connection:
        now = connection.execute(select(database.now())).scalar_one()
        seen = living.lives_of(database, connection, lives)
        ours = living.of_app(app, seen)
        alive = living.WhoLives(seen)
        declared, unseen = {q.spec.name: q for q in questions}, locked.unseen(connection, questions)
        lacks = fitting.lacking(connection, [question for question in questions if question.spec.name not in unseen])
        unseen |= fitting.unaskable(connection, questions, lacks)
        looked = Looked(app, database, connection, declared, alive, {spec.name: spec for spec in schedules}, unseen)
        waiting = put_back.waiting(database, connection, app).among(question.spec for question in questions)
        others = left_by_others.left_by_others(connection, app, questions, left_by_others.alive_among(seen))
        questions = [question for question in questions if question.spec.name not in unseen]
        ticks = tuple(scheduled(app, database, connection, schedules, then))
        known = registry.known(connection, app)

        def unasked(question: Question, _error: DBAPIError, words: str) -> None:
            unseen[question.spec.name] = words

        found = [raising.asked_of_the_others(connection, one, partial(_to_do, looked, one), partial(unasked, one)) for one in questions]
        questions = [question for question in questions if question.spec.name not in unseen]
        _, loud = registry.newcomers(connection, questions, known, unasked)
        off = {*(one.name for one in loud), *waiting}
        to_do = tuple(replace(one, starts=one.reaction not in off) for one in found if one is not None)
        counts, baseline = _counts(looked)
        names = list(looked.questions)
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
            locked=tuple(locked.locked(connection, questions)),
            unseen=unseen,
            lacks={name: why for name, why in living.lacked(ours).items() if name in names} | lacks,
            newcomers=tuple(loud),
            suspects=tuple(sorted(name for name, one in known.items() if one.suspect and name not in looked.schedules)),
            waiting=tuple(sorted(waiting)),
            undeclared=dict(registry.removed(connection, app, names, list(looked.schedules))),
            gone=registry.gone(known, {*names, *looked.schedules}),
            baseline=baseline,
            others=others,
            lives=tuple(seen),
            careful=living.is_careful(ours, now),
            last_end=living.last_end_in_words(ours),
            in_flight=_in_flight(counts, ours, others),
            lock=living.lock_in_words(database),
            schedules=ticks,
            states=None if rested is None else tuple(states.unanswered(connection, questions, rested)),
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
def _to_do(looked: Looked, question: Question) -> ToDo:
    rows, oldest = ready(looked, question)
    spec = question.spec
    texts = tuple(question.record_shown(question.key_in(place)) for place in oldest)
    to_do = ToDo(spec.name, spec.table_name, question.shown_text, rows, rows >= COUNTED_MAX, texts, starts=True)
    return to_do if question.timing is None else _timed(looked, question, to_do)


def ready(looked: Looked, question: Question, most: int = COUNTED_MAX) -> tuple[int, list[Place]]:
    """How many rows are to be carried out, of which at most so many are counted, and the first of them."""
    if question.unattempted is None:
        return _counted_here(looked, question, most)
    some = question.places_after(None, most, crowded=True).order_by(None).subquery()
    rows = int(looked.connection.execute(select(func.count()).select_from(some)).scalar_one())
    first = question.places_after(None, OLDEST, crowded=True)
    return rows, [tuple(row) for row in looked.connection.execute(first)] if rows else []


def _timed(looked: Looked, question: Question, to_do: ToDo) -> ToDo:
    next_ = upcoming.timers(looked.connection, [question], 1)
    return replace(
        to_do,
        overdue_since=upcoming.overdue_since(looked.connection, question) if to_do.rows else None,
        too_late=ready(looked, question.late)[0] if question.late is not None else 0,
        upcoming=upcoming.count(looked.connection, question) if next_ else 0,
        next_due=next_[0].due if next_ else None,
        odd_time=odd_times.first(looked.connection, question),
    )


def _counted_here(looked: Looked, question: Question, most: int) -> tuple[int, list[Place]]:
    """Where the key's text cannot be said in SQL: keys are read, and those with attempts are left out here."""
    spec = question.spec
    mine = and_(table.c.app == spec.app, table.c.reaction == spec.name)
    stands = mine if spec.fact else or_(mine, and_(table.c.blocks.in_(question.spellings), _blocks()))
    taken = set(looked.connection.execute(select(table.c.record).where(stands).limit(COUNTED_MAX)).scalars())
    found = [tuple(row) for row in looked.connection.execute(question.places_after(None, most, crowded=False))]
    free = [place for place in found if question.record_shown(question.key_in(place)) not in taken] if taken else found
    return len(free), free[:OLDEST]


def _blocks() -> ColumnElement[bool]:
    return or_(table.c.state == State.BEGUN.value, table.c.unsure)


# ---- attempts ------------------------------------------------------------------------------------------------------------------
def _counts(looked: Looked) -> tuple[dict[str, int], int]:
    """All attempts of the app by standing, and how many of them are a baseline."""
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
    question = looked.questions.get(reaction)
    if state not in (State.BEGUN, State.DOUBT):
        return str(state)
    if state is State.DOUBT:
        return wording.IN_DOUBT
    has_call = reaction not in looked.schedules and (question is None or question.spec.call is not None)
    return wording.begun(alive=looked.alive.get(worker), has_call=has_call)


def _opens(looked: Looked, where: ColumnElement[bool], order: Sequence[ColumnElement[Any]], shown: int) -> tuple[Open, ...]:
    statement: Select[Any] = attempts.rows(table.c.app == looked.app, where).order_by(*order, table.c.reaction, table.c.record).limit(shown)
    found = attempts_as_they_stand(looked.database, looked.connection, statement)
    return tuple(open_of({**looked.questions, **looked.schedules}, looked.alive, one) for one in found)


def open_of(declared: Mapping[str, Question | ScheduleSpec], alive: living.WhoLives, attempt: Attempt) -> Open:
    """One attempt in words and times."""
    found = declared.get(attempt.reaction)
    question = found if isinstance(found, Question) else None
    terms = question.spec.terms if question else found.terms if isinstance(found, ScheduleSpec) else None
    lives, known_in_s = alive.get(attempt.worker), alive.known_in_s.get(attempt.worker)
    has_call = found is None or (question is not None and question.spec.call is not None)
    doubtful = attempt.state in (State.BEGUN, State.DOUBT)
    return Open(
        reaction=attempt.reaction,
        record=attempt.record,
        occurrence=attempt.occurrence,
        standing=wording.standing(attempt, alive=lives, has_call=has_call, known_in_s=known_in_s),
        next=wording.comes_next(attempt, terms, alive=lives, known_in_s=known_in_s),
        next_at=attempt.next_at,
        settled_from=wording.settled_from(attempt, terms) if doubtful else None,
        key_kept_until=wording.key_kept_until(attempt, terms) if doubtful else None,
        since=attempt.since,
        tries=wording.tries(attempt, terms),
        error=attempt.error,
        why=attempt.why,
        worker=attempt.worker,
        has_outcome=attempt.outcome is not None,
    )


# ---- who waits for whom --------------------------------------------------------------------------------------------------------
def _waits(looked: Looked, shown: int) -> tuple[Waits, ...]:
    own_held = and_(table.c.app == looked.app, table.c.state == State.HELD.value, table.c.outcome.is_not(None))
    statement = attempts.rows(or_(_blocks(), own_held)).order_by(table.c.since).limit(BLOCKERS_MOST)
    standing: dict[str, list[Attempt]] = {}
    for one in attempts_as_they_stand(looked.database, looked.connection, statement):
        standing.setdefault(one.record, []).append(one)
    found: list[Waits] = []
    for name, question in looked.questions.items():
        if name not in looked.unseen:
            found += _waits_of(looked, question, standing)
            found += _waits_in_line(looked, question)
    return tuple(found[:shown])


def _waits_in_line(looked: Looked, question: Question) -> list[Waits]:
    """Of the first records that are to be carried out, those that wait for their turn."""
    if question.spec.in_order is None:
        return []
    rows = looked.connection.execute(question.places_after(None, IN_LINE_SHOWN, crowded=True))
    some = {(key := question.key_in(tuple(row))): _who_is_before(looked, question, key) for row in rows}
    name, text = question.spec.name, question.record_text
    return [
        Waits(name, text(key), f"its turn behind record {text(one)}", "before it in line") for key, one in some.items() if one is not None
    ]


def _who_is_before(looked: Looked, question: Question, key: PrimaryKey) -> PrimaryKey | None:
    """None as well where the key of one of them cannot be read, of which the worker tells."""
    if any(isinstance(value, NoValue) for value in key):
        return None
    try:
        return line.who_is_before(looked.connection, question, key)
    except Exception as error:
        if not trouble.unloadable(error):
            raise
        return None


def _waits_of(looked: Looked, question: Question, standing: Mapping[str, list[Attempt]]) -> list[Waits]:
    spec = question.spec
    wanted = {}
    for text, some in standing.items():
        if any(one.blocks in question.spellings or (one.app, one.reaction) == (spec.app, spec.name) for one in some):
            key = question.key_of_text(text)
            if key is not None:
                wanted[text] = key
    if not wanted:
        return []
    columns = (*question.key_attributes, *spec.occurrence)
    size = len(question.key_attributes)
    found = []
    for row in _ready_among(looked, question, columns, list(wanted.values())):
        text, occurrence = question.record_text(tuple(row[:size])), question.round_text(tuple(row[size:]))
        mine = [one for one in standing.get(text, ()) if one.blocks in (None, *question.spellings)]
        if blocking.own(spec.app, spec.name, occurrence, mine, spec.occurrence_columns) is not None:
            continue
        other = blocking.blocker(spec.app, spec.name, occurrence, mine, **spec.kept_out_by)
        if other is not None:
            found.append(_waits_for(looked, question, text, other))
    return found


def _ready_among(looked: Looked, question: Question, columns: Sequence[Any], wanted: Sequence[PrimaryKey]) -> list[Any]:
    """These columns of those that are ready; without those in which something stands that is no value, which wait for that first."""
    try:
        return list(looked.connection.execute(select(*columns).where(question.ready, question.among(wanted))))
    except Exception as error:
        if not trouble.unreadable(error):
            raise
    return [] if len(wanted) == 1 else [row for key in wanted for row in _ready_among(looked, question, columns, [key])]


def _waits_for(looked: Looked, question: Question, text: str, other: Attempt) -> Waits:
    spec, standing = question.spec, _standing_of(looked, other.reaction, other.state, other.worker)
    if (other.app, other.reaction) != (spec.app, spec.name):
        return Waits(spec.name, text, other.reaction, standing)
    person = wording.settled_by_a_person(other) if other.state is State.HELD else None
    return Waits(spec.name, text, f"its own round {other.occurrence}", standing, other.occurrence, person)


def _in_flight(counts: Mapping[str, int], seen: Sequence[LifeSeen], others: Sequence[LeftByOther]) -> str:
    """The sentence on what is in flight, and by which proof."""
    keeps = "no transport here keeps anything, so no queue and no log holds work"
    alive = [one for one in seen if one.alive]
    unseen = [one for one in seen if one.alive is None]
    awaited = [one.known_in_s for one in seen if one.known_in_s is not None]
    if awaited:
        return f"What is in flight is in workers that are alive, and in those that may be: {wording.known_in(max(awaited))}; {keeps}."
    if unseen:
        return f"Nothing of ours is in flight but what a living worker has begun: {keeps}; from here no lock tells who is alive."
    if alive:
        flying = counts.get(wording.IN_THE_AIR, 0)
        calls = wording.counted(flying, "call is", "calls are")
        return f"{calls} in the air, in {len(alive)} living {'worker' if len(alive) == 1 else 'workers'}; beside that {keeps}."
    beside = [f"what app {one.app!r} left in doubt" for one in others if one.ours and one.in_doubt]
    what = f"Nothing of ours is in flight, beside {' and '.join(beside)}" if beside else "Nothing of ours is in flight"
    return f"{what}: {keeps}, and no worker lives, by its lock."
