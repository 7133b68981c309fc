"""Carries out reactions without a call: a batch of records in one transaction. Unless something fails, no row of groundstate's own tables
is written.

A crash rolls the batch back; its records still meet their condition, and are found again. If a handler raises, `failed_records` finds the
failing records, and the batch runs again with a savepoint for each failing record, or for every record if the search found none. Only
failing records get a failed attempt.

If a handler meets a lock of another transaction (PostgreSQL), its record fails no try: the records of the batch run in a transaction each,
in which statements wait only shortly for locks, and the records that meet the lock again are left for later.

If handlers are slow, the batch ends early, so that other reactions need not wait; the remaining records stay in the backlog.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from groundstate.engine.handle import failed_records, in_order, run_handler
from groundstate.engine.handle.recheck_conditions import RecheckBeforeHandlers, Work, keys_still_to_handle
from groundstate.engine.handle.run_handler import HandlerFailed
from groundstate.engine.rows import attempts
from groundstate.engine.rows.attempt_log import describe_try, log_failed, log_given_up, log_if_held, log_unreadable
from groundstate.engine.rows.claim import Claim, ClaimedRecord, Unreadable, claim_by_condition, claim_by_keys
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql import db_errors, group_scan, lock_waits, related_rows
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.db_errors import RelatedRow, TransactionEnded
from groundstate.engine.sql.pass_cursors import PassCursor
from groundstate.engine.sql.record_cycles import TracedTransaction
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.sql.safe_text import safe_str
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules import attempt as rules
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.policy import Retry
from groundstate.rules.retry import is_last_try_used, next_try_at, reason_of_last_try
from groundstate.values.answers import Failure

AROUND = 8  # the most statements that a batch sends besides those of its handlers; their round trips do not count as time spent on records


@dataclass
class Feed:
    """Says which records a batch is to claim (lock and check): the records with these `keys`; without `keys`, the next ones of the backlog
    after `cursor`.
    """

    keys: Sequence[PrimaryKey] | None = None
    cursor: PassCursor | None = None
    limit: int = 500
    crowded: bool = False
    alone: bool = False  # in careful mode: whether the batch is one record that may have killed a worker, and nothing else runs now
    mine: int | None = None  # in careful mode: the call number of the begun attempts whose records may be claimed; otherwise None
    claim_s: float = math.inf  # seconds: the time limit of the query that finds and locks the records
    hold_s: float = math.inf  # seconds from the start of the first handler after which no further handler starts
    first: frozenset[RelatedRow] = related_rows.NO_ROWS  # other rows that the handlers change, to be locked before the records
    lock_wait: timedelta | None = None  # how long a statement waits for a lock; None: as long as the store lets it
    left_out: frozenset[PrimaryKey] = frozenset()  # records whose handler met a lock lately, which this batch leaves alone
    apart: bool = False  # whether each record runs in a transaction of its own from the start, since its handler met a lock before

    def claim_records(self, query: ConditionQuery, tx: Transaction) -> Claim:
        tx.lock_first(self.first)
        with tx.database.limit_statement(tx.connection, self.claim_s):
            if self.keys is not None:
                claim = claim_by_keys(query, tx, self.keys, mine=self.mine)
            else:
                claim = claim_by_condition(query, tx, self.cursor, self.limit, crowded=self.crowded)
        if self.left_out:
            claim.records = [claimed for claimed in claim.records if claimed.key not in self.left_out]
        if query.spec.in_order is not None:
            place = in_order.find_places_of_records_in_turn(tx, query, [(claimed.key, claimed.record) for claimed in claim.records])
            claim.records = sorted((claimed for claimed in claim.records if claimed.key in place), key=lambda claimed: place[claimed.key])
        return claim


@dataclass
class Done:
    """The results of one batch."""

    read: int = 0
    claimed: int = 0  # how many records were claimed, without those left in the backlog
    done: int = 0
    failed: int = 0
    wrong: dict[PrimaryKey, str] = field(default_factory=dict)  # the error text for each record whose handler failed, by the record's key
    # keys of records whose handler met a lock of another transaction; none of them counts as a failure
    met_locks: list[PrimaryKey] = field(default_factory=list)
    lock_error: DBAPIError | None = None  # the lock timeout of the last record in `met_locks`
    cursor: PassCursor | None = None
    busy: list[PrimaryKey] = field(default_factory=list)
    # keys of claimed records that were left unchanged in the backlog, since no time was left for them or they must wait
    let_go: list[PrimaryKey] = field(default_factory=list)
    cut: bool = False  # whether records were left in the backlog because handlers took long
    again: bool = False  # whether the batch failed at first and ran again, so that it took longer than usual
    rows_s: float = 0.0  # seconds spent on handlers and their writes, without BEGIN, COMMIT and the query that locks the records
    next_at: datetime | None = None  # the earliest retry time of the failed records; None if none is retried
    last_due: datetime | None = None  # the latest due time of the claimed records; None if they have no due time
    # in careful mode: whether some attempts that were begun for this batch may be left, since their records were not carried out
    left_begun: bool = False
    works: Sequence[Work] = ()  # the records that were carried out together, without savepoints
    watch: TracedTransaction | None = None  # what record_cycles.py traces of this batch; None if it traces none of the records

    def add(self, other: Done) -> None:
        """Add the results of another part of the same batch to these results."""
        self.claimed += other.claimed
        self.done += other.done
        self.failed += other.failed
        self.wrong |= other.wrong
        self.let_go += other.let_go
        self.cut |= other.cut
        self.rows_s += other.rows_s
        self.next_at = min(filter(None, (self.next_at, other.next_at)), default=None)
        self.last_due = max(filter(None, (self.last_due, other.last_due)), default=None)


def carry_out_batch(incarnation: Incarnation, query: ConditionQuery, feed: Feed) -> Done:
    """Carry out one batch of records, and return its results. If a record or its handler fails, write a failed attempt for the record; an
    error of the database itself is raised.
    """
    return related_rows.redo_lost_updates(lambda first: _run_batch_and_rerun_if_failed(incarnation, query, replace(feed, first=first)))


def _run_batch_and_rerun_if_failed(incarnation: Incarnation, query: ConditionQuery, feed: Feed) -> Done:
    if feed.apart and feed.keys is not None:
        return replace(_run_in_own_transactions(incarnation, query, feed, feed.keys), again=True)
    try:
        return _run_batch_together(incarnation, query, feed)
    except _AnyHandlerFailed as failed:
        return _rerun_after_failure(incarnation, query, feed, failed)


def _rerun_after_failure(incarnation: Incarnation, query: ConditionQuery, feed: Feed, failed: _AnyHandlerFailed) -> Done:
    again = replace(feed, keys=failed.keys)
    key = None if failed.ended is None else failed.ended.key
    if key is not None:  # the record's handler ended the transaction, so its writes may be committed: the handler must not run again now
        done = _write_same_failure_for_all(
            incarnation, query, replace(again, keys=[key]), HandlerFailed(safe_str(failed.ended), failed.ended)
        )
        done.let_go = [other for other in failed.keys if other != key]
        return replace(done, cursor=failed.cursor, read=failed.read, again=True)
    found: Done | None = None
    if not failed.met_lock or feed.mine is not None:
        try:
            found = _rerun_with_failing_apart(incarnation, query, again, failed) or _claim_and_run_in_savepoints(incarnation, query, again)
        except SQLAlchemyError as error:
            if db_errors.is_no_fault_of_record(error) and not _may_run_after_lock_timeout(again, error):
                raise
    done = found or _run_in_own_transactions(incarnation, query, again, failed.keys)
    return replace(done, cursor=failed.cursor, read=failed.read, again=True)


def _rerun_with_failing_apart(incarnation: Incarnation, query: ConditionQuery, feed: Feed, failed: _AnyHandlerFailed) -> Done | None:
    """Run the batch again: the failing records in savepoints, all other records together. Return None if the failing records cannot be
    found, or if the reaction has `in_order`, so that every record must run in a savepoint.
    """
    if len(failed.keys) < 2 or query.spec.in_order is not None:
        return None
    done = _run_with_some_apart(incarnation, query, feed, failed.apart) if failed.apart else None
    if done is not None:
        return done
    looked = _find_failing_records(incarnation, query, feed)
    told = [key for key in failed.keys if key in looked.failed or key in looked.others]
    if not looked.failed and len(told) == len(failed.keys):
        return None
    done = _run_with_some_apart(incarnation, query, replace(feed, keys=told), looked.failed)
    if done is not None:
        done.let_go += [key for key in failed.keys if key not in looked.failed and key not in looked.others]
    return done


def _find_failing_records(incarnation: Incarnation, query: ConditionQuery, feed: Feed) -> failed_records.SearchResult:
    spent: set[PrimaryKey] = set()
    try:
        with incarnation.open_transaction(wait=feed.lock_wait) as tx:
            claim = feed.claim_records(query, tx)
            spent |= {claimed.key for claimed in claim.records if _is_last_try_used(query, claimed, tx.now)}
            works = [_make_work(tx, claimed) for claimed in claim.records if claimed.key not in spent]
            raise failed_records.find_failing_records(query, tx, query.spec.handler, works, keys_still_to_handle, feed.hold_s)
    except failed_records.SearchResult as looked:
        return failed_records.SearchResult(looked.failed | spent, looked.others)


def _run_with_some_apart(incarnation: Incarnation, query: ConditionQuery, feed: Feed, apart: AbstractSet[PrimaryKey]) -> Done | None:
    """Run the batch again: first all records that are not in `apart` together, then each record in `apart` in a savepoint. Return None if a
    record that is not in `apart` fails too.
    """
    try:
        with incarnation.open_transaction(wait=feed.lock_wait) as tx:
            claim = feed.claim_records(query, tx)
            apart_claim = replace(claim, records=[claimed for claimed in claim.records if claimed.key in apart], unreadable=[])
            claim.records = [claimed for claimed in claim.records if claimed.key not in apart]
            done = _run_claimed_records_together(incarnation, query, tx, claim, feed.hold_s)
            done.add(_run_in_savepoints(incarnation, query, tx, apart_claim, feed.hold_s))
    except _AnyHandlerFailed:
        return None
    if done.works:
        incarnation.rings.count_carried_out(query, done.works, done.watch)
    return done


def _run_in_own_transactions(incarnation: Incarnation, query: ConditionQuery, feed: Feed, keys: Sequence[PrimaryKey]) -> Done:
    """Carry out each record in a transaction of its own. Call it after an error against which savepoints do not help: the database refused
    the COMMIT (deferred constraints), the connection ended, or a handler met a lock of another transaction.
    """
    total = Done()
    began = incarnation.clock.monotonic()
    wait = lock_waits.SHORT_WAIT if feed.mine is None and incarnation.database.locks_rows else None
    for number, key in enumerate(keys):
        total.cut = number > 0 and incarnation.clock.monotonic() - began >= feed.hold_s
        if total.cut or len(total.met_locks) >= lock_waits.MET_MOST:
            total.let_go += keys[number:]
            break
        feed_of_key, claim, started = replace(feed, keys=[key]), Claim(), incarnation.clock.monotonic()
        try:
            with incarnation.open_transaction(wait=wait) as tx:
                claim = feed_of_key.claim_records(query, tx)
                done = _run_in_savepoints(incarnation, query, tx, claim, feed.hold_s)
        except SQLAlchemyError as error:
            if claim.records and isinstance(error, DBAPIError) and _may_run_after_lock_timeout(feed, error):
                total.met_locks.append(key)
                total.lock_error = error
                began += incarnation.clock.monotonic() - started  # the wait held no lock that others need
                continue
            if db_errors.is_no_fault_of_record(error):
                raise
            refused = safe_str(getattr(error, "orig", None) or error)
            words = refused if isinstance(error, TransactionEnded) else f"its commit was refused: {refused}"
            done = _write_same_failure_for_all(incarnation, query, feed_of_key, HandlerFailed(words, error))
        total.add(done)
    return total


def _may_run_after_lock_timeout(feed: Feed, error: SQLAlchemyError) -> bool:
    """Return whether this error is a lock timeout after which the records run in a transaction each. In careful mode they do not."""
    return feed.mine is None and db_errors.is_lock_timeout(error)


def _write_same_failure_for_all(incarnation: Incarnation, query: ConditionQuery, feed: Feed, failure: HandlerFailed) -> Done:
    with incarnation.open_transaction() as tx:
        claim = feed.claim_records(query, tx)
        done = Done(claimed=len(claim.records))
        for claimed in claim.records:
            _write_failure(incarnation, query, tx, claimed, failure, done)
    return done


class _AnyHandlerFailed(Exception):
    """Raised if a handler of the batch failed. The batch is then rolled back and runs again with savepoints.

    Attributes:
        apart: The keys of the failing records; empty if they are not known.
        ended: The error that says that a handler ended the transaction; None if no handler did.
        met_lock: Whether a handler, or the write of its changes, waited too long for a lock of another transaction.
    """

    def __init__(
        self, claim: Claim, apart: Collection[PrimaryKey] = (), ended: TransactionEnded | None = None, *, met_lock: bool = False
    ) -> None:
        super().__init__()
        self.ended = ended
        self.met_lock = met_lock
        self.keys = [claimed.key for claimed in claim.records]
        self.apart = frozenset(apart)
        self.cursor = claim.cursor
        self.read = claim.read


def _run_batch_together(incarnation: Incarnation, query: ConditionQuery, feed: Feed) -> Done:
    claim: Claim | None = None
    try:
        with incarnation.open_transaction(wait=feed.lock_wait) as tx:
            claim = feed.claim_records(query, tx)
            tx.touched.of_a_backlog = feed.keys is None
            done = _run_claimed_records_together(incarnation, query, tx, claim, feed.hold_s)
    except (DBAPIError, TransactionEnded) as error:  # the COMMIT was refused, or a handler ended the transaction
        if claim is not None and claim.records and _may_run_after_lock_timeout(feed, error):
            raise _AnyHandlerFailed(claim, met_lock=True) from error
        if db_errors.is_no_fault_of_record(error) or claim is None or not claim.records:
            raise
        if db_errors.is_caused_by_value(error) and not query.in_turn:
            raise  # the refused value may be in a row that this batch did not claim
        raise _AnyHandlerFailed(claim, ended=error if isinstance(error, TransactionEnded) else None) from error
    if done.works:
        incarnation.rings.count_carried_out(query, done.works, done.watch)
    return done


def _run_claimed_records_together(incarnation: Incarnation, query: ConditionQuery, tx: Transaction, claim: Claim, hold_s: float) -> Done:
    done = Done(read=claim.read, cursor=claim.cursor, busy=claim.busy, claimed=len(claim.records), last_due=_latest_due_time(claim))
    done.failed = fail_unreadable_records(incarnation, query, tx, claim.unreadable)
    if not claim.records:
        return done
    spent = [claimed.key for claimed in claim.records if _is_last_try_used(query, claimed, tx.now)]
    if spent:
        raise _AnyHandlerFailed(claim, spent)  # these records have no try left: their `gave_up` handler must run in savepoints
    done.watch = incarnation.rings.note_conditions_before(query, tx.connection, claim.records)
    began = incarnation.clock.monotonic()
    try:
        works = _run_handlers(query, tx, claim, done, began + hold_s)
        new = run_handler.write_changes(query, tx, works)
    except Exception as error:
        if db_errors.is_no_fault_of_record(error) or isinstance(error, TransactionEnded):
            raise
        # the session refuses the rollback by which SQLAlchemy ends a failed flush, so `error` may be that refusal
        raise _AnyHandlerFailed(claim, met_lock=tx.failed is not None and db_errors.is_lock_timeout(tx.failed)) from error
    still = run_handler.keys_without_progress(query, tx, works, new)
    if still:
        raise _AnyHandlerFailed(claim, still)
    done.rows_s = incarnation.clock.monotonic() - began - AROUND * tx.asked_s
    attempts.delete_attempts(tx.database, tx.connection, [claimed.attempt for claimed in claim.records if claimed.attempt is not None])
    if done.watch is not None:
        done.watch.mine = [step for step in done.watch.mine if step[1] not in done.let_go]
        incarnation.rings.note_conditions_after(done.watch, tx.connection)
    done.done = len(works)
    done.works = works
    tx.touched.add(query.entity, [work.key for work in works], new)
    return done


def _run_handlers(query: ConditionQuery, tx: Transaction, claim: Claim, done: Done, until_s: float) -> list[Work]:
    """Run the handler on each claimed record, and return the works whose handler ran. A record is left in the backlog if no time is left,
    if an earlier handler made its condition false, or if it must wait for a record with the same `in_order` value.
    """
    works = [_make_work(tx, claimed) for claimed in claim.records]
    recheck = RecheckBeforeHandlers(query, tx, works, keys_still_to_handle, _lines_of_records(query, claim))
    runs = run_handler.run_for_each_record(query, tx, query.spec.handler, recheck, until_s)
    _leave_rest_in_backlog(claim, done, runs.number_reached)
    if runs.passed_over:  # these records stay in the backlog, and are found again if their conditions hold
        passed_over = {work.key for work in runs.passed_over}
        done.let_go += passed_over
        claim.records = [claimed for claimed in claim.records if claimed.key not in passed_over]
    return runs.works


def _leave_rest_in_backlog(claim: Claim, done: Done, reached: int) -> None:
    """Leave the claimed records in the backlog, except for the first `reached` ones. Call it when no time is left."""
    done.let_go += [claimed.key for claimed in claim.records[reached:]]
    done.cut |= reached < len(claim.records)
    claim.records = claim.records[:reached]
    done.claimed = reached


def _lines_of_records(query: ConditionQuery, claim: Claim) -> list[object]:
    """Return one value for each claimed record. Records with the same `in_order` value have equal values; a record without an `in_order`
    value gets a number of its own. Return an empty list if the reaction has no `in_order`.
    """
    if query.spec.in_order is None:
        return []
    asked = group_scan.group_statements(query)
    return [asked.group_text_of(claimed.record) or number for number, claimed in enumerate(claim.records)]


def _latest_due_time(claim: Claim) -> datetime | None:
    return max((claimed.due for claimed in claim.records if claimed.due is not None), default=None)


def _claim_and_run_in_savepoints(incarnation: Incarnation, query: ConditionQuery, feed: Feed) -> Done:
    with incarnation.open_transaction(wait=feed.lock_wait) as tx:
        return _run_in_savepoints(incarnation, query, tx, feed.claim_records(query, tx), feed.hold_s)


def _run_in_savepoints(incarnation: Incarnation, query: ConditionQuery, tx: Transaction, claim: Claim, hold_s: float) -> Done:
    """Run the handler on each claimed record, each in a savepoint of its own, and write a failed attempt for each record that fails."""
    done = Done(read=claim.read, cursor=claim.cursor, busy=claim.busy, claimed=len(claim.records), last_due=_latest_due_time(claim))
    done.failed = fail_unreadable_records(incarnation, query, tx, claim.unreadable)
    finished: list[Attempt] = []
    lines = _lines_of_records(query, claim) or range(len(claim.records))
    ended: set[object] = set()  # `in_order` values whose remaining records must wait for the next batch
    monotonic = incarnation.clock.monotonic
    began = monotonic()
    for number, (claimed, name) in enumerate(zip(claim.records, lines, strict=True)):
        if number and monotonic() - began >= hold_s:
            _leave_rest_in_backlog(claim, done, number)
            break
        work = _make_work(tx, claimed)
        if name in ended or (tx.handlers.any_ran and not keys_still_to_handle(query, tx, [work])):
            ended.add(name)
            done.let_go.append(claimed.key)
            continue
        try:
            _run_handler_or_gave_up(incarnation, query, tx, claimed, work)
        except HandlerFailed as failure:
            if failure.cause is not None and db_errors.is_no_fault_of_record(failure.cause):
                raise failure.cause from None
            _write_failure(incarnation, query, tx, claimed, failure, done)
            ended.add(name)
        else:
            done.done += 1
            tx.touched.add(query.entity, [claimed.key], None)
            if claimed.attempt is not None:
                finished.append(claimed.attempt)
    done.rows_s = monotonic() - began
    attempts.delete_attempts(tx.database, tx.connection, finished)
    return done


def _run_handler_or_gave_up(incarnation: Incarnation, query: ConditionQuery, tx: Transaction, claimed: ClaimedRecord, work: Work) -> None:
    """Run the ordinary handler on one record, or the `gave_up` handler if the record has no try left."""
    if not _is_last_try_used(query, claimed, tx.now):
        run_handler.run_in_savepoint(query, tx, query.spec.handler, work)
        return
    spec, attempt = query.spec, claimed.attempt
    if attempt is None or spec.gave_up is None:
        raise HandlerFailed(reason_of_last_try(spec.retry, 0 if attempt is None else attempt.failures))
    failure = Failure(attempt.error or "", attempt.failures, attempt.since)
    run_handler.run_in_savepoint(query, tx, spec.gave_up, replace(work, arguments=(failure,)))
    log_given_up(incarnation, attempt)


def _is_last_try_used(query: ConditionQuery, claimed: ClaimedRecord, now: datetime) -> bool:
    """Return whether this record has no try left, so that `gave_up` runs. For the query of expired records, always return False: these
    records get the `expired` handler, however often they were tried.
    """
    if query.takes_expired_records:
        return False
    return claimed.attempt is not None and is_last_try_used(query.spec.retry, claimed.attempt.failures, claimed.attempt.since, now)


def _make_work(tx: Transaction, claimed: ClaimedRecord) -> Work:
    return Work(claimed.key, claimed.record, claimed.occurrence, (), {"ctx": tx.context_for(due=claimed.due)})


def _write_failure(
    incarnation: Incarnation, query: ConditionQuery, tx: Transaction, claimed: ClaimedRecord, failure: HandlerFailed, done: Done
) -> None:
    spec = query.spec
    error = incarnation.shorten(failure.error)
    before = claimed.attempt or attempts.new_attempt_of_record(query, claimed.text, claimed.occurrence, incarnation.id, tx.now)
    tried: str | None = None
    if query.takes_expired_records:
        at = next_try_at(spec.retry, before.failures + 1, tx.now, incarnation.dice.random())
        after = rules.on_expired_handler_failed(before, spec.terms, tx.now, at, error).attempt
    elif _is_last_try_used(query, claimed, tx.now):
        why = reason_of_last_try(spec.retry, before.failures) if spec.gave_up is None else f"its gave_up handler failed: {error}"
        after = rules.hold_attempt(before, why, error=before.error or error).attempt
        tried = "its last try was used"
    else:
        failures = before.failures + 1
        at = next_try_at(spec.retry, failures, tx.now, incarnation.dice.random())
        after = replace(before, state=State.FAILED, failures=failures, next_at=at, error=error)
        if is_last_try_used(spec.retry, failures, before.since, tx.now):
            # No try is left: let the `gave_up` handler run at once, or hold the attempt for a person if there is no such handler.
            why = reason_of_last_try(spec.retry, failures)
            after = replace(after, next_at=tx.now) if spec.gave_up else rules.hold_attempt(after, why).attempt
    done.failed += 1
    done.wrong[claimed.key] = error
    done.next_at = min(filter(None, (done.next_at, after.next_at)), default=None)
    log_failed(incarnation, spec, claimed.text, f"{error}; {tried or describe_try(spec.retry, after, tx.now)}", failure.cause)
    log_if_held(incarnation, after)
    if claimed.attempt is None:
        attempts.insert_attempts(tx, [after])
    else:
        attempts.update_attempts(tx.connection, [(before, after)])


def fail_unreadable_records(incarnation: Incarnation, query: ConditionQuery, tx: Transaction, bad: Sequence[Unreadable]) -> int:
    """Write a failed attempt for each record that cannot be read, so that the batch can go on without it. If no record can be found by its
    key, the attempt is held for a person at once. Return the number of these records.
    """
    new: list[Attempt] = []
    for unreadable in bad:
        before = unreadable.attempt or attempts.new_attempt_of_record(query, unreadable.text, unreadable.occurrence, incarnation.id, tx.now)
        if unreadable.nameless:
            after = rules.hold_attempt(
                replace(before, failures=1, error=incarnation.shorten(unreadable.words)), "no record is found by such a key"
            ).attempt
            log_if_held(incarnation, after)
        else:
            after = attempt_after_failed_read(incarnation, query, before, unreadable.words, tx.now)
        log_unreadable(incarnation, query.spec, unreadable.text, after.error)
        if unreadable.attempt is None:
            new.append(after)
        else:
            attempts.update_attempts(tx.connection, [(before, after)])
    attempts.insert_attempts(tx, new)
    return len(bad)


def attempt_after_failed_read(incarnation: Incarnation, query: ConditionQuery, before: Attempt, words: str, now: datetime) -> Attempt:
    """Return the attempt as it is to be written after its record could not be read: failed, or held for a person after the last try."""
    return attempt_after_failed_try(incarnation, query.spec.terms.retry, before, incarnation.shorten(words), now)


def attempt_after_failed_try(incarnation: Incarnation, retry: Retry, before: Attempt, error: str, now: datetime) -> Attempt:
    """Return the attempt as it is to be written after one more failed try: failed, or held for a person after the last try. Call it only if
    the failed try surely changed nothing.
    """
    failures = before.failures + 1
    at = next_try_at(retry, failures, now, incarnation.dice.random())
    after = replace(before, state=State.FAILED, failures=failures, next_at=at, error=error)
    if is_last_try_used(retry, failures, before.since, now):
        after = rules.hold_attempt(after, reason_of_last_try(retry, failures)).attempt
        log_if_held(incarnation, after)
    return after
