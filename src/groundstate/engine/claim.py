"""Taking records: locked, asked again, and freed of those that something keeps us from. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from groundstate.engine import attempts, broken_cells, key_columns, trouble
from groundstate.engine.asked_apart import cannot_be_asked
from groundstate.engine.guarded import describe, user_code
from groundstate.engine.question import Place, PrimaryKey, Question
from groundstate.engine.timing import Timing
from groundstate.engine.transaction import Transaction
from groundstate.rules import blocking
from groundstate.rules.attempt import IN_VAIN, Attempt, Facts, State
from groundstate.rules.due import InNoCalendar
from groundstate.values.errors import GroundstateError
from groundstate.values.keys import NoValue


@dataclass
class Taken:
    """A record in our hands, under its lock."""

    key: PrimaryKey
    text: str
    occurrence: str
    record: Any
    attempt: Attempt | None = None  # its own, failed and due
    due: datetime | None = None  # when it became due; None where nothing says


@dataclass
class Claim:
    """What was taken, and how far the reading came."""

    taken: list[Taken] = field(default_factory=list)
    cursor: Place | None = None
    read: int = 0  # keys whose condition held, taken or not
    busy: list[PrimaryKey] = field(default_factory=list)  # locked by somebody else just now
    unreadable: list[Unreadable] = field(default_factory=list)


@dataclass
class Unreadable:
    """A record that cannot be loaded: something stands in it that the mapped class has no value for."""

    key: PrimaryKey
    text: str
    occurrence: str
    words: str
    attempt: Attempt | None = None  # its own, failed and due
    nameless: bool = False  # its key itself cannot be read: no later try finds it by that


def by_condition(question: Question, tx: Transaction, cursor: Place | None, limit: int, *, crowded: bool) -> Claim:
    """The next records, in the order of a pass, that are ready."""
    if not tx.database.locks_rows or question.reads_its_row_alone:
        try:
            with user_code():
                rows = tx.session.execute(question.records_after(cursor, limit, crowded=crowded)).unique().all()
        except Exception as error:
            if not trouble.unloadable(error):
                raise
        else:
            claim = Claim(cursor=question.place_of(rows[-1]) if rows else cursor, read=len(rows))
            records, nameless = [row[0] for row in rows], list[Unreadable]()
            if question.keys_may_stand_otherwise:
                each = [_nameless(question, tx, question.key_in(tuple(row))) for row in rows]
                records = [record for record, bad in zip(records, each, strict=True) if bad is None]
                nameless = [bad for bad in each if bad is not None]
            _take(question, tx, claim, records, nameless)
            return claim
    places = [tuple(row) for row in tx.connection.execute(question.lock(question.places_after(cursor, limit, crowded=crowded)))]
    claim = Claim(cursor=places[-1] if places else cursor, read=len(places))
    if places:
        found, nameless = _split(question, tx, [question.key_in(place) for place in places])
        records, bad = _load(question, tx, found) if found else ([], [])
        _take(question, tx, claim, records, [*bad, *nameless])
    return claim


def by_keys(question: Question, tx: Transaction, wanted: Sequence[PrimaryKey], *, mine: int | None = None) -> Claim:
    """Those of these records that are ready."""
    claim = Claim()
    wanted, nameless = _split(question, tx, wanted)
    found = list(wanted)
    if tx.database.locks_rows:
        found = [tuple(row) for row in tx.connection.execute(question.keys_given, question.given(wanted))]
        if len(found) < len(wanted):
            claim.busy = _busy(question, tx, set(wanted) - set(found))
            question.answers_for(set(wanted) - set(found) - set(claim.busy))  # they are gone
    if found or nameless:
        records, bad = _load(question, tx, found) if found else ([], [])
        claim.read = len(records) + len(bad)
        _take(question, tx, claim, records, [*bad, *nameless], mine)
    return claim


def _split(question: Question, tx: Transaction, wanted: Sequence[PrimaryKey]) -> tuple[Sequence[PrimaryKey], list[Unreadable]]:
    """Those with which a record can be asked for, and those in which something stands by which none is found."""
    fine: list[PrimaryKey] = []
    bad: list[Unreadable] = []
    for key in wanted:
        if not any(type(value) is NoValue for value in key):
            fine.append(key)
        elif (nameless := _nameless(question, tx, key)) is not None:
            bad.append(nameless)
        else:
            fine.append(_as_loaded(key))
    return fine, bad


def _nameless(question: Question, tx: Transaction, key: Sequence[Any]) -> Unreadable | None:
    """The record as one that cannot be taken, where its own key does not find it; None where it does, as by a collation without case."""
    why = next((value.why for value in key if type(value) is NoValue), None)
    if why is None:
        return None
    loaded = _as_loaded(key)
    if None not in loaded and _key_of(question, tx, loaded) is not None:
        return None
    return Unreadable(tuple(key), question.record_text(tuple(key)), "", f"its key cannot be read: {why}", nameless=True)


def _as_loaded(key: Sequence[Any]) -> PrimaryKey:
    """The key as its types read what stands there, in whatever form that is."""
    return tuple(value.loaded if type(value) is NoValue else value for value in key)


def _load(question: Question, tx: Transaction, found: Sequence[PrimaryKey]) -> tuple[list[Any], list[Unreadable]]:
    for children in question.children_of(found) if tx.database.locks_rows else ():
        tx.connection.execute(children)  # FOR SHARE: what the decision is about does not change before our commit (hazard 18)
    return readable(question, tx, found)


def readable_under_lock(question: Question, tx: Transaction, wanted: Sequence[PrimaryKey]) -> tuple[list[Any], list[Unreadable]]:
    """As `readable`, asked once nobody can move them on any more before this transaction ends. Waits for who has locked one."""
    wanted, nameless = _split(question, tx, wanted)
    if not wanted:
        return [], nameless
    if tx.database.locks_rows:
        tx.connection.execute(question.keys_among(wanted).with_for_update(key_share=True))
    records, bad = readable(question, tx, wanted)
    return records, [*bad, *nameless]


def readable(question: Question, tx: Transaction, wanted: Sequence[PrimaryKey]) -> tuple[list[Any], list[Unreadable]]:
    """Of the records given those that are ready and can be loaded, and those that cannot: found by halves."""
    try:
        with _kept_whole(question, tx):
            records = _records(tx, question.records_given, question.given(wanted))
    except Exception as error:
        if not (trouble.unloadable(error) or _is_asked_in_vain(question, error)):
            raise
        if len(wanted) == 1:
            there = _key_of(question, tx, wanted[0])
            if there is None:
                return [], []
            if question.record_text(there) != question.record_text(wanted[0]):
                return readable(question, tx, [there])  # a hint gave it as another type, which the driver made a key of
            return [], [_unreadable(question, tx, there, error)]
    else:
        question.answers_for(wanted)
        return records, []
    half = len(wanted) // 2
    first, second = readable(question, tx, wanted[:half]), readable(question, tx, wanted[half:])
    return first[0] + second[0], first[1] + second[1]


@contextmanager
def _kept_whole(question: Question, tx: Transaction) -> Iterator[None]:
    """While it lasts, a condition that raises for some row ends no transaction, where that is known of it. Nothing is written meanwhile.

    The savepoint is released as well, which SQLAlchemy leaves standing where it goes back to it: PostgreSQL would go on within it, and no
    row of ours may be written there (`store.written`).
    """
    if not (question.in_turn and tx.database.locks_rows):
        yield
        return
    tx.connection.exec_driver_sql("SAVEPOINT groundstate_asked")
    try:
        yield
    except Exception as error:
        if trouble.of_a_value(error) or trouble.unloadable(error):  # else it is rolled back, and perhaps its connection is gone
            tx.connection.exec_driver_sql("ROLLBACK TO SAVEPOINT groundstate_asked")
            tx.connection.exec_driver_sql("RELEASE SAVEPOINT groundstate_asked")
        raise
    tx.connection.exec_driver_sql("RELEASE SAVEPOINT groundstate_asked")


def _is_asked_in_vain(question: Question, error: BaseException) -> bool:
    """Whether the condition raised for some row, and which one can be told here."""
    return question.in_turn and trouble.of_a_value(error)


def _key_of(question: Question, tx: Transaction, key: PrimaryKey) -> PrimaryKey | None:
    """The key of such a record as the database has it; None where there is none. What is no key cannot be asked for, and fails."""
    try:
        row = tx.connection.execute(question.keys_among([key])).first()
    except Exception as error:
        if trouble.transient(error):
            raise
        return None
    return None if row is None else tuple(row)


def _unreadable(question: Question, tx: Transaction, key: PrimaryKey, error: BaseException) -> Unreadable:
    occurrence = ""
    if question.spec.occurrence:
        try:
            with user_code():
                row = tx.connection.execute(select(*question.spec.occurrence).where(question.among([key]))).first()
            occurrence = question.round_text(tuple(row)) if row is not None else ""
        except Exception as same:
            if not trouble.unloadable(same):
                raise
    if isinstance(error, DBAPIError) and _is_asked_in_vain(question, error):
        question.raises_for(key)
        words = cannot_be_asked(error)
    else:
        words = f"its record cannot be read: {describe(error)}{broken_cells.unreadable_columns(tx.connection, question, key)}"
    return Unreadable(key, question.record_text(key), occurrence, words)


def _free_unreadable(question: Question, tx: Transaction, bad: Sequence[Unreadable]) -> list[Unreadable]:
    """Those on which nothing stands but a failed attempt of theirs that is due."""
    if not bad:
        return []
    spec = question.spec
    if tx.air:
        bad = [one for one in bad if not tx.air.holds(spec, one.text)]
    found = attempts.concerning(tx, question, [one.text for one in bad], own=True)
    free, columns = [], spec.occurrence_columns
    for one in bad:
        standing = found.get(one.text, ())
        one.attempt = blocking.own(spec.app, spec.name, one.occurrence, standing, spec.occurrence_columns)
        mine = one.attempt is None or (one.attempt.state is State.FAILED and blocking.due(one.attempt, tx.now))
        if mine and blocking.blocker(spec.app, spec.name, one.occurrence, standing, fact=True, again=spec.again, columns=columns) is None:
            free.append(one)
    return free


def _records(tx: Transaction, statement: Any, given: dict[str, Any] | None) -> list[Any]:
    with user_code():  # its types and its hooks make values of what was fetched
        return list(tx.session.execute(statement, given).unique().scalars())


def _busy(question: Question, tx: Transaction, missing: set[PrimaryKey]) -> list[PrimaryKey]:
    """Of the keys that could not be locked, those that exist: somebody else has them, and they are asked again later."""
    return [tuple(row) for row in tx.connection.execute(question.keys_among(list(missing)))]


def _take(  # all of it differs from claim to claim
    question: Question, tx: Transaction, claim: Claim, records: Sequence[Any], bad: Sequence[Unreadable] = (), mine: int | None = None
) -> None:
    """Puts those into the claim that no attempt keeps us from. Asked after the lock, in a statement of its own (hazard 17)."""
    tx.claimed(records, question.mapper.tables)
    if records and not question.finds_its_keys:
        _prove_keys(question, tx, question.key_of(records[0]))
    taken: list[Taken] = []
    more: list[Unreadable] = []
    for record, due in zip(records, dues(question, tx, records), strict=True):
        key = question.key_of(record)
        text = question.record_text(key)
        try:
            occurrence = question.occurrence_text(record)
        except (OverflowError, GroundstateError) as error:  # a time in no calendar; a value of a type that has no text
            more.append(Unreadable(key, text, "", f"its occurrence has no text: {error}"))
            continue
        if isinstance(due, InNoCalendar):
            more.append(Unreadable(key, text, occurrence, f"its due time cannot be told: {due}"))
        else:
            taken.append(Taken(key, text, occurrence, record, due=due))
    claim.taken = _free(question, tx, taken, mine)
    claim.unreadable = _free_unreadable(question, tx, [*bad, *more])


def _free(question: Question, tx: Transaction, taken: list[Taken], mine: int | None) -> list[Taken]:
    spec = question.spec
    if tx.air:
        taken = [one for one in taken if not tx.air.holds(spec, one.text)]
    if not taken or not _some_attempts(tx):
        return _at_full_pace(question, tx, taken)
    found = attempts.concerning(tx, question, [one.text for one in taken])
    free, kept_out_by = [], spec.kept_out_by
    for one in taken:
        standing = found.get(one.text, ())
        if blocking.blocker(spec.app, spec.name, one.occurrence, standing, **kept_out_by):
            continue
        own = blocking.own(spec.app, spec.name, one.occurrence, standing, spec.occurrence_columns)
        # What is too late waits for no further try, but for one of its own handler that failed.
        waits_no_more = question.answers_late and own is not None and own.why != IN_VAIN
        tried_now = own is not None and own.state is State.FAILED and (blocking.due(own, tx.now) or waits_no_more)
        if own is None or tried_now or (own.call == mine and own.state is State.BEGUN):
            one.attempt = own
            free.append(one)
    return _at_full_pace(question, tx, free)


def _prove_keys(question: Question, tx: Transaction, key: PrimaryKey) -> None:
    """Before the first record is taken whose table was empty at the start. Raises KeyRefused."""
    why = key_columns.refused(tx.connection, question, key)
    if why is not None:
        raise why
    question.finds_its_keys = True


def _at_full_pace(question: Question, tx: Transaction, taken: list[Taken]) -> list[Taken]:
    """Without those that go round and are slowed down just now. What failed waits for its next try anyway."""
    if not tx.rings:
        return taken
    return [one for one in taken if one.attempt is not None or not tx.rings.holds(question, one.key, one.occurrence)]


def dues(question: Question, tx: Transaction, records: Sequence[Any]) -> list[datetime | InNoCalendar | None]:
    """When each of these records became due, or why that cannot be told; None where nothing says (any more)."""
    timing, due = question.timing, question.spec.due
    if timing is None or due is None:
        return [None] * len(records)
    if due.attribute is not None:
        return [_told(timing, getattr(record, due.attribute.key)) for record in records]
    found = [question.key_of(record) for record in records]
    bases = _bases(question, tx, found) if found else {}
    return [_told(timing, bases.get(key)) for key in found]


def _told(timing: Timing, base: object) -> datetime | InNoCalendar | None:
    if isinstance(base, InNoCalendar):
        return base
    try:
        return timing.due_of(base)
    except InNoCalendar as error:
        return error


def _bases(question: Question, tx: Transaction, wanted: Sequence[PrimaryKey]) -> dict[PrimaryKey, object]:
    """What the due times of these are made of, where an expression says so; those that no Python time is are found by halves."""
    try:
        return {tuple(row[:-1]): row[-1] for row in tx.connection.execute(question.dues_among(wanted))}
    except Exception as error:
        if not trouble.unreadable(error):
            raise
        if len(wanted) == 1:
            return {wanted[0]: InNoCalendar(f"{type(error).__name__}: {error}")}
    half = len(wanted) // 2
    return _bases(question, tx, wanted[:half]) | _bases(question, tx, wanted[half:])


def _some_attempts(tx: Transaction) -> bool:
    """Whether any attempt may be there: others may have written the first one since a transaction of PostgreSQL began."""
    return tx.some_attempts or (tx.database.locks_rows and tx.connection.execute(attempts.ANY).first() is not None)


@dataclass
class Standing:
    """An attempt as it stands now (None: it is gone), and what is true of its record."""

    attempt: Attempt | None
    facts: Facts
    record: Any
    key: PrimaryKey
    blocked: Attempt | None
    due: datetime | None = None  # when its occurrence became due; None where nothing says
    in_the_air: bool = False  # this worker has a call in the air for the record, whatever the table says
    early: bool = False  # its time is still to come: it was moved, or the clock stepped back
    condition: bool = False  # whether the condition holds, whatever the occurrence is


@dataclass
class Look:
    """Attempts with the facts their transitions depend on, under their records' locks."""

    standing: dict[attempts.Identity, Standing] = field(default_factory=dict)
    busy: set[attempts.Identity] = field(default_factory=set)  # the record is locked by somebody else: asked again, uncounted
    unreadable: dict[attempts.Identity, tuple[Attempt | None, str]] = field(default_factory=dict)  # the attempt, and why its record is not


