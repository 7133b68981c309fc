"""Explains what one reaction does next on one record, and what keeps the reaction from being carried out now. It runs only SELECTs.

It considers first the record, the reaction's own attempt and the attempts of other reactions, then whether workers carry out the reaction
at all, and then what keeps workers from carrying it out now (obstacles.py).
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
from groundstate.engine.operate.pending import describe_attempt
from groundstate.engine.rows import data_restore_check, reaction_registry
from groundstate.engine.sql import db_errors, lock_waits, odd_due_times, raising_rows
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.condition_texts import condition_from_text
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.sql.savepoint_query import query_in_savepoint, why_condition_not_evaluable
from groundstate.rules.attempt import Attempt, State, reason_code_cannot_settle
from groundstate.store.port import Database

IN_LINE = "before it in line"
NOW = "carried out now"
TOO_LATE = "too late: its expired handler answers"
CALLING = ("repeat", "same_key", "lookup")  # policies by which an attempt in doubt is settled with a call to the external service


@dataclass(frozen=True)
class WaitsFor:
    """What keeps a reaction from being carried out for a record.

    This is an attempt of another reaction, the reaction's own attempt of another occurrence, a held attempt on a child record, or a record
    that has to be carried out earlier (`in_order`). If it is the reaction's own attempt, `round` is the attempt's occurrence; otherwise
    `round` is None. If the reaction's own attempt is held, `person` is the command that settles the attempt.
    """

    reaction: str
    record: str
    standing: str
    why: str | None = None
    round: str | None = None
    person: str | None = None


@dataclass(frozen=True)
class RecordContext:
    """The data from which each reaction on one record is explained.

    `standing` has the attempts on the record. `waiting` names the reactions that wait because the database may have been restored. `unseen`
    maps a reaction to the reason why its rows cannot be queried. `lacking` maps a reaction to the reason why no worker carries it out here.
    """

    database: Database
    connection: Connection
    queries: Mapping[str, ConditionQuery]
    alive: living_workers.LivenessById
    workers: Workers
    known: Mapping[str, reaction_registry.Known]
    standing: Sequence[Attempt]
    now: datetime
    waiting: frozenset[str]
    unseen: Mapping[str, str]
    lacking: Mapping[str, str]


@dataclass(frozen=True)
class ReactionCase:
    """The state of one reaction on the record.

    `key` is None if the record does not exist. `mine` is the reaction's own attempt, or None. If the value of the due column is no time,
    `no_due` is a phrase that says so; otherwise it is None. If some columns cannot be read, `unread` is a phrase that says so; otherwise it
    is None.
    """

    query: ConditionQuery
    key: PrimaryKey | None
    occurrence: str
    holds: bool
    mine: Attempt | None
    waits: Sequence[WaitsFor]
    due: datetime | None
    no_due: str | None
    unread: str | None

    def query_if_expired(self, now: datetime) -> ConditionQuery | None:
        """Return the query for expired records if this record has expired by the time `now`; otherwise None.

        For an expired record, the `expired` handler runs instead of the reaction.
        """
        due = self.query.spec.due
        return self.query.query_for_expired if due is not None and self.due is not None and due.is_expired(self.due, now) else None


Next = tuple[str, datetime | None]


def describe_next_step(looked: RecordContext, case: ReactionCase) -> Next:
    """Return a pair: a phrase that says what happens next, and the time at which it happens, or None if the time is not known."""
    name, waits = case.query.spec.name, case.waits
    if name in looked.waiting and (case.holds or case.mine is not None):
        return f"waits for a person, since the database may have been put back: {data_restore_check.CURE}", None
    if case.mine is not None:
        return _next_step_of_attempt(looked, case, case.mine)
    if case.key is None:
        return "nothing: the record is not there, or not of its class", None
    if not case.holds:
        if waits:
            return f"nothing yet: {waits[0].reaction} on its child {waits[0].record} is held, and waits for a person", None
        return "nothing: its condition does not hold", None
    if case.unread is not None:
        return case.unread, None
    return _next_step_without_attempt(looked, case, case.key)


def _next_step_without_attempt(looked: RecordContext, case: ReactionCase, key: PrimaryKey) -> Next:
    """Return the pair (phrase, time or None) on what happens next if the condition holds and the reaction has no attempt."""
    spec = case.query.spec
    timed = None if spec.due is None else _next_step_by_due_time(looked, case, key)
    if timed is not None:
        return timed
    late = case.query_if_expired(looked.now)
    waits = [one for one in case.waits if late is None or one.standing != IN_LINE]  # no order applies to expired records
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
        return (TOO_LATE, None) if found is None else (found.phrase_after(TOO_LATE), found.at)
    return (NOW, None) if found is None else (found.phrase_instead, found.at)


def _next_step_by_due_time(looked: RecordContext, case: ReactionCase, key: PrimaryKey) -> Next | None:
    """Return the pair (phrase, time or None) on what happens next if the record is not due; None if it is due."""
    if case.due is None and case.no_due is None:
        return "nothing: its due time is NULL", None
    odd = odd_due_times.odd_due_time_of_record(looked.connection, case.query, key)
    if odd is not None:
        return f"{odd}: {odd_due_times.CURE}", None
    if case.due is None:
        return f"nothing: due {case.no_due}", None
    if case.due <= looked.now:
        return None
    kept = _reason_not_carried_out(looked, case.query, key, loud=True)
    return ("carried out when it is due", case.due) if kept is None else (kept, None)


def _next_step_of_attempt(looked: RecordContext, case: ReactionCase, mine: Attempt) -> Next:
    """Return the pair (phrase, time or None) on what happens next to the reaction's own attempt."""
    if mine.state is State.FAILED and not case.holds:
        return "its condition does not hold any more, so its failed attempt is deleted", None
    said, terms = describe_attempt(looked.queries, looked.alive, mine), case.query.spec.terms
    if mine.state is State.BEGUN and looked.alive.get(mine.worker) is not False:
        by = None if case.key is None else lock_waits.describe_lock_on_record(looked.connection, case.query, case.key)
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
    late = case.query_if_expired(looked.now) if mine.state is State.FAILED else None
    asks = terms.policy is not None and terms.policy.kind in CALLING and reason_code_cannot_settle(mine, terms) is None
    calls = asks if mine.state is not State.FAILED else late is None
    found = obstacles.find_hindrance(looked.workers, late or case.query, case.key, case.occurrence, calls=calls, attempt=mine)
    return (said.next, said.next_at) if found is None else (found.phrase_after(said.next), found.at or said.next_at)


