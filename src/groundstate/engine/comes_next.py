"""What comes next of one reaction on one record, and what keeps it from being carried out now, in words. SELECTs alone.

First what the record, its own attempt and others' say; then whether the reaction is carried out here at all; then what keeps workers from
it (hindrance.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy import Connection, literal, select
from sqlalchemy.exc import DBAPIError

from groundstate.engine import hindrance, living, locked, odd_times, put_back, raising, registry, trouble
from groundstate.engine.asked_apart import asked_apart, why_unasked
from groundstate.engine.hindrance import Workers
from groundstate.engine.pending import open_of
from groundstate.engine.question import PrimaryKey, Question, held_under
from groundstate.rules.attempt import Attempt, State, of_other_code
from groundstate.store.port import Database

IN_LINE = "before it in line"
NOW = "carried out now"
TOO_LATE = "too late: its expired handler answers"
CALLING = ("again", "same_key", "ask")  # policies under which a doubt needs its outside


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
class Looked:
    """What everything that is said of a record is made from. standing: the attempts on it."""

    database: Database
    connection: Connection
    questions: Mapping[str, Question]
    alive: living.WhoLives
    workers: Workers
    known: Mapping[str, registry.Known]
    standing: Sequence[Attempt]
    now: datetime
    waiting: frozenset[str]
    unseen: Mapping[str, str]
    lacking: Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """One reaction on the record, and what is known of it. key: None where the record is not there."""

    question: Question
    key: PrimaryKey | None
    occurrence: str
    holds: bool
    mine: Attempt | None
    waits: Sequence[WaitsFor]
    due: datetime | None
    no_due: str | None
    unread: str | None

    def late(self, now: datetime) -> Question | None:
        """The question of what is too late, once the record is: its `expired` handler answers, and no call is made. None before that."""
        due = self.question.spec.due
        return self.question.late if due is not None and self.due is not None and due.expired(self.due, now) else None


Next = tuple[str, datetime | None]


def next_of(looked: Looked, case: Case) -> Next:
    """In words, and when, where that is known."""
    name, waits = case.question.spec.name, case.waits
    if name in looked.waiting and (case.holds or case.mine is not None):
        return f"waits for a person, since the database may have been put back: {put_back.CURE}", None
    if case.mine is not None:
        return _of_attempt(looked, case, case.mine)
    if case.key is None:
        return "nothing: the record is not there, or not of its class", None
    if not case.holds:
        if waits:
            return f"nothing yet: {waits[0].reaction} on its child {waits[0].record} is held, and waits for a person", None
        return "nothing: its condition does not hold", None
    if case.unread is not None:
        return case.unread, None
    return _of_a_round(looked, case, case.key)


def _of_a_round(looked: Looked, case: Case, key: PrimaryKey) -> Next:
    """Where its condition holds, and no attempt of it stands."""
    spec = case.question.spec
    timed = None if spec.due is None else _of_its_time(looked, case, key)
    if timed is not None:
        return timed
    late = case.late(looked.now)
    waits = [one for one in case.waits if late is None or one.standing != IN_LINE]  # what is too late waits in no line
    if waits:
        return _waits_in_words(waits[0]), None
    kept = _off(looked, case.question, key)
    if kept is not None:
        return kept, None
    known = looked.known.get(spec.name)
    suspect = known is not None and known.suspect
    calls = late is None and spec.call is not None
    found = hindrance.met(looked.workers, late or case.question, key, case.occurrence, calls=calls, suspect=suspect)
    if late is not None:
        return (TOO_LATE, None) if found is None else (found.of(TOO_LATE), found.at)
    return (NOW, None) if found is None else (found.instead, found.at)


def _of_its_time(looked: Looked, case: Case, key: PrimaryKey) -> Next | None:
    """Where its due time is all that is to be said."""
    if case.due is None and case.no_due is None:
        return "nothing: its due time is NULL", None
    odd = odd_times.of_record(looked.connection, case.question, key)
    if odd is not None:
        return f"{odd}: {odd_times.CURE}", None
    if case.due is None:
        return f"nothing: due {case.no_due}", None
    if case.due <= looked.now:
        return None
    kept = _off(looked, case.question, key, loud=True)
    return ("carried out when it is due", case.due) if kept is None else (kept, None)


def _of_attempt(looked: Looked, case: Case, mine: Attempt) -> Next:
    """What becomes of the reaction's own attempt of this round."""
    if mine.state is State.FAILED and not case.holds:
        return "its condition does not hold any more, so its failed attempt is deleted", None
    said, terms = open_of(looked.questions, looked.alive, mine), case.question.spec.terms
    if mine.state is State.BEGUN and looked.alive.get(mine.worker) is not False:
        by = None if case.key is None else locked.who_has(looked.connection, case.question, case.key)
        return said.next if by is None else f"{said.next}; {by}, and what its call says is written down after that", said.next_at
    if mine.state is State.HELD:
        return said.next, said.next_at
    kept = None if case.key is None else _off(looked, case.question, case.key)
    if kept is not None:
        return f"{said.next}, but not now: {kept}", said.next_at
    if mine.next_at is not None and mine.next_at > looked.now:
        return said.next, said.next_at
    if mine.state is State.FAILED and case.waits:
        return f"{said.next}, but it {_waits_in_words(case.waits[0])}", said.next_at
    late = case.late(looked.now) if mine.state is State.FAILED else None
    asks = terms.policy is not None and terms.policy.kind in CALLING and of_other_code(mine, terms) is None
    calls = asks if mine.state is not State.FAILED else late is None
    found = hindrance.met(looked.workers, late or case.question, case.key, case.occurrence, calls=calls, attempt=mine)
    return (said.next, said.next_at) if found is None else (found.of(said.next), found.at or said.next_at)


