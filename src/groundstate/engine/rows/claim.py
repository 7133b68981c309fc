"""Claims records: locks them, asks their condition again under the lock, and leaves out those that an attempt or a call in flight keeps
from us. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from groundstate.engine.rows import attempts
from groundstate.engine.sql import db_errors, key_columns, unreadable_columns
from groundstate.engine.sql.condition_query import ConditionQuery, Place, PrimaryKey
from groundstate.engine.sql.due_expression import Timing
from groundstate.engine.sql.safe_text import describe, user_code
from groundstate.engine.sql.savepoint_query import OF_ONE, cannot_be_asked, kept_whole
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules import blocking
from groundstate.rules.attempt import IN_VAIN, Attempt, Facts, State
from groundstate.rules.due import InNoCalendar
from groundstate.values.errors import GroundstateError
from groundstate.values.keys import NoValue


@dataclass
class Taken:
    """A record that this transaction has claimed and locked."""

    key: PrimaryKey
    text: str
    occurrence: str
    record: Any
    attempt: Attempt | None = None  # the reaction's own attempt on this occurrence, to be tried now
    due: datetime | None = None  # when the record became due; None if it has no due time


@dataclass
class Claim:
    """The records that one claim took, and how far it read."""

    taken: list[Taken] = field(default_factory=list)
    cursor: Place | None = None
    read: int = 0  # keys whose condition held, whether claimed or not
    busy: list[PrimaryKey] = field(default_factory=list)  # locked by another transaction just now
    unreadable: list[Unreadable] = field(default_factory=list)


@dataclass
class Unreadable:
    """A record that cannot be loaded, because a column holds something that the mapped class has no value for."""

    key: PrimaryKey
    text: str
    occurrence: str
    words: str
    attempt: Attempt | None = None  # the reaction's own failed attempt on it, to be tried now
    nameless: bool = False  # its key itself cannot be read, so no later try can find the record


def by_condition(query: ConditionQuery, tx: Transaction, cursor: Place | None, limit: int, *, crowded: bool) -> Claim:
    """Claim the next records that are ready, in the order of a pass over the backlog, after the cursor. With `crowded`, records with
    attempts are left out in SQL.
    """
    if not tx.database.locks_rows or query.reads_its_row_alone:
        try:
            with user_code():
                rows = tx.session.execute(query.records_after(cursor, limit, crowded=crowded)).unique().all()
        except Exception as error:
            if not db_errors.unloadable(error):
                raise
        else:
            claim = Claim(cursor=query.place_of(rows[-1]) if rows else cursor, read=len(rows))
            records, nameless = [row[0] for row in rows], list[Unreadable]()
            if query.keys_may_stand_otherwise:
                each = [_nameless(query, tx, query.key_in(tuple(row))) for row in rows]
                records = [record for record, bad in zip(records, each, strict=True) if bad is None]
                nameless = [bad for bad in each if bad is not None]
            _add_free_records_to_claim(query, tx, claim, records, nameless)
            return claim
    places = [tuple(row) for row in tx.connection.execute(query.lock(query.places_after(cursor, limit, crowded=crowded)))]
    claim = Claim(cursor=places[-1] if places else cursor, read=len(places))
    if places:
        found, nameless = _split(query, tx, [query.key_in(place) for place in places])
        records, bad = _load(query, tx, found) if found else ([], [])
        _add_free_records_to_claim(query, tx, claim, records, [*bad, *nameless])
    return claim


def by_keys(query: ConditionQuery, tx: Transaction, wanted: Sequence[PrimaryKey], *, mine: int | None = None) -> Claim:
    """Claim those of these records that are ready. `mine` is the call number of begun attempts that the caller may carry out (careful
    mode).
    """
    claim = Claim()
    wanted, nameless = _split(query, tx, wanted)
    found = list(wanted)
    if tx.database.locks_rows:
        found = [tuple(row) for row in tx.connection.execute(query.keys_given, query.given(wanted))]
        if len(found) < len(wanted):
            claim.busy = _busy(query, tx, set(wanted) - set(found))
            query.answers_for(set(wanted) - set(found) - set(claim.busy))  # their rows are gone
    if found or nameless:
        records, bad = _load(query, tx, found) if found else ([], [])
        claim.read = len(records) + len(bad)
        _add_free_records_to_claim(query, tx, claim, records, [*bad, *nameless], mine)
    return claim


def _split(query: ConditionQuery, tx: Transaction, wanted: Sequence[PrimaryKey]) -> tuple[Sequence[PrimaryKey], list[Unreadable]]:
    """Split keys into those that can be looked up, and Unreadable records for keys that are stored in a form by which the database finds no
    record.
    """
    fine: list[PrimaryKey] = []
    bad: list[Unreadable] = []
    for key in wanted:
        if not any(type(value) is NoValue for value in key):
            fine.append(key)
        elif (nameless := _nameless(query, tx, key)) is not None:
            bad.append(nameless)
        else:
            fine.append(_as_loaded(key))
    return fine, bad


def _nameless(query: ConditionQuery, tx: Transaction, key: Sequence[Any]) -> Unreadable | None:
    """Return the record as Unreadable if its key does not find it; None if it does, as under a collation that ignores case."""
    why = next((value.why for value in key if type(value) is NoValue), None)
    if why is None:
        return None
    loaded = _as_loaded(key)
    if None not in loaded and _key_of(query, tx, loaded) is not None:
        return None
    return Unreadable(tuple(key), query.record_text(tuple(key)), "", f"its key cannot be read: {why}", nameless=True)


def _as_loaded(key: Sequence[Any]) -> PrimaryKey:
    """Return the key as its column types load it, in whatever form it is stored."""
    return tuple(value.loaded if type(value) is NoValue else value for value in key)


def _load(query: ConditionQuery, tx: Transaction, found: Sequence[PrimaryKey]) -> tuple[list[Any], list[Unreadable]]:
    for children in query.children_of(found) if tx.database.locks_rows else ():
        tx.connection.execute(children)  # FOR SHARE: rows that the condition reads must not change before our commit (hazard 18)
    return readable(query, tx, found)


def readable_under_lock(query: ConditionQuery, tx: Transaction, wanted: Sequence[PrimaryKey]) -> tuple[list[Any], list[Unreadable]]:
    """Load those of these records that are ready, after locking their keys (FOR KEY SHARE), so that no other transaction can move them on
    before this one ends. Waits for records that are locked; returns what `readable` returns.
    """
    wanted, nameless = _split(query, tx, wanted)
    if not wanted:
        return [], nameless
    if tx.database.locks_rows:
        tx.connection.execute(query.keys_among(wanted).with_for_update(key_share=True))
    records, bad = readable(query, tx, wanted)
    return records, [*bad, *nameless]


def readable(query: ConditionQuery, tx: Transaction, wanted: Sequence[PrimaryKey]) -> tuple[list[Any], list[Unreadable]]:
    """Return those of these records that are ready and can be loaded, and those that cannot. A batch that fails to load is halved until the
    records that fail are found.
    """
    try:
        with _savepoint_for_raising_condition(query, tx):
            records = _records(tx, query.records_given, query.given(wanted))
    except Exception as error:
        if not (db_errors.unloadable(error) or _condition_raised_for_a_row(query, error)):
            raise
        if len(wanted) == 1:
            there = _key_of(query, tx, wanted[0])
            if there is None:
                return [], []
            if query.record_text(there) != query.record_text(wanted[0]):
                return readable(query, tx, [there])  # a hint gave the key as another type, which the driver converted
            return [], [_unreadable(query, tx, there, error)]
    else:
        query.answers_for(wanted)
        return records, []
    half = len(wanted) // 2
    first, second = readable(query, tx, wanted[:half]), readable(query, tx, wanted[half:])
    return first[0] + second[0], first[1] + second[1]


@contextmanager
def _savepoint_for_raising_condition(query: ConditionQuery, tx: Transaction) -> Iterator[None]:
    """Wrap a query in a savepoint if its condition is known to raise for some row, so that the error does not end the transaction."""
    if not query.in_turn:
        yield
        return
    with kept_whole(tx.connection):
        yield


def _condition_raised_for_a_row(query: ConditionQuery, error: BaseException) -> bool:
    """Whether this error means that the condition raised for some row, and the query can be used to find that row."""
    return query.in_turn and db_errors.of_a_value(error)


def _key_of(query: ConditionQuery, tx: Transaction, key: PrimaryKey) -> PrimaryKey | None:
    """Return the key of this record as the database stores it; None if there is no such record, or the database rejects the key."""
    try:
        row = tx.connection.execute(query.keys_among([key])).first()
    except Exception as error:
        if db_errors.transient(error):
            raise
        return None
    return None if row is None else tuple(row)


def _unreadable(query: ConditionQuery, tx: Transaction, key: PrimaryKey, error: BaseException) -> Unreadable:
    occurrence = ""
    if query.spec.occurrence:
        try:
            with kept_whole(tx.connection), user_code():
                row = tx.connection.execute(select(*query.spec.occurrence).where(query.among([key]))).first()
            occurrence = query.round_text(tuple(row)) if row is not None else ""
        except Exception as same:  # also a value that has no text: the attempt is then written with an empty one
            if db_errors.transient(same):
                raise
    if isinstance(error, DBAPIError) and _condition_raised_for_a_row(query, error):
        query.raises_for(key)
        words = _cannot_be_read(query, tx, key, error) if db_errors.no_text(error) else cannot_be_asked(error)
    else:
        words = _cannot_be_read(query, tx, key, error)
    return Unreadable(key, query.record_text(key), occurrence, words)


def _cannot_be_read(query: ConditionQuery, tx: Transaction, key: PrimaryKey, error: BaseException) -> str:
    reason = (
        db_errors.database_message(error) if isinstance(error, DBAPIError) else describe(error)
    )  # the words of the former repeat the statement
    return f"its record cannot be read: {reason}{unreadable_columns.unreadable_columns(tx.connection, query, key)}"


def _free_unreadable(query: ConditionQuery, tx: Transaction, bad: Sequence[Unreadable]) -> list[Unreadable]:
    """Return those unreadable records that nothing keeps from us: they have no attempt, or only their own failed one whose retry time has
    come.
    """
    if not bad:
        return []
    spec = query.spec
    if tx.air:
        bad = [one for one in bad if not tx.air.holds(spec, one.text)]
    found = attempts.attempts_deciding_claim(tx, query, [one.text for one in bad], own=True)
    free, columns = [], spec.occurrence_columns
    for one in bad:
        standing = found.get(one.text, ())
        one.attempt = blocking.own(spec.app, spec.name, one.occurrence, standing, spec.occurrence_columns)
        mine = one.attempt is None or (one.attempt.state is State.FAILED and blocking.due(one.attempt, tx.now))
        if (
            mine
            and blocking.blocker(spec.app, spec.name, one.occurrence, standing, done_column=True, repeats=spec.repeats, columns=columns)
            is None
        ):
            free.append(one)
    return free


def _records(tx: Transaction, statement: Any, given: dict[str, Any] | None) -> list[Any]:
    with user_code():  # the user's column types and load hooks run here
        return list(tx.session.execute(statement, given).unique().scalars())


def _busy(query: ConditionQuery, tx: Transaction, missing: set[PrimaryKey]) -> list[PrimaryKey]:
    """Return those of these keys that exist. They could not be locked, so another transaction has locked them; they are claimed again
    later.
    """
    return [tuple(row) for row in tx.connection.execute(query.keys_among(list(missing)))]


def _add_free_records_to_claim(
    query: ConditionQuery, tx: Transaction, claim: Claim, records: Sequence[Any], bad: Sequence[Unreadable] = (), mine: int | None = None
) -> None:
    """Add to the claim those records that no attempt keeps from us. Attempts are read after the lock, in a statement of their own (hazard
    17).
    """
    tx.claimed(records, query.mapper.tables)
    if records and not query.finds_its_keys:
        _prove_keys(query, tx, query.key_of(records[0]))
    taken: list[Taken] = []
    more: list[Unreadable] = []
    for record, due in zip(records, dues(query, tx, records), strict=True):
        key = query.key_of(record)
        text = query.record_text(key)
        try:
            occurrence = query.occurrence_text(record)
        except (OverflowError, GroundstateError) as error:  # a time outside of the calendar, or a value of a type without a text form
            more.append(Unreadable(key, text, "", f"its occurrence has no text: {error}"))
            continue
        if isinstance(due, InNoCalendar):
            more.append(Unreadable(key, text, occurrence, f"its due time cannot be told: {due}"))
        else:
            taken.append(Taken(key, text, occurrence, record, due=due))
    claim.taken = _free(query, tx, taken, mine)
    claim.unreadable = _free_unreadable(query, tx, [*bad, *more])


def _free(query: ConditionQuery, tx: Transaction, taken: list[Taken], mine: int | None) -> list[Taken]:
    spec = query.spec
    if tx.air:
        taken = [one for one in taken if not tx.air.holds(spec, one.text)]
    if not taken or not _some_attempts(tx):
        return _at_full_pace(query, tx, taken)
    found = attempts.attempts_deciding_claim(tx, query, [one.text for one in taken])
    free, kept_out_by = [], spec.kept_out_by
    for one in taken:
        standing = found.get(one.text, ())
        if blocking.blocker(spec.app, spec.name, one.occurrence, standing, **kept_out_by):
            continue
        own = blocking.own(spec.app, spec.name, one.occurrence, standing, spec.occurrence_columns)
        # A record that is too late does not wait for the retry time of an earlier failure, unless its `expired` handler was what failed.
        waits_no_more = query.answers_late and own is not None and own.why != IN_VAIN
        tried_now = own is not None and own.state is State.FAILED and (blocking.due(own, tx.now) or waits_no_more)
        if own is None or tried_now or (own.call == mine and own.state is State.BEGUN):
            one.attempt = own
            free.append(one)
    return _at_full_pace(query, tx, free)


def _prove_keys(query: ConditionQuery, tx: Transaction, key: PrimaryKey) -> None:
    """Prove that the database finds a record by its key, before the first record of a table that was empty at the start is claimed. Raises
    KeyRefused.
    """
    why = key_columns.refused(tx.connection, query, key)
    if why is not None:
        raise why
    query.finds_its_keys = True


def _at_full_pace(query: ConditionQuery, tx: Transaction, taken: list[Taken]) -> list[Taken]:
    """Leave out records that are slowed down just now, since reactions make each other's conditions hold on them again and again (a ring).
    A record with a failed attempt stays: it has waited for its retry time anyway.
    """
    if not tx.rings:
        return taken
    return [one for one in taken if one.attempt is not None or not tx.rings.holds(query, one.key, one.occurrence)]


def dues(query: ConditionQuery, tx: Transaction, records: Sequence[Any]) -> list[datetime | InNoCalendar | None]:
    """Return for each record when it became due, or why that cannot be computed; None if the reaction has no due time or the record has
    none any more.
    """
    timing, due = query.timing, query.spec.due
    if timing is None or due is None:
        return [None] * len(records)
    if due.attribute is not None:
        return [_told(timing, getattr(record, due.attribute.key)) for record in records]
    found = [query.key_of(record) for record in records]
    bases = _bases(query, tx, found) if found else {}
    return [_told(timing, bases.get(key)) for key in found]


def _told(timing: Timing, base: object) -> datetime | InNoCalendar | None:
    if isinstance(base, InNoCalendar):
        return base
    try:
        return timing.due_of(base)
    except InNoCalendar as error:
        return error


def _bases(query: ConditionQuery, tx: Transaction, wanted: Sequence[PrimaryKey]) -> dict[PrimaryKey, object]:
    """Return the values that the due times of these records are computed from, for a reaction whose `due` is an SQL expression. A value
    that Python cannot represent is found by halving, and given as InNoCalendar.
    """
    try:
        return {tuple(row[:-1]): row[-1] for row in tx.connection.execute(query.dues_among(wanted))}
    except Exception as error:
        if not db_errors.unreadable(error):
            raise
        if len(wanted) == 1:
            return {wanted[0]: InNoCalendar(f"{type(error).__name__}: {error}")}
    half = len(wanted) // 2
    return _bases(query, tx, wanted[:half]) | _bases(query, tx, wanted[half:])


def _some_attempts(tx: Transaction) -> bool:
    """Whether any attempt may exist: on PostgreSQL another transaction may have committed the first one since this one began."""
    return tx.some_attempts or (tx.database.locks_rows and tx.connection.execute(attempts.ANY).first() is not None)


@dataclass
class AttemptWithFacts:
    """One attempt as it is in the table now (None if it is gone), and the facts about its record."""

    attempt: Attempt | None
    facts: Facts
    record: Any
    key: PrimaryKey
    blocked: Attempt | None
    due: datetime | None = None  # when its occurrence became due; None if it has no due time
    in_the_air: bool = False  # this worker has a call in flight for the record, whatever the table says
    early: bool = False  # its due time is in the future: the time was moved, or the clock stepped back
    condition: bool = False  # whether the condition holds, for this or another occurrence
    unreadable: str | None = None  # why the record cannot be loaded; `record` is None then, and `facts` are not known


@dataclass
class AttemptsUnderLock:
    """Attempts, with the facts that their transitions depend on, read under the locks of their records."""

    standing: dict[attempts.Identity, AttemptWithFacts] = field(default_factory=dict)
    busy: set[attempts.Identity] = field(default_factory=set)  # locked by another transaction: looked at again, not counted as a try
    unreadable: dict[attempts.Identity, tuple[Attempt | None, str]] = field(default_factory=dict)  # attempt; why its record is unreadable
    unasked: set[attempts.Identity] = field(default_factory=set)  # those of the unreadable ones for whose record the condition raises

    def without_its_record(self, identity: attempts.Identity) -> AttemptWithFacts | None:
        """Return an unreadable attempt as far as it is known; None for an attempt whose record was read. The record is there, and while
        nobody can say otherwise its condition counts as holding, so that nothing of the attempt is forgotten.
        """
        if identity not in self.unreadable:
            return None
        attempt, words = self.unreadable[identity]
        return AttemptWithFacts(attempt, Facts(exists=True, holds=True), None, (), None, unreadable=words)


def lock_and_read_attempts(query: ConditionQuery, tx: Transaction, identities: Sequence[attempts.Identity]) -> AttemptsUnderLock:
    """Lock the records of these attempts, then read the attempts and the facts. A record that another transaction has locked is skipped."""
    spec = query.spec
    result = AttemptsUnderLock()
    texts = {identity[2] for identity in identities}
    keys_of = {text: key for text in texts if (key := query.key_of_text(text)) is not None}  # a text that is no valid key has no record
    found: dict[str, tuple[Any, bool]] = {}
    busy: set[str] = set()
    bad: dict[str, str] = {}
    wanted = list(keys_of.values())
    if wanted:
        locked = wanted
        if tx.database.locks_rows and not query.reads_its_row_alone:
            locked = [tuple(row) for row in tx.connection.execute(query.keys_given, query.given(wanted))]
        if locked:
            for record, holds in _truths(query, tx, locked, bad):
                found[query.record_text(query.key_of(record))] = (record, bool(holds))
            tx.claimed([record for record, _ in found.values()], query.mapper.tables)
        if tx.database.locks_rows and len(found) < len(wanted):
            missing = {key for text, key in keys_of.items() if text not in found and text not in bad}
            busy = {query.record_text(key) for key in _busy(query, tx, missing)}
    # The transaction that has locked a busy record locks its attempts too: if we waited for those, we could deadlock with it.
    ours = [text for text in texts if text not in busy]
    by_record = attempts.attempts_deciding_claim(tx, query, ours, lock=True)
    due_now = _dues_of(query, tx, [record for record, _ in found.values()])
    kept_out_by = spec.kept_out_by
    for identity in identities:
        text, occurrence = identity[2], identity[3]
        if text in busy:
            result.busy.add(identity)
            continue
        if text in bad:
            result.unreadable[identity] = (attempts.by_identity(by_record, identity), bad[text])
            result.unasked |= {identity} if bad[text].startswith(OF_ONE) else set()
            continue
        record, holds = found.get(text, (None, False))
        same = record is not None and is_this_round(query, occurrence, record)
        by_now = due_now.get(text)
        undue = by_now if isinstance(by_now, InNoCalendar) else None
        now_due = None if isinstance(by_now, InNoCalendar) else by_now
        due = query.due_in(occurrence) or now_due
        late = due is not None and spec.due is not None and spec.due.expired(due, tx.now)
        facts = Facts(exists=record is not None, holds=holds and same, expired=late)
        others = blocking.blocker(spec.app, spec.name, occurrence, by_record.get(text, ()), **kept_out_by)
        standing = attempts.by_identity(by_record, identity)
        if undue is not None and standing is not None and standing.state is State.FAILED and facts.holds:
            result.unreadable[identity] = (standing, f"its due time cannot be told: {undue}")  # without a due time it cannot be carried out
            continue
        early = now_due is not None and now_due > tx.now
        flies = tx.air is not None and tx.air.holds(spec, text)
        result.standing[identity] = AttemptWithFacts(standing, facts, record, keys_of.get(text, ()), others, due, flies, early, holds)
    return result


def _dues_of(query: ConditionQuery, tx: Transaction, records: Sequence[Any]) -> dict[str, datetime | InNoCalendar]:
    if query.timing is None:
        return {}
    texts = [query.record_text(query.key_of(record)) for record in records]
    return {text: due for text, due in zip(texts, dues(query, tx, records), strict=True) if due is not None}


def is_this_round(query: ConditionQuery, occurrence: str, record: Any) -> bool:
    """Whether the record's present occurrence is the one with this text."""
    try:
        return query.is_round(occurrence, query.occurrence_text(record))
    except (OverflowError, GroundstateError):  # the record has no occurrence text, and its attempt was written with an empty one
        return occurrence == ""