def _reason_not_carried_out(looked: RecordContext, query: ConditionQuery, key: PrimaryKey, *, loud: bool = False) -> str | None:
    """Return a phrase on why workers do not carry out the reaction at all: the database lacks something, or the reaction is not accepted.
    Return None if workers carry it out.

    The reaction may only wait for the next start of a worker, which will accept it without a person. Then return a phrase that says so, or
    None if `loud` is True.
    """
    if query.spec.name in looked.lacking:
        return f"not carried out: {looked.lacking[query.spec.name]}"
    known = looked.known.get(query.spec.name)
    if known is not None and (known.is_accepted_as(query) or _has_accepted_condition(looked, query, key, known)):
        return _reason_condition_fails(looked, query)
    unasked: list[str] = []
    seen = {} if known is None else {known.name: known}
    _, found = reaction_registry.split_newcomers(looked.connection, [query], seen, lambda _query, _error, words: unasked.append(words))
    if unasked:
        return f"not carried out: {unasked[0]}"
    if found:
        return found[0].message
    return None if loud else "carried out as soon as a worker starts with this code"


def _reason_condition_fails(looked: RecordContext, query: ConditionQuery) -> str | None:
    """Return a phrase on why workers cannot query the condition over all records; None if they can."""
    errors: list[Exception] = []
    count = partial(reaction_registry.count_records, looked.connection, query, query.condition.is_ready)
    if query_in_savepoint(looked.connection, count, errors.append) is not None:
        return None
    if not db_errors.is_caused_by_value(errors[0]):
        return f"not carried out: {why_condition_not_evaluable(errors[0])}"
    found = raising_rows.search_raising_rows(looked.connection, query)
    return f"not carried out: {found.describe_culprits(query)}" if found.has_too_many else None


def _waits_in_words(one: WaitsFor) -> str:
    if one.standing == IN_LINE:
        return f"waits for its turn behind record {one.record}"
    if one.person is not None:
        return f"waits until a person settles its own held attempt of round {one.round}: {one.person}"
    if one.round is not None:
        return f"waits for its own call of round {one.round}, which is {one.standing}"
    return f"waits for {one.reaction}, which is {one.standing}"


def _has_accepted_condition(looked: RecordContext, query: ConditionQuery, key: PrimaryKey, known: reaction_registry.Known) -> bool:
    """Return whether the record matches the accepted condition too. Then workers of the old and of the new version carry it out."""
    if not known.has_condition or known.has_other_records(query):
        return False
    statement = select(literal(1)).select_from(query.entity).where(query.keys.has_key_among([key]), condition_from_text(known.condition))
    try:
        with looked.connection.begin_nested():
            return looked.connection.execute(statement).first() is not None
    except DBAPIError as error:
        if db_errors.is_no_fault_of_record(error):
            raise
        return False  # the SQL of the accepted condition is not valid here any more
