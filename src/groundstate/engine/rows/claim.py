"""Claims records: locks them, checks their condition again under the lock, and leaves out records that an attempt or a call in flight
blocks. Writes nothing.
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
from groundstate.engine.sql import db_errors, key_refusal, unreadable_columns
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.due_expression import Timing
from groundstate.engine.sql.pass_cursors import PassCursor
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.sql.safe_text import describe_exception, running_user_code
from groundstate.engine.sql.savepoint_query import OF_ONE, in_savepoint, why_record_not_evaluable
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules import blocking
from groundstate.rules.attempt import EXPIRED_HANDLER_FAILED, Attempt, Facts, State
from groundstate.rules.due import OutsideCalendarError
from groundstate.values.errors import GroundstateError
from groundstate.values.keys import NoValue


@dataclass
class ClaimedRecord:
    """A record that this transaction has claimed and locked."""

    key: PrimaryKey
    text: str
    occurrence: str
    record: Any
    attempt: Attempt | None = None  # the reaction's own attempt on this occurrence, if it is to be tried again now; otherwise None
    due: datetime | None = None  # when the record became due; None if it has no due time


@dataclass
class Claim:
    """The records that one query for claiming found, and how many keys the query read."""

    records: list[ClaimedRecord] = field(default_factory=list)
    cursor: PassCursor | None = None
    read: int = 0  # number of keys whose condition held, whether their records were claimed or not
    busy: list[PrimaryKey] = field(default_factory=list)  # records that another transaction has locked
    unreadable: list[Unreadable] = field(default_factory=list)


@dataclass
class Unreadable:
    """A record that cannot be loaded, for example because its mapped class cannot represent the value of a column."""

    key: PrimaryKey
    text: str
    occurrence: str
    words: str
    attempt: Attempt | None = None  # the reaction's own failed attempt on the record, if it is to be tried again now; otherwise None
    nameless: bool = False  # whether even the key of the record cannot be read, so that no later try can find it


def claim_by_condition(query: ConditionQuery, tx: Transaction, cursor: PassCursor | None, limit: int, *, crowded: bool) -> Claim:
    """Claim records that are ready (condition true and due), in the order of the backlog. Begin after the cursor (the last place read). If
    `crowded` is True, records with attempts are left out already in SQL.
    """
    if not tx.database.locks_rows or query.selects.reads_only_own_row:
        try:
            with running_user_code():
                rows = tx.session.execute(query.selects.select_records_after(cursor, limit, crowded=crowded)).unique().all()
        except Exception as error:
            if not db_errors.is_record_load_error(error):
                raise
        else:
            claim = Claim(cursor=query.cursors.cursor_after_row(rows[-1]) if rows else cursor, read=len(rows))
            records, nameless = [row[0] for row in rows], list[Unreadable]()
            if query.keys.may_store_other_key_forms:
                each = [_unreadable_if_key_finds_nothing(query, tx, query.cursors.key_in_cursor(tuple(row))) for row in rows]
                records = [record for record, bad in zip(records, each, strict=True) if bad is None]
                nameless = [bad for bad in each if bad is not None]
            _add_free_records_to_claim(query, tx, claim, records, nameless)
            return claim
    places = [
        tuple(row)
        for row in tx.connection.execute(query.loading.with_row_lock(query.selects.select_cursors_after(cursor, limit, crowded=crowded)))
    ]
    claim = Claim(cursor=places[-1] if places else cursor, read=len(places))
    if places:
        keys, nameless = _split_off_keys_that_find_nothing(query, tx, [query.cursors.key_in_cursor(place) for place in places])
        records, bad = _lock_children_and_load(query, tx, keys) if keys else ([], [])
        _add_free_records_to_claim(query, tx, claim, records, [*bad, *nameless])
    return claim


def claim_by_keys(query: ConditionQuery, tx: Transaction, keys: Sequence[PrimaryKey], *, mine: int | None = None) -> Claim:
    """Claim the records with these keys, but only if they are ready (condition true and due).

    mine: the call number of the begun attempts that the caller may carry out. It is set only in careful mode, which begins after workers
    died; otherwise it is None.
    """
    claim = Claim()
    keys, nameless = _split_off_keys_that_find_nothing(query, tx, keys)
    locked_keys = list(keys)
    if tx.database.locks_rows:
        locked_keys = [tuple(row) for row in tx.connection.execute(query.keys.select_given_keys, query.keys.key_parameters(keys))]
        if len(locked_keys) < len(keys):
            claim.busy = _keys_locked_by_others(query, tx, set(keys) - set(locked_keys))
            query.include_rows_again(set(keys) - set(locked_keys) - set(claim.busy))  # the remaining keys have no rows now
    if locked_keys or nameless:
        records, bad = _lock_children_and_load(query, tx, locked_keys) if locked_keys else ([], [])
        claim.read = len(records) + len(bad)
        _add_free_records_to_claim(query, tx, claim, records, [*bad, *nameless], mine)
    return claim


def _split_off_keys_that_find_nothing(
    query: ConditionQuery, tx: Transaction, keys: Sequence[PrimaryKey]
) -> tuple[Sequence[PrimaryKey], list[Unreadable]]:
    """Return a pair: the keys by which the database can find a record, and an Unreadable for each other key.

    A key finds no record if the column's type converts it to another form than the one that is stored.
    """
    usable: list[PrimaryKey] = []
    bad: list[Unreadable] = []
    for key in keys:
        if not any(type(value) is NoValue for value in key):
            usable.append(key)
        elif (nameless := _unreadable_if_key_finds_nothing(query, tx, key)) is not None:
            bad.append(nameless)
        else:
            usable.append(_key_as_loaded(key))
    return usable, bad


def _unreadable_if_key_finds_nothing(query: ConditionQuery, tx: Transaction, key: Sequence[Any]) -> Unreadable | None:
    """Return an Unreadable for the record if the database cannot find the record by its key. Return None if it can, for example under a
    collation that ignores case.
    """
    why = next((value.why for value in key if type(value) is NoValue), None)
    if why is None:
        return None
    loaded = _key_as_loaded(key)
    if None not in loaded and _stored_key(query, tx, loaded) is not None:
        return None
    return Unreadable(tuple(key), query.keys.record_text(tuple(key)), "", f"its key cannot be read: {why}", nameless=True)


def _key_as_loaded(key: Sequence[Any]) -> PrimaryKey:
    """Return the key as Python values, as its column types load them. A value may be stored in a different form."""
    return tuple(value.loaded if type(value) is NoValue else value for value in key)


def _lock_children_and_load(query: ConditionQuery, tx: Transaction, keys: Sequence[PrimaryKey]) -> tuple[list[Any], list[Unreadable]]:
    for children in query.loading.statements_locking_children(keys) if tx.database.locks_rows else ():
        tx.connection.execute(children)  # FOR SHARE: rows that the condition reads must not change before our commit (hazard 18)
    return load_ready_records(query, tx, keys)


def load_ready_records_under_lock(query: ConditionQuery, tx: Transaction, keys: Sequence[PrimaryKey]) -> tuple[list[Any], list[Unreadable]]:
    """Lock these records (FOR KEY SHARE), so that no worker can claim them before this transaction ends, then load those that are ready
    (condition true and due). Waits for locks of others. Returns a pair, as `load_ready_records` does.
    """
    keys, nameless = _split_off_keys_that_find_nothing(query, tx, keys)
    if not keys:
        return [], nameless
    if tx.database.locks_rows:
        tx.connection.execute(query.keys.select_existing_keys(keys).with_for_update(key_share=True))
    records, bad = load_ready_records(query, tx, keys)
    return records, [*bad, *nameless]


def load_ready_records(query: ConditionQuery, tx: Transaction, keys: Sequence[PrimaryKey]) -> tuple[list[Any], list[Unreadable]]:
    """Load those of these records that are ready (condition true and due). Return a pair: the loaded records, and an Unreadable for each
    record that cannot be loaded. A batch that fails is halved until such records are found.
    """
    try:
        with _savepoint_for_raising_condition(query, tx):
            records = _execute_and_load(tx, query.selects.select_given_ready_records, query.keys.key_parameters(keys))
    except Exception as error:
        if not (db_errors.is_record_load_error(error) or _condition_raised_for_a_row(query, error)):
            raise
        if len(keys) == 1:
            there = _stored_key(query, tx, keys[0])
            if there is None:
                return [], []
            if query.keys.record_text(there) != query.keys.record_text(keys[0]):
                # The key came from a hint, and its values had other types than the columns. Use the key as it is stored.
                return load_ready_records(query, tx, [there])
            return [], [_make_unreadable(query, tx, there, error)]
    else:
        query.include_rows_again(keys)
        return records, []
    half = len(keys) // 2
    first, second = load_ready_records(query, tx, keys[:half]), load_ready_records(query, tx, keys[half:])
    return first[0] + second[0], first[1] + second[1]


@contextmanager
def _savepoint_for_raising_condition(query: ConditionQuery, tx: Transaction) -> Iterator[None]:
    """Run the block in a savepoint if the condition is known to raise an error for some row. The block runs a query with the condition.
    After an error, the transaction is still usable.
    """
    if not query.in_turn:
        yield
        return
    with in_savepoint(tx.connection):
        yield


def _condition_raised_for_a_row(query: ConditionQuery, error: BaseException) -> bool:
    """Return whether this error means that the condition raised an error for some row. If so, halving the batch finds the row."""
    return query.in_turn and db_errors.is_caused_by_value(error)


def _stored_key(query: ConditionQuery, tx: Transaction, key: PrimaryKey) -> PrimaryKey | None:
    """Return the key of this record as it is stored; None if there is no record with this key, or if the database rejects the key."""
    try:
        row = tx.connection.execute(query.keys.select_existing_keys([key])).first()
    except Exception as error:
        if db_errors.is_no_fault_of_record(error):
            raise
        return None
    return None if row is None else tuple(row)


def _make_unreadable(query: ConditionQuery, tx: Transaction, key: PrimaryKey, error: BaseException) -> Unreadable:
    occurrence = ""
    if query.spec.occurrence:
        try:
            with in_savepoint(tx.connection), running_user_code():
                row = tx.connection.execute(select(*query.spec.occurrence).where(query.keys.has_key_among([key]))).first()
            occurrence = query.occurrences.occurrence_text_of_values(tuple(row)) if row is not None else ""
        except Exception as same:  # the occurrence has no text, for example; the attempt then gets an empty occurrence
            if db_errors.is_no_fault_of_record(same):
                raise
    if isinstance(error, DBAPIError) and _condition_raised_for_a_row(query, error):
        query.exclude_raising_row(key)
        words = _unreadable_message(query, tx, key, error) if db_errors.is_text_encoding_error(error) else why_record_not_evaluable(error)
    else:
        words = _unreadable_message(query, tx, key, error)
    return Unreadable(key, query.keys.record_text(key), occurrence, words)


def _unreadable_message(query: ConditionQuery, tx: Transaction, key: PrimaryKey, error: BaseException) -> str:
    reason = (
        db_errors.database_message(error) if isinstance(error, DBAPIError) else describe_exception(error)
    )  # the text of a DBAPIError would contain the statement too
    return f"its record cannot be read: {reason}{unreadable_columns.describe_unreadable_columns(tx.connection, query, key)}"


def _unreadable_records_that_nothing_blocks(query: ConditionQuery, tx: Transaction, bad: Sequence[Unreadable]) -> list[Unreadable]:
    """Return the unreadable records in `bad` that nothing blocks. Such a record has no attempt, or only a failed attempt of this reaction
    that is to be tried again now.
    """
    if not bad:
        return []
    spec = query.spec
    if tx.air:
        bad = [one for one in bad if not tx.air.must_leave_alone(spec, one.text)]
    found = attempts.attempts_deciding_claim(tx, query, [one.text for one in bad], own=True)
    free, columns = [], spec.occurrence_columns
    for one in bad:
        standing = found.get(one.text, ())
        one.attempt = blocking.find_own_attempt(spec.app, spec.name, one.occurrence, standing, spec.occurrence_columns)
        mine = one.attempt is None or (one.attempt.state is State.FAILED and blocking.is_retry_due(one.attempt, tx.now))
        if (
            mine
            and blocking.find_blocking_attempt(
                spec.app, spec.name, one.occurrence, standing, done_column=True, repeats=spec.repeats, columns=columns
            )
            is None
        ):
            free.append(one)
    return free


def _execute_and_load(tx: Transaction, statement: Any, given: dict[str, Any] | None) -> list[Any]:
    with running_user_code():  # the user's column types and load hooks run here
        return list(tx.session.execute(statement, given).unique().scalars())


def _keys_locked_by_others(query: ConditionQuery, tx: Transaction, missing: set[PrimaryKey]) -> list[PrimaryKey]:
    """Return the keys in `missing` for which a record exists. The caller could not lock these records, so another transaction has locked
    them.
    """
    return [tuple(row) for row in tx.connection.execute(query.keys.select_existing_keys(list(missing)))]


def _add_free_records_to_claim(
    query: ConditionQuery, tx: Transaction, claim: Claim, records: Sequence[Any], bad: Sequence[Unreadable] = (), mine: int | None = None
) -> None:
    """Add the records that no attempt blocks to the claim. The attempts are read by a statement that begins after the records were locked,
    so that the statement sees every earlier commit (hazard 17).
    """
    tx.note_claimed(records, query.mapper.tables)
    if records and not query.keys.texts_find_records:
        _check_record_is_found_by_key(query, tx, query.keys.key_of_record(records[0]))
    claimed_records: list[ClaimedRecord] = []
    more: list[Unreadable] = []
    for record, due in zip(records, due_times(query, tx, records), strict=True):
        key = query.keys.key_of_record(record)
        text = query.keys.record_text(key)
        try:
            occurrence = query.occurrences.occurrence_text(record)
        except (OverflowError, GroundstateError) as error:  # a time outside of the calendar, or a value whose type has no text form
            more.append(Unreadable(key, text, "", f"its occurrence has no text: {error}"))
            continue
        if isinstance(due, OutsideCalendarError):
            more.append(Unreadable(key, text, occurrence, f"its due time cannot be computed: {due}"))
        else:
            claimed_records.append(ClaimedRecord(key, text, occurrence, record, due=due))
    claim.records = _drop_blocked_records(query, tx, claimed_records, mine)
    claim.unreadable = _unreadable_records_that_nothing_blocks(query, tx, [*bad, *more])


def _drop_blocked_records(query: ConditionQuery, tx: Transaction, records: list[ClaimedRecord], mine: int | None) -> list[ClaimedRecord]:
    spec = query.spec
    if tx.air:
        records = [claimed for claimed in records if not tx.air.must_leave_alone(spec, claimed.text)]
    if not records or not _may_attempts_exist(tx):
        return _without_slowed_records(query, tx, records)
    found = attempts.attempts_deciding_claim(tx, query, [claimed.text for claimed in records])
    free, kept_out_by = [], spec.blocking_arguments
    for claimed in records:
        standing = found.get(claimed.text, ())
        if blocking.find_blocking_attempt(spec.app, spec.name, claimed.occurrence, standing, **kept_out_by):
            continue
        own = blocking.find_own_attempt(spec.app, spec.name, claimed.occurrence, standing, spec.occurrence_columns)
        # An expired record does not wait for the retry time of an earlier failure, unless its `expired` handler is what failed.
        waits_no_more = query.takes_expired_records and own is not None and own.why != EXPIRED_HANDLER_FAILED
        tried_now = own is not None and own.state is State.FAILED and (blocking.is_retry_due(own, tx.now) or waits_no_more)
        if own is None or tried_now or (own.call == mine and own.state is State.BEGUN):
            claimed.attempt = own
            free.append(claimed)
    return _without_slowed_records(query, tx, free)


def _check_record_is_found_by_key(query: ConditionQuery, tx: Transaction, key: PrimaryKey) -> None:
    """Check that the database finds a record by its key, and raise KeyRefused if it does not. The caller does this with the first record of
    a table that was empty when the worker started.
    """
    why = key_refusal.find_key_refusal(tx.connection, query, key)
    if why is not None:
        raise why
    query.keys.note_texts_find_records()


def _without_slowed_records(query: ConditionQuery, tx: Transaction, records: list[ClaimedRecord]) -> list[ClaimedRecord]:
    """Leave out the records that have to wait because they go round in a ring, and return all others.

    A ring consists of reactions that make each other's conditions hold again and again. A record with a failed attempt is not left out,
    since it has waited for its retry time already.
    """
    if not tx.rings:
        return records
    return [claimed for claimed in records if claimed.attempt is not None or not tx.rings.must_wait(query, claimed.key, claimed.occurrence)]


def due_times(query: ConditionQuery, tx: Transaction, records: Sequence[Any]) -> list[datetime | OutsideCalendarError | None]:
    """Return one item per record, in the order of `records`: the due time; None if the reaction or the record has no due time; or, if the
    due time cannot be computed, an OutsideCalendarError that says why.
    """
    timing, due = query.timing, query.spec.due
    if timing is None or due is None:
        return [None] * len(records)
    if due.attribute is not None:
        return [_due_time(timing, getattr(record, due.attribute.key)) for record in records]
    found = [query.keys.key_of_record(record) for record in records]
    bases = _values_for_due_times(query, tx, found) if found else {}
    return [_due_time(timing, bases.get(key)) for key in found]


def _due_time(timing: Timing, base: object) -> datetime | OutsideCalendarError | None:
    if isinstance(base, OutsideCalendarError):
        return base
    try:
        return timing.due_time_for(base)
    except OutsideCalendarError as error:
        return error


def _values_for_due_times(query: ConditionQuery, tx: Transaction, keys: Sequence[PrimaryKey]) -> dict[PrimaryKey, object]:
    """Return a dict from key to the value from which the record's due time is computed. Call it if `due` is an SQL expression.

    If Python cannot represent a value, the batch is halved until the value is found. The dict has an OutsideCalendarError in its place.
    """
    try:
        return {tuple(row[:-1]): row[-1] for row in tx.connection.execute(query.selects.select_base_times(keys))}
    except Exception as error:
        if not db_errors.is_conversion_error(error):
            raise
        if len(keys) == 1:
            return {keys[0]: OutsideCalendarError(f"{type(error).__name__}: {error}")}
    half = len(keys) // 2
    return _values_for_due_times(query, tx, keys[:half]) | _values_for_due_times(query, tx, keys[half:])


def _may_attempts_exist(tx: Transaction) -> bool:
    """Return whether any attempt may exist. On PostgreSQL a query decides: another transaction may just have committed the first
    attempt.
    """
    return tx.some_attempts or (tx.database.locks_rows and tx.connection.execute(attempts.ANY).first() is not None)


@dataclass
class AttemptWithFacts:
    """An attempt as it is in the table now (`attempt` is None if its row is gone), and the facts about its record."""

    attempt: Attempt | None
    facts: Facts
    record: Any
    key: PrimaryKey
    blocked: Attempt | None
    due: datetime | None = None  # when the occurrence became due; None if it has no due time
    in_the_air: bool = False  # whether this worker has a call in flight for the record, whatever the table says
    early: bool = False  # whether the due time is in the future, since it was moved or the clock was set back
    condition: bool = False  # whether the condition holds now, for whichever occurrence
    unreadable: str | None = None  # why the record cannot be loaded (then `record` is None, and `facts` are not known); None if it can


@dataclass
class AttemptsUnderLock:
    """Attempts, with the facts on which their next states depend, read while their records are locked."""

    standing: dict[attempts.Identity, AttemptWithFacts] = field(default_factory=dict)
    # attempts whose record another transaction has locked: these attempts are read again later
    busy: set[attempts.Identity] = field(default_factory=set)
    # maps an attempt to the reason why its record is unreadable
    unreadable: dict[attempts.Identity, tuple[Attempt | None, str]] = field(default_factory=dict)
    # attempts that are in `unreadable` because the condition raises an error for their record
    unasked: set[attempts.Identity] = field(default_factory=set)

    def attempt_of_unreadable_record(self, identity: attempts.Identity) -> AttemptWithFacts | None:
        """Return the attempt if its record is unreadable; None if its record was read. An unreadable record counts as existing, and its
        condition as true, so that the attempt is not deleted.
        """
        if identity not in self.unreadable:
            return None
        attempt, words = self.unreadable[identity]
        return AttemptWithFacts(attempt, Facts(exists=True, holds=True), None, (), None, unreadable=words)


def lock_and_read_attempts(query: ConditionQuery, tx: Transaction, identities: Sequence[attempts.Identity]) -> AttemptsUnderLock:
    """Lock the records of these attempts, then read the attempts and the facts about their records. A record that another transaction has
    locked is skipped.
    """
    spec = query.spec
    result = AttemptsUnderLock()
    texts = {identity[2] for identity in identities}
    keys_of = {
        text: key for text in texts if (key := query.keys.key_from_text_or_none(text)) is not None
    }  # a text that is no valid key belongs to no record
    found: dict[str, tuple[Any, bool]] = {}
    busy: set[str] = set()
    bad: dict[str, str] = {}
    keys = list(keys_of.values())
    if keys:
        locked = keys
        if tx.database.locks_rows and not query.selects.reads_only_own_row:
            locked = [tuple(row) for row in tx.connection.execute(query.keys.select_given_keys, query.keys.key_parameters(keys))]
        if locked:
            for record, holds in _load_with_condition(query, tx, locked, bad):
                found[query.keys.record_text(query.keys.key_of_record(record))] = (record, bool(holds))
            tx.note_claimed([record for record, _ in found.values()], query.mapper.tables)
        if tx.database.locks_rows and len(found) < len(keys):
            missing = {key for text, key in keys_of.items() if text not in found and text not in bad}
            busy = {query.keys.record_text(key) for key in _keys_locked_by_others(query, tx, missing)}
    # The transaction that has locked a busy record may lock the record's attempts too. Waiting for those locks could cause a deadlock.
    ours = [text for text in texts if text not in busy]
    by_record = attempts.attempts_deciding_claim(tx, query, ours, lock=True)
    due_now = _due_times_by_text(query, tx, [record for record, _ in found.values()])
    kept_out_by = spec.blocking_arguments
    for identity in identities:
        text, occurrence = identity[2], identity[3]
        if text in busy:
            result.busy.add(identity)
            continue
        if text in bad:
            result.unreadable[identity] = (attempts.find_by_identity(by_record, identity), bad[text])
            result.unasked |= {identity} if bad[text].startswith(OF_ONE) else set()
            continue
        record, holds = found.get(text, (None, False))
        same = record is not None and is_present_occurrence(query, occurrence, record)
        by_now = due_now.get(text)
        undue = by_now if isinstance(by_now, OutsideCalendarError) else None
        now_due = None if isinstance(by_now, OutsideCalendarError) else by_now
        due = query.occurrences.due_time_in_occurrence(occurrence) or now_due
        late = due is not None and spec.due is not None and spec.due.is_expired(due, tx.now)
        facts = Facts(exists=record is not None, holds=holds and same, expired=late)
        others = blocking.find_blocking_attempt(spec.app, spec.name, occurrence, by_record.get(text, ()), **kept_out_by)
        standing = attempts.find_by_identity(by_record, identity)
        if undue is not None and standing is not None and standing.state is State.FAILED and facts.holds:
            # The failed attempt cannot be retried: nobody knows whether the record is due, since its due time cannot be computed.
            result.unreadable[identity] = standing, f"its due time cannot be computed: {undue}"
            continue
        early = now_due is not None and now_due > tx.now
        flies = tx.air is not None and tx.air.must_leave_alone(spec, text)
        result.standing[identity] = AttemptWithFacts(standing, facts, record, keys_of.get(text, ()), others, due, flies, early, holds)
    return result


def _due_times_by_text(query: ConditionQuery, tx: Transaction, records: Sequence[Any]) -> dict[str, datetime | OutsideCalendarError]:
    if query.timing is None:
        return {}
    texts = [query.keys.record_text(query.keys.key_of_record(record)) for record in records]
    return {text: due for text, due in zip(texts, due_times(query, tx, records), strict=True) if due is not None}


def is_present_occurrence(query: ConditionQuery, occurrence: str, record: Any) -> bool:
    """Return whether the text `occurrence` stands for the record's present occurrence (the part of its state that makes it a new event)."""
    try:
        return query.occurrences.means_occurrence(occurrence, query.occurrences.occurrence_text(record))
    except (OverflowError, GroundstateError):  # an occurrence without a text form is stored in its attempt as an empty text
        return occurrence == ""


