"""Says what happens next with one reaction on one record, and what keeps it from being carried out now. It runs only SELECTs.

It looks first at the record, its own attempt and the attempts of others, then at whether this reaction is carried out here at all, and then
at what keeps workers from it (obstacles.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy import Connection, literal, select
from sqlalchemy.exc import DBAPIError

from groundstate.engine.operate import living_workers, obstacles
from groundstate.engine.operate.obstacles import Workers
from groundstate.engine.operate.pending import open_of
from groundstate.engine.rows import data_restore_check, reaction_registry
from groundstate.engine.sql import db_errors, lock_waits, odd_due_times, raising_rows
from groundstate.engine.sql.condition_query import ConditionQuery, PrimaryKey, held_under
from groundstate.engine.sql.savepoint_query import ask_in_savepoint, why_unasked
from groundstate.rules.attempt import Attempt, State, of_other_code
from groundstate.store.port import Database

IN_LINE = "before it in line"
NOW = "carried out now"
TOO_LATE = "too late: its expired handler answers"
CALLING = ("repeat", "same_key", "lookup")  # policies that need the external service to settle an attempt in doubt


@dataclass(frozen=True)
class WaitsFor:
    """What keeps a reaction from a record: a call of another reaction or of another occurrence, or a held attempt on a child record.

    `round` is the occurrence, if it is the reaction's own attempt. `person` is the command by which a person settles that attempt, if held.
    """

    reaction: str
    record: str
    standing: str
    why: str | None = None
    round: str | None = None
    person: str | None = None


@dataclass(frozen=True)
class Looked:
    """The data from which everything on one record is explained. `standing` has the attempts on the record."""

    database: Database
    connection: Connection
    queries: Mapping[str, ConditionQuery]
    alive: living_workers.WhoLives
    workers: Workers
    known: Mapping[str, reaction_registry.Known]
    standing: Sequence[Attempt]
    now: datetime
    waiting: frozenset[str]
    unseen: Mapping[str, str]
    lacking: Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """One reaction on the record, with what is known about it. `key` is None if the record does not exist."""

    query: ConditionQuery
    key: PrimaryKey | None
    occurrence: str
    holds: bool
    mine: Attempt | None
    waits: Sequence[WaitsFor]
    due: datetime | None
    no_due: str | None
    unread: str | None

    def late(self, now: datetime) -> ConditionQuery | None:
        """Return the condition query for records that are too late, if this record is: its `expired` handler answers, and no call is made.

        Returns None if the record is not too late.
        """
        due = self.query.spec.due
        return self.query.late if due is not None and self.due is not None and due.expired(self.due, now) else None


Next = tuple[str, datetime | None]


def next_of(looked: Looked, case: Case) -> Next:
    """Return a phrase that says what happens next, and the time at which it does, if that is known."""
    name, waits = case.query.spec.name, case.waits
    if name in looked.waiting and (case.holds or case.mine is not None):
        return f"waits for a person, since the database may have been put back: {data_restore_check.CURE}", None
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
    return _next_without_attempt(looked, case, case.key)


def _next_without_attempt(looked: Looked, case: Case, key: PrimaryKey) -> Next:
    """Return what happens next if the condition holds and no attempt exists for the occurrence."""
    spec = case.query.spec
    timed = None if spec.due is None else _of_its_time(looked, case, key)
    if timed is not None:
        return timed
    late = case.late(looked.now)
    waits = [one for one in case.waits if late is None or one.standing != IN_LINE]  # a record that is too late does not wait for its order
    if waits:
        return _waits_in_words(waits[0]), None
    kept = _reason_not_carried_out(looked, case.query, key)
    if kept is not None:
        return kept, None
    known = looked.known.get(spec.name)
    suspect = known is not None and known.suspect
    calls = late is None and spec.call is not None
    found = obstacles.find_hindrance(looked.workers, late or case.query, key, case.occurrence, calls=calls, suspect=suspect)
    if late is not None:
        return (TOO_LATE, None) if found is None else (found.of(TOO_LATE), found.at)
    return (NOW, None) if found is None else (found.instead, found.at)


def _of_its_time(looked: Looked, case: Case, key: PrimaryKey) -> Next | None:
    """Return what happens next if the due time decides it; None if the record is due."""
    if case.due is None and case.no_due is None:
        return "nothing: its due time is NULL", None
    odd = odd_due_times.of_record(looked.connection, case.query, key)
    if odd is not None:
        return f"{odd}: {odd_due_times.CURE}", None
    if case.due is None:
        return f"nothing: due {case.no_due}", None
    if case.due <= looked.now:
        return None
    kept = _reason_not_carried_out(looked, case.query, key, loud=True)
    return ("carried out when it is due", case.due) if kept is None else (kept, None)


def _of_attempt(looked: Looked, case: Case, mine: Attempt) -> Next:
    """Return what happens next to the reaction's own attempt for this occurrence."""
    if mine.state is State.FAILED and not case.holds:
        return "its condition does not hold any more, so its failed attempt is deleted", None
    said, terms = open_of(looked.queries, looked.alive, mine), case.query.spec.terms
    if mine.state is State.BEGUN and looked.alive.get(mine.worker) is not False:
        by = None if case.key is None else lock_waits.who_has(looked.connection, case.query, case.key)
        return said.next if by is None else f"{said.next}; {by}, and what its call says is written down after that", said.next_at
    if mine.state is State.HELD:
        return said.next, said.next_at
    kept = None if case.key is None else _reason_not_carried_out(looked, case.query, case.key)
    if kept is not None:
        return f"{said.next}, but not now: {kept}", said.next_at
    if mine.next_at is not None and mine.next_at > looked.now:
        return said.next, said.next_at
    if mine.state is State.FAILED and case.waits:
        return f"{said.next}, but it {_waits_in_words(case.waits[0])}", said.next_at
    late = case.late(looked.now) if mine.state is State.FAILED else None
    asks = terms.policy is not None and terms.policy.kind in CALLING and of_other_code(mine, terms) is None
    calls = asks if mine.state is not State.FAILED else late is None
    found = obstacles.find_hindrance(looked.workers, late or case.query, case.key, case.occurrence, calls=calls, attempt=mine)
    return (said.next, said.next_at) if found is None else (found.of(said.next), found.at or said.next_at)