def look(question: Question, tx: Transaction, identities: Sequence[attempts.Identity]) -> Look:
    """Locks the records of these attempts, then reads attempts and facts. A record that is locked by others is skipped."""
    spec = question.spec
    result = Look()
    texts = {identity[2] for identity in identities}
    keys_of = {text: key for text in texts if (key := question.key_of_text(text)) is not None}  # of what is no key there is no record
    found: dict[str, tuple[Any, bool]] = {}
    busy: set[str] = set()
    bad: dict[str, str] = {}
    wanted = list(keys_of.values())
    if wanted:
        locked = wanted
        if tx.database.locks_rows and not question.reads_its_row_alone:
            locked = [tuple(row) for row in tx.connection.execute(question.keys_given, question.given(wanted))]
        if locked:
            for record, holds in _truths(question, tx, locked, bad):
                found[question.record_text(question.key_of(record))] = (record, bool(holds))
            tx.claimed([record for record, _ in found.values()], question.mapper.tables)
        if tx.database.locks_rows and len(found) < len(wanted):
            missing = {key for text, key in keys_of.items() if text not in found and text not in bad}
            busy = {question.record_text(key) for key in _busy(question, tx, missing)}
    # Who has the others' records has their attempts: we would wait for him, and he for us.
    ours = [text for text in texts if text not in busy]
    by_record = attempts.concerning(tx, question, ours, lock=True)
    due_now = _dues_of(question, tx, [record for record, _ in found.values()])
    kept_out_by = spec.kept_out_by
    for identity in identities:
        text, occurrence = identity[2], identity[3]
        if text in busy:
            result.busy.add(identity)
            continue
        if text in bad:
            result.unreadable[identity] = (attempts.by_identity(by_record, identity), bad[text])
            continue
        record, holds = found.get(text, (None, False))
        same = record is not None and _is_this_round(question, occurrence, record)
        by_now = due_now.get(text)
        undue = by_now if isinstance(by_now, InNoCalendar) else None
        now_due = None if isinstance(by_now, InNoCalendar) else by_now
        due = question.due_in(occurrence) or now_due
        late = due is not None and spec.due is not None and spec.due.expired(due, tx.now)
        facts = Facts(exists=record is not None, holds=holds and same, expired=late)
        others = blocking.blocker(spec.app, spec.name, occurrence, by_record.get(text, ()), **kept_out_by)
        standing = attempts.by_identity(by_record, identity)
        if undue is not None and standing is not None and standing.state is State.FAILED and facts.holds:
            result.unreadable[identity] = (standing, f"its due time cannot be told: {undue}")  # it would be carried out for no moment
            continue
        early = now_due is not None and now_due > tx.now
        flies = tx.air is not None and tx.air.holds(spec, text)
        result.standing[identity] = Standing(standing, facts, record, keys_of.get(text, ()), others, due, flies, early, holds)
    return result


