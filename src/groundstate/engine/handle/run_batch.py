"""DB-only reactions: carries out a batch of records in one transaction, and writes no row of ours if all goes well.

A crash rolls back, the rows still satisfy their condition, and the query finds them again. If a handler raises, `failed_records` finds the
failing records, and the batch runs again with a savepoint for each of those, or for all if they cannot be found (never one by one without
that search: 500 rows would be 125,000 runs). Only failing records get a failed attempt.

A slow handler must not keep others waiting for the whole batch: the batch ends early, and records that were not reached stay in the
backlog.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from groundstate.engine.handle import asked_again, failed_records, in_order, run_handler
from groundstate.engine.handle.asked_again import AskedAgain
from groundstate.engine.handle.run_handler import HandlerFailed, Work
from groundstate.engine.rows import attempts, claim
from groundstate.engine.rows.attempt_log import say_failed, say_given_up, say_held, say_unreadable, which_try
from groundstate.engine.rows.claim import Claim, Taken, Unreadable
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql import db_errors, group_scan, related_rows
from groundstate.engine.sql.condition_query import ConditionQuery, Place, PrimaryKey
from groundstate.engine.sql.db_errors import Row, TransactionEnded
from groundstate.engine.sql.record_cycles import Watch
from groundstate.engine.sql.safe_text import text_of
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules import attempt as rules
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.policy import Retry
from groundstate.rules.retry import last_try_used, next_try
from groundstate.values.answers import Failure

AROUND = 8  # statements: at most so many are sent around the handlers; their round trips do not count as time of the records


@dataclass
class Feed:
    """The records that a batch is to claim: these keys, or the next ones of the backlog after a cursor."""

    keys: Sequence[PrimaryKey] | None = None
    cursor: Place | None = None
    limit: int = 500
    crowded: bool = False
    alone: bool = False  # careful mode: the one record of this batch is suspected, and it is its turn
    mine: int | None = None  # careful mode: the call number of the begun attempts that this batch may carry out
    claim_s: float = math.inf  # seconds: the query for matching records is cut off after this
    hold_s: float = math.inf  # seconds: no further handler starts in this transaction after this; records not reached stay in the backlog
    first: frozenset[Row] = related_rows.NO_ROWS  # other rows that handlers change, to be locked before the records

    def claim(self, query: ConditionQuery, tx: Transaction) -> Claim:
        tx.lock_first(self.first)
        with tx.database.limit(tx.connection, self.claim_s):
            if self.keys is not None:
                found = claim.by_keys(query, tx, self.keys, mine=self.mine)
            else:
                found = claim.by_condition(query, tx, self.cursor, self.limit, crowded=self.crowded)
        if query.spec.in_order is not None:
            place = in_order.places_of_records_that_may_go(tx, query, [(one.key, one.record) for one in found.taken])
            found.taken = sorted((one for one in found.taken if one.key in place), key=lambda one: place[one.key])
        return found


@dataclass
class Done:
    """The result of one batch."""

    read: int = 0
    taken: int = 0  # records claimed, without those in `let_go`
    done: int = 0
    failed: int = 0
    wrong: dict[PrimaryKey, str] = field(default_factory=dict)  # key of a record whose handler failed -> error
    cursor: Place | None = None
    busy: list[PrimaryKey] = field(default_factory=list)
    let_go: list[PrimaryKey] = field(default_factory=list)  # records left in the backlog, unchanged, since no time was left for them
    cut: bool = False  # whether records were left in the backlog because handlers took long
    again: bool = False  # whether the batch failed at first and ran again, so that it took longer than usual
    rows_s: float = 0.0  # seconds for the records themselves, without the transaction and the claim
    next_at: datetime | None = None  # the earliest retry time of a failed record
    last_due: datetime | None = None  # the latest due time of the claimed records
    left_begun: bool = False  # careful mode: begun attempts of the batch may exist that were not carried out
    works: Sequence[Work] = ()  # the records carried out together
    watch: Watch | None = None  # set if some of them are watched for a ring

    def add(self, other: Done) -> None:
        """Add the results of other records of the same batch."""
        self.taken += other.taken
        self.done += other.done
        self.failed += other.failed
        self.wrong |= other.wrong
        self.let_go += other.let_go
        self.cut |= other.cut
        self.rows_s += other.rows_s
        self.next_at = min(filter(None, (self.next_at, other.next_at)), default=None)
        self.last_due = max(filter(None, (self.last_due, other.last_due)), default=None)


def carry_out(incarnation: Incarnation, query: ConditionQuery, feed: Feed) -> Done:
    """Carry out one batch. Errors of the database itself are raised; what a record or its handler did wrong is written as a
    failed attempt.
    """
    return related_rows.redo_lost_updates(lambda first: _carry_out(incarnation, query, replace(feed, first=first)))


def _carry_out(incarnation: Incarnation, query: ConditionQuery, feed: Feed) -> Done:
    try:
        return _together(incarnation, query, feed)
    except _AnyHandlerFailed as failed:
        return _after_failure(incarnation, query, feed, failed)


def _after_failure(incarnation: Incarnation, query: ConditionQuery, feed: Feed, failed: _AnyHandlerFailed) -> Done:
    again = replace(feed, keys=failed.keys)
    key = None if failed.ended is None else failed.ended.key
    if key is not None:  # it must not run again now: what it wrote may have been committed
        done = _refused(incarnation, query, replace(again, keys=[key]), HandlerFailed(text_of(failed.ended), failed.ended))
        done.let_go = [one for one in failed.keys if one != key]
        return replace(done, cursor=failed.cursor, read=failed.read, again=True)
    try:
        done = _rerun_with_failing_apart(incarnation, query, again, failed) or _one_by_one(incarnation, query, again)
    except SQLAlchemyError as error:
        if db_errors.transient(error):
            raise
        done = _separately(incarnation, query, again, failed.keys)
    return replace(done, cursor=failed.cursor, read=failed.read, again=True)


def _rerun_with_failing_apart(incarnation: Incarnation, query: ConditionQuery, feed: Feed, failed: _AnyHandlerFailed) -> Done | None:
    """Run the batch again with the failing records apart. None if they cannot be found, or if the reaction has `in_order`, so that its
    records must run one by one.
    """
    if len(failed.keys) < 2 or query.spec.in_order is not None:
        return None
    done = _with_some_apart(incarnation, query, feed, failed.apart) if failed.apart else None
    if done is not None:
        return done
    looked = _look_for_culprits(incarnation, query, feed)
    told = [key for key in failed.keys if key in looked.failed or key in looked.others]
    if not looked.failed and len(told) == len(failed.keys):
        return None
    done = _with_some_apart(incarnation, query, replace(feed, keys=told), looked.failed)
    if done is not None:
        done.let_go += [key for key in failed.keys if key not in looked.failed and key not in looked.others]
    return done


def _look_for_culprits(incarnation: Incarnation, query: ConditionQuery, feed: Feed) -> failed_records.Looked:
    spent: set[PrimaryKey] = set()
    try:
        with incarnation.transaction() as tx:
            found = feed.claim(query, tx)
            spent |= {one.key for one in found.taken if _spent(query, one, tx.now)}
            works = [_work(tx, one) for one in found.taken if one.key not in spent]
            raise failed_records.find_failing_records(query, tx, query.spec.handler, works, asked_again.ready, feed.hold_s)
    except failed_records.Looked as looked:
        return failed_records.Looked(looked.failed | spent, looked.others)


def _with_some_apart(incarnation: Incarnation, query: ConditionQuery, feed: Feed, apart: AbstractSet[PrimaryKey]) -> Done | None:
    """Run the batch again: the records not in `apart` together, then those in `apart` with a savepoint each. None if one of the former
    fails too.
    """
    try:
        with incarnation.transaction() as tx:
            found = feed.claim(query, tx)
            some = replace(found, taken=[one for one in found.taken if one.key in apart], unreadable=[])
            found.taken = [one for one in found.taken if one.key not in apart]
            done = _batch(incarnation, query, tx, found, feed.hold_s)
            done.add(_each(incarnation, query, tx, some, feed.hold_s))
    except _AnyHandlerFailed:
        return None
    if done.works:
        incarnation.rings.carried_out(query, done.works, done.watch)
    return done


def _separately(incarnation: Incarnation, query: ConditionQuery, feed: Feed, keys: Sequence[PrimaryKey]) -> Done:
    """Carry out each record in a transaction of its own, for errors that no savepoint can catch: a COMMIT that is refused (deferred
    constraints), or a lost connection.
    """
    total = Done()
    began = time.monotonic()
    for number, key in enumerate(keys):
        if number and time.monotonic() - began >= feed.hold_s:
            total.let_go += keys[number:]
            total.cut = True
            break
        one = replace(feed, keys=[key])
        try:
            done = _one_by_one(incarnation, query, one)
        except SQLAlchemyError as error:
            if db_errors.transient(error):
                raise
            refused = text_of(getattr(error, "orig", None) or error)
            words = refused if isinstance(error, TransactionEnded) else f"its commit was refused: {refused}"
            done = _refused(incarnation, query, one, HandlerFailed(words, error))
        total.add(done)
    return total


def _refused(incarnation: Incarnation, query: ConditionQuery, feed: Feed, failure: HandlerFailed) -> Done:
    with incarnation.transaction() as tx:
        found = feed.claim(query, tx)
        done = Done(taken=len(found.taken))
        for one in found.taken:
            _write_failure(incarnation, query, tx, one, failure, done)
    return done


class _AnyHandlerFailed(Exception):
    """A handler of the batch failed: the batch is rolled back and runs again with savepoints.

    `apart` are the failing records, if they are known; `ended` is the error if one of them ended the transaction.
    """

    def __init__(self, found: Claim, apart: Collection[PrimaryKey] = (), ended: TransactionEnded | None = None) -> None:
        super().__init__()
        self.ended = ended
        self.keys = [one.key for one in found.taken]
        self.apart = frozenset(apart)
        self.cursor = found.cursor
        self.read = found.read


def _together(incarnation: Incarnation, query: ConditionQuery, feed: Feed) -> Done:
    found: Claim | None = None
    try:
        with incarnation.transaction() as tx:
            found = feed.claim(query, tx)
            tx.touched.of_a_backlog = feed.keys is None
            done = _batch(incarnation, query, tx, found, feed.hold_s)
    except (DBAPIError, TransactionEnded) as error:  # the COMMIT was refused, or a handler ended the transaction
        if db_errors.transient(error) or found is None or not found.taken:
            raise
        if db_errors.of_a_value(error) and not query.in_turn:
            raise  # the value may be in a row that was not claimed
        raise _AnyHandlerFailed(found, ended=error if isinstance(error, TransactionEnded) else None) from error
    if done.works:
        incarnation.rings.carried_out(query, done.works, done.watch)
    return done


def _batch(incarnation: Incarnation, query: ConditionQuery, tx: Transaction, found: Claim, hold_s: float) -> Done:
    done = Done(read=found.read, cursor=found.cursor, busy=found.busy, taken=len(found.taken), last_due=_last_due(found))
    done.failed = fail_unreadable_records(incarnation, query, tx, found.unreadable)
    if not found.taken:
        return done
    spent = [one.key for one in found.taken if _spent(query, one, tx.now)]
    if spent:
        raise _AnyHandlerFailed(found, spent)  # their last try was used, so `gave_up` runs, in savepoints
    done.watch = incarnation.rings.watch(query, tx.connection, found.taken)
    began = time.monotonic()
    try:
        works = _run(query, tx, found, done, began + hold_s)
        new = run_handler.flush_all(query, tx, works)
    except Exception as error:
        if db_errors.transient(error) or isinstance(error, TransactionEnded):
            raise
        raise _AnyHandlerFailed(found) from error
    still = run_handler.without_progress(query, tx, works, new)
    if still:
        raise _AnyHandlerFailed(found, still)
    done.rows_s = time.monotonic() - began - AROUND * tx.asked_s
    attempts.remove(tx.database, tx.connection, [one.attempt for one in found.taken if one.attempt is not None])
    if done.watch is not None:
        done.watch.mine = [step for step in done.watch.mine if step[1] not in done.let_go]
        incarnation.rings.look(done.watch, tx.connection)
    done.done = len(works)
    done.works = works
    tx.touched.add(query.entity, [work.key for work in works], new)
    return done


def _run(query: ConditionQuery, tx: Transaction, found: Claim, done: Done, until_s: float) -> list[Work]:
    """Run the handlers of a batch. A record is left out where the handler of an earlier one made its condition false, or may have changed
    it within a line of `in_order`.
    """
    works = [_work(tx, one) for one in found.taken]
    again = AskedAgain(query, tx, works, asked_again.ready, _lines(query, found))
    ran = run_handler.run_each(query, tx, query.spec.handler, again, until_s)
    _let_go(found, done, ran.reached)
    if ran.passed_over:  # they stay in the backlog if their conditions still hold, as in a line
        passed_over = {work.key for work in ran.passed_over}
        done.let_go += passed_over
        found.taken = [one for one in found.taken if one.key not in passed_over]
    return ran.works


def _let_go(found: Claim, done: Done, reached: int) -> None:
    """Leave all but the first `reached` of the claimed records in the backlog, since no time was left for the others."""
    done.let_go += [one.key for one in found.taken[reached:]]
    done.cut |= reached < len(found.taken)
    found.taken = found.taken[:reached]
    done.taken = reached


def _lines(query: ConditionQuery, found: Claim) -> list[object]:
    """Return for each claimed record the line (value of `in_order`) that it is in; a record without one is a line by itself."""
    if query.spec.in_order is None:
        return []
    asked = group_scan.statements(query)
    return [asked.text_of(one.record) or number for number, one in enumerate(found.taken)]


def _last_due(found: Claim) -> datetime | None:
    return max((one.due for one in found.taken if one.due is not None), default=None)


def _one_by_one(incarnation: Incarnation, query: ConditionQuery, feed: Feed) -> Done:
    with incarnation.transaction() as tx:
        return _each(incarnation, query, tx, feed.claim(query, tx), feed.hold_s)


def _each(incarnation: Incarnation, query: ConditionQuery, tx: Transaction, found: Claim, hold_s: float) -> Done:
    """Run the handler on each claimed record, with a savepoint for each."""
    done = Done(read=found.read, cursor=found.cursor, busy=found.busy, taken=len(found.taken), last_due=_last_due(found))
    done.failed = fail_unreadable_records(incarnation, query, tx, found.unreadable)
    finished: list[Attempt] = []
    lines = _lines(query, found) or range(len(found.taken))
    ended: set[object] = set()  # lines whose next records must wait
    began = time.monotonic()
    for number, (one, name) in enumerate(zip(found.taken, lines, strict=True)):
        if number and time.monotonic() - began >= hold_s:
            _let_go(found, done, number)
            break
        work = _work(tx, one)
        if name in ended or (tx.handlers.any_ran and not asked_again.ready(query, tx, [work])):
            ended.add(name)
            done.let_go.append(one.key)
            continue
        try:
            _one(incarnation, query, tx, one, work)
        except HandlerFailed as failure:
            if failure.cause is not None and db_errors.transient(failure.cause):
                raise failure.cause from None
            _write_failure(incarnation, query, tx, one, failure, done)
            ended.add(name)
        else:
            done.done += 1
            tx.touched.add(query.entity, [one.key], None)
            if one.attempt is not None:
                finished.append(one.attempt)
    done.rows_s = time.monotonic() - began
    attempts.remove(tx.database, tx.connection, finished)
    return done


def _one(incarnation: Incarnation, query: ConditionQuery, tx: Transaction, one: Taken, work: Work) -> None:
    """Run the handler on one record, or `gave_up` if the last try was used."""
    if not _spent(query, one, tx.now):
        run_handler.run_one(query, tx, query.spec.handler, work)
        return
    spec, attempt = query.spec, one.attempt
    if attempt is None or spec.gave_up is None:
        raise HandlerFailed("the last try was used")
    failure = Failure(attempt.error or "", attempt.failures, attempt.since)
    run_handler.run_one(query, tx, spec.gave_up, replace(work, arguments=(failure,)))
    say_given_up(incarnation, attempt)


def _spent(query: ConditionQuery, one: Taken, now: datetime) -> bool:
    """Whether the last try of this record was used, so that `gave_up` runs. A record that is too late goes to `expired`, however often it
    was tried.
    """
    if query.answers_late:
        return False
    return one.attempt is not None and last_try_used(query.spec.retry, one.attempt.failures, one.attempt.since, now)


def _work(tx: Transaction, one: Taken) -> Work:
    return Work(one.key, one.record, one.occurrence, (), {"ctx": tx.moment(due=one.due)})


def _write_failure(
    incarnation: Incarnation, query: ConditionQuery, tx: Transaction, one: Taken, failure: HandlerFailed, done: Done
) -> None:
    spec = query.spec
    error = incarnation.shorten(failure.error)
    before = one.attempt or attempts.new_attempt_of_record(query, one.text, one.occurrence, incarnation.id, tx.now)
    tried: str | None = None
    if query.answers_late:
        at = next_try(spec.retry, before.failures + 1, tx.now, incarnation.dice.random())
        after = rules.expired_in_vain(before, spec.terms, tx.now, at, error).attempt
    elif _spent(query, one, tx.now):
        why = "the last try was used" if spec.gave_up is None else f"its gave_up handler failed: {error}"
        after = rules.held_as(before, why, error=before.error or error).attempt
        tried = "its last try was used"
    else:
        failures = before.failures + 1
        at = next_try(spec.retry, failures, tx.now, incarnation.dice.random())
        after = replace(before, state=State.FAILED, failures=failures, next_at=at, error=error)
        if last_try_used(spec.retry, failures, before.since, tx.now):
            # No try is left: `gave_up` runs now, or the attempt is held; neither waits.
            after = replace(after, next_at=tx.now) if spec.gave_up else rules.held_as(after, "the last try was used").attempt
    done.failed += 1
    done.wrong[one.key] = error
    done.next_at = min(filter(None, (done.next_at, after.next_at)), default=None)
    say_failed(incarnation, spec, one.text, f"{error}; {tried or which_try(spec.retry, after, tx.now)}", failure.cause)
    say_held(incarnation, after)
    if one.attempt is None:
        attempts.insert(tx, [after])
    else:
        attempts.save(tx.connection, [(before, after)])


def fail_unreadable_records(incarnation: Incarnation, query: ConditionQuery, tx: Transaction, bad: Sequence[Unreadable]) -> int:
    """Write a failed attempt for each record that cannot be read, so that the others of its batch go on. A record whose key cannot be read
    is held at once. Returns how many records there were.
    """
    new: list[Attempt] = []
    for one in bad:
        before = one.attempt or attempts.new_attempt_of_record(query, one.text, one.occurrence, incarnation.id, tx.now)
        if one.nameless:
            after = rules.held_as(
                replace(before, failures=1, error=incarnation.shorten(one.words)), "no record is found by such a key"
            ).attempt
            say_held(incarnation, after)
        else:
            after = unread(incarnation, query, before, one.words, tx.now)
        say_unreadable(incarnation, query.spec, one.text, after.error)
        if one.attempt is None:
            new.append(after)
        else:
            attempts.save(tx.connection, [(before, after)])
    attempts.insert(tx, new)
    return len(bad)


def unread(incarnation: Incarnation, query: ConditionQuery, before: Attempt, words: str, now: datetime) -> Attempt:
    """Return the attempt after another failure to read its record, by which surely nothing was done. It is held after the last try."""
    return failed_once_more(incarnation, query.spec.terms.retry, before, incarnation.shorten(words), now)


def failed_once_more(incarnation: Incarnation, retry: Retry, before: Attempt, error: str, now: datetime) -> Attempt:
    """Return the attempt after another failed try, by which surely nothing was done. It is held after the last try."""
    failures = before.failures + 1
    at = next_try(retry, failures, now, incarnation.dice.random())
    after = replace(before, state=State.FAILED, failures=failures, next_at=at, error=error)
    if last_try_used(retry, failures, before.since, now):
        after = rules.held_as(after, "the last try was used").attempt
        say_held(incarnation, after)
    return after