def _reason_not_carried_out(looked: Looked, query: ConditionQuery, key: PrimaryKey, *, loud: bool = False) -> str | None:
    """Return why this database's workers do not carry out the reaction at all: it lacks something, or is not accepted. None if they do.

    With `loud`, a declaration that the next worker accepts by itself at its start is no reason, but one that a person must accept is.
    """
    if query.spec.name in looked.lacking:
        return f"not carried out: {looked.lacking[query.spec.name]}"
    known = looked.known.get(query.spec.name)
    if known is not None and (known.is_as(query) or _is_both(looked, query, key, known)):
        return _asked_of_none(looked, query)
    unasked: list[str] = []
    seen = {} if known is None else {known.name: known}
    _, found = reaction_registry.newcomers(looked.connection, [query], seen, lambda _query, _error, words: unasked.append(words))
    if unasked:
        return f"not carried out: {unasked[0]}"
    if found:
        return found[0].words
    return None if loud else "carried out as soon as a worker starts with this code"


def _asked_of_none(looked: Looked, query: ConditionQuery) -> str | None:
    """Return why the condition is queried for no record at all, although it can be queried for this one; None if that is not so."""
    errors: list[Exception] = []
    count = partial(reaction_registry.count, looked.connection, query, query.ready)
    if ask_in_savepoint(looked.connection, count, errors.append) is not None:
        return None
    if not db_errors.of_a_value(errors[0]):
        return f"not carried out: {why_unasked(errors[0])}"
    found = raising_rows.search(looked.connection, query)
    return f"not carried out: {found.in_words(query)}" if found.too_many else None


def _waits_in_words(one: WaitsFor) -> str:
    if one.standing == IN_LINE:
        return f"waits for its turn behind record {one.record}"
    if one.person is not None:
        return f"waits until a person settles its own held attempt of round {one.round}: {one.person}"
    if one.round is not None:
        return f"waits for its own call of round {one.round}, which is {one.standing}"
    return f"waits for {one.reaction}, which is {one.standing}"


def _is_both(looked: Looked, query: ConditionQuery, key: PrimaryKey, known: reaction_registry.Known) -> bool:
    """Whether the accepted condition holds for the record too, so that code with either condition carries it out."""
    if not known.says_something or known.has_other_records(query):
        return False
    statement = select(literal(1)).select_from(query.entity).where(query.among([key]), held_under(known.condition))
    try:
        with looked.connection.begin_nested():
            return looked.connection.execute(statement).first() is not None
    except DBAPIError as error:
        if db_errors.transient(error):
            raise
        return False  # the SQL of the accepted condition is not valid here any more