def _dues_of(question: Question, tx: Transaction, records: Sequence[Any]) -> dict[str, datetime | InNoCalendar]:
    if question.timing is None:
        return {}
    texts = [question.record_text(question.key_of(record)) for record in records]
    return {text: due for text, due in zip(texts, dues(question, tx, records), strict=True) if due is not None}


def _is_this_round(question: Question, occurrence: str, record: Any) -> bool:
    try:
        return question.is_round(occurrence, question.occurrence_text(record))
    except (OverflowError, GroundstateError):  # it has none, with which its attempt was written
        return occurrence == ""


def _truths(question: Question, tx: Transaction, wanted: Sequence[PrimaryKey], bad: dict[str, str]) -> list[Any]:
    """Records with whether their condition holds; those that cannot be loaded go into `bad`, by text, with why."""
    try:
        with _kept_whole(question, tx), user_code():
            return list(tx.session.execute(question.truths_given, question.given(wanted)).unique())
    except Exception as error:
        in_vain = _is_asked_in_vain(question, error)
        if not (in_vain or trouble.unloadable(error)):
            raise
        if len(wanted) == 1 and _key_of(question, tx, wanted[0]) is None:
            return []
        if len(wanted) == 1 and in_vain and isinstance(error, DBAPIError):
            question.raises_for(wanted[0])
            bad[question.record_text(wanted[0])] = cannot_be_asked(error)
            return []
        if len(wanted) == 1:
            bad[question.record_text(wanted[0])] = f"its record cannot be read: {describe(error)}"
            return []
    half = len(wanted) // 2
    return _truths(question, tx, wanted[:half], bad) + _truths(question, tx, wanted[half:], bad)