def load_with_condition(query: ConditionQuery, tx: Transaction, keys: Sequence[PrimaryKey]) -> list[Any]:
    """Return one row for each of these records: the loaded record, and whether its condition holds. Records that cannot be loaded are left
    out. The caller's transaction must have locked the records.
    """
    return _load_with_condition(query, tx, keys, {})


def _load_with_condition(query: ConditionQuery, tx: Transaction, keys: Sequence[PrimaryKey], bad: dict[str, str]) -> list[Any]:
    """Return one row for each of these records: the loaded record, and whether its condition holds. For a record that cannot be loaded, put
    the reason into `bad` instead, under the text of the record's key.
    """
    try:
        with _savepoint_for_raising_condition(query, tx), running_user_code():
            return list(tx.session.execute(query.selects.select_given_records_with_truth, query.keys.key_parameters(keys)).unique())
    except Exception as error:
        in_vain = _condition_raised_for_a_row(query, error)
        if not (in_vain or db_errors.is_record_load_error(error)):
            raise
        if len(keys) == 1 and _stored_key(query, tx, keys[0]) is None:
            return []
        if len(keys) == 1 and in_vain and isinstance(error, DBAPIError):
            query.exclude_raising_row(keys[0])
            words = (
                _unreadable_message(query, tx, keys[0], error)
                if db_errors.is_text_encoding_error(error)
                else why_record_not_evaluable(error)
            )
            bad[query.keys.record_text(keys[0])] = words
            return []
        if len(keys) == 1:
            bad[query.keys.record_text(keys[0])] = _unreadable_message(query, tx, keys[0], error)
            return []
    half = len(keys) // 2
    return _load_with_condition(query, tx, keys[:half], bad) + _load_with_condition(query, tx, keys[half:], bad)