def truths(query: ConditionQuery, tx: Transaction, wanted: Sequence[PrimaryKey]) -> list[Any]:
    """Return these records, each with whether its condition holds, after this transaction locked them. Those that cannot be loaded are left
    out.
    """
    return _truths(query, tx, wanted, {})


def _truths(query: ConditionQuery, tx: Transaction, wanted: Sequence[PrimaryKey], bad: dict[str, str]) -> list[Any]:
    """Return these records, each with whether its condition holds. For one that cannot be loaded, the reason is put into `bad`, by the
    record's text.
    """
    try:
        with _savepoint_for_raising_condition(query, tx), user_code():
            return list(tx.session.execute(query.truths_given, query.given(wanted)).unique())
    except Exception as error:
        in_vain = _condition_raised_for_a_row(query, error)
        if not (in_vain or db_errors.unloadable(error)):
            raise
        if len(wanted) == 1 and _key_of(query, tx, wanted[0]) is None:
            return []
        if len(wanted) == 1 and in_vain and isinstance(error, DBAPIError):
            query.raises_for(wanted[0])
            words = _cannot_be_read(query, tx, wanted[0], error) if db_errors.no_text(error) else cannot_be_asked(error)
            bad[query.record_text(wanted[0])] = words
            return []
        if len(wanted) == 1:
            bad[query.record_text(wanted[0])] = _cannot_be_read(query, tx, wanted[0], error)
            return []
    half = len(wanted) // 2
    return _truths(query, tx, wanted[:half], bad) + _truths(query, tx, wanted[half:], bad)