def _off(looked: Looked, question: Question, key: PrimaryKey, *, loud: bool = False) -> str | None:
    """Why this reaction is not carried out here at all: it lacks something, or is not accepted. loud: the latter by a person alone."""
    if question.spec.name in looked.lacking:
        return f"not carried out: {looked.lacking[question.spec.name]}"
    known = looked.known.get(question.spec.name)
    if known is not None and (known.is_as(question) or _is_both(looked, question, key, known)):
        return _asked_of_none(looked, question)
    unasked: list[str] = []
    seen = {} if known is None else {known.name: known}
    _, found = registry.newcomers(looked.connection, [question], seen, lambda _question, _error, words: unasked.append(words))
    if unasked:
        return f"not carried out: {unasked[0]}"
    if found:
        return found[0].words
    return None if loud else "carried out as soon as a worker starts with this code"


def _asked_of_none(looked: Looked, question: Question) -> str | None:
    """Why its condition is asked of no record at all, though it can be asked of this one."""
    errors: list[DBAPIError] = []
    count = partial(registry.count, looked.connection, question, question.ready)
    if asked_apart(looked.connection, count, errors.append) is not None:
        return None
    if not trouble.of_a_value(errors[0]):
        return f"not carried out: {why_unasked(errors[0])}"
    found = raising.search(looked.connection, question)
    return f"not carried out: {found.in_words(question)}" if found.too_many else None


def _waits_in_words(one: WaitsFor) -> str:
    if one.standing == IN_LINE:
        return f"waits for its turn behind record {one.record}"
    if one.person is not None:
        return f"waits until a person settles its own held attempt of round {one.round}: {one.person}"
    if one.round is not None:
        return f"waits for its own call of round {one.round}, which is {one.standing}"
    return f"waits for {one.reaction}, which is {one.standing}"


def _is_both(looked: Looked, question: Question, key: PrimaryKey, known: registry.Known) -> bool:
    """Whether the accepted condition holds for the record as well, so that it is carried out by this code and by that."""
    if not known.says_something or known.has_other_records(question):
        return False
    statement = select(literal(1)).select_from(question.entity).where(question.among([key]), held_under(known.condition))
    try:
        with looked.connection.begin_nested():
            return looked.connection.execute(statement).first() is not None
    except DBAPIError as error:
        if trouble.transient(error):
            raise
        return False  # that SQL is not valid here any more
