"""DB-only reactions: a batch of records in one transaction, nothing of ours written where all goes well.

A crash rolls back, the rows still satisfy their condition, and the query finds them. Where a handler raises, it is looked which ones do
(`culprits`), and the batch is done again with a savepoint for each of those, or for all where that cannot be told (never one by one without
it: 500 rows would be 125,000 runs). A failed attempt is written for those alone.

A handler that is slow must not keep others waiting for the whole batch: it ends in its middle, and who was not reached is let go.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from groundstate.engine import attempts, beside, claim, culprits, groups, handling, line, trouble
from groundstate.engine.attempt_log import say_failed, say_given_up, say_held, say_unreadable, which_try
from groundstate.engine.claim import Claim, Taken, Unreadable
from groundstate.engine.guarded import text_of
from groundstate.engine.handling import HandlerFailed, Work
from groundstate.engine.life import Life
from groundstate.engine.question import Place, PrimaryKey, Question
from groundstate.engine.rings import Watch
from groundstate.engine.transaction import Transaction
from groundstate.engine.trouble import Row, TransactionEnded
from groundstate.rules import attempt as rules
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.policy import Retry
from groundstate.rules.retry import last_try_used, next_try
from groundstate.values.answers import Failure

AROUND = 8  # statements around the handlers at most, which a far database answers late however few the records are


@dataclass
class Feed:
    """Which records are to be looked at: these keys, or the next of the backlog after a cursor."""

    keys: Sequence[PrimaryKey] | None = None
    cursor: Place | None = None
    limit: int = 500
    crowded: bool = False
    alone: bool = False  # careful mode: one that is suspected, whose turn it is
    mine: int | None = None  # careful mode: the call of begun attempts that are ours to carry out
    claim_s: float = math.inf  # what looks for records whose condition holds is cut after so long
    hold_s: float = math.inf  # for so long handlers are run in one transaction; whoever is not reached by then is let go
    first: frozenset[Row] = beside.NO_ROWS  # beside the records: locked before them

    def claim(self, question: Question, tx: Transaction) -> Claim:
        tx.lock_first(self.first)
        with tx.database.limit(tx.connection, self.claim_s):
            if self.keys is not None:
                found = claim.by_keys(question, tx, self.keys, mine=self.mine)
            else:
                found = claim.by_condition(question, tx, self.cursor, self.limit, crowded=self.crowded)
        if question.spec.in_order is not None:
            place = line.of_their_turn(tx, question, [(one.key, one.record) for one in found.taken])
            found.taken = sorted((one for one in found.taken if one.key in place), key=lambda one: place[one.key])
        return found


@dataclass
class Done:
    """What came of a batch."""

    read: int = 0
    taken: int = 0  # without those that were let go
    done: int = 0
    failed: int = 0
    wrong: dict[PrimaryKey, str] = field(default_factory=dict)  # of those, whose handler failed, and with what
    cursor: Place | None = None
    busy: list[PrimaryKey] = field(default_factory=list)
    let_go: list[PrimaryKey] = field(default_factory=list)  # for whom no time was left: they are as they were
    cut: bool = False  # whether that was so because handlers took long
    again: bool = False  # whether it failed at first, so that all of it took longer than such a batch does
    rows_s: float = 0.0  # what the records themselves took, and neither the transaction nor finding them did
    next_at: datetime | None = None  # the earliest time at which something of it is to be looked at again
    last_due: datetime | None = None  # of those that were taken
    left_begun: bool = False  # careful mode: attempts that were begun for it may stand without having been carried out
    works: Sequence[Work] = ()  # that were carried out together
    watch: Watch | None = None  # where some of them are looked at more closely

    def add(self, other: Done) -> None:
        """What came of others of the batch."""
        self.taken += other.taken
        self.done += other.done
        self.failed += other.failed
        self.wrong |= other.wrong
        self.let_go += other.let_go
        self.cut |= other.cut
        self.rows_s += other.rows_s
        self.next_at = min(filter(None, (self.next_at, other.next_at)), default=None)
        self.last_due = max(filter(None, (self.last_due, other.last_due)), default=None)


def carry_out(life: Life, question: Question, feed: Feed) -> Done:
    """One batch. The database's own trouble comes out; what a record or its handler did is written down."""
    return beside.redo_lost_updates(lambda first: _carry_out(life, question, replace(feed, first=first)))


def _carry_out(life: Life, question: Question, feed: Feed) -> Done:
    try:
        return _together(life, question, feed)
    except _AnyHandlerFailed as failed:
        return _after_failure(life, question, feed, failed)


def _after_failure(life: Life, question: Question, feed: Feed, failed: _AnyHandlerFailed) -> Done:
    again = replace(feed, keys=failed.keys)
    key = None if failed.ended is None else failed.ended.key
    if key is not None:  # it runs no second time now: what it wrote may be kept
        done = _refused(life, question, replace(again, keys=[key]), HandlerFailed(text_of(failed.ended), failed.ended))
        done.let_go = [one for one in failed.keys if one != key]
        return replace(done, cursor=failed.cursor, read=failed.read, again=True)
    try:
        done = _by_culprits(life, question, again, failed) or _one_by_one(life, question, again)
    except SQLAlchemyError as error:
        if trouble.transient(error):
            raise
        done = _separately(life, question, again, failed.keys)
    return replace(done, cursor=failed.cursor, read=failed.read, again=True)


def _by_culprits(life: Life, question: Question, feed: Feed, failed: _AnyHandlerFailed) -> Done | None:
    """The batch again, with those apart that made it fail; None where it cannot be told who they are. Of a line all go one by one."""
    if len(failed.keys) < 2 or question.spec.in_order is not None:
        return None
    done = _with_some_apart(life, question, feed, failed.apart) if failed.apart else None
    if done is not None:
        return done
    looked = _look_for_culprits(life, question, feed)
    told = [key for key in failed.keys if key in looked.failed or key in looked.others]
    if not looked.failed and len(told) == len(failed.keys):
        return None
    done = _with_some_apart(life, question, replace(feed, keys=told), looked.failed)
    if done is not None:
        done.let_go += [key for key in failed.keys if key not in looked.failed and key not in looked.others]
    return done


def _look_for_culprits(life: Life, question: Question, feed: Feed) -> culprits.Looked:
    spent: set[PrimaryKey] = set()
    try:
        with life.transaction() as tx:
            found = feed.claim(question, tx)
            spent |= {one.key for one in found.taken if _spent(question, one, tx.now)}
            works = [_work(tx, one) for one in found.taken if one.key not in spent]
            raise culprits.look(question, tx, question.spec.handler, works, feed.hold_s)
    except culprits.Looked as looked:
        return culprits.Looked(looked.failed | spent, looked.others)


def _with_some_apart(life: Life, question: Question, feed: Feed, apart: AbstractSet[PrimaryKey]) -> Done | None:
    """The batch again, these with a savepoint each after the others, which are together; None where one of the others fails as well."""
    try:
        with life.transaction() as tx:
            found = feed.claim(question, tx)
            some = replace(found, taken=[one for one in found.taken if one.key in apart], unreadable=[])
            found.taken = [one for one in found.taken if one.key not in apart]
            done = _batch(life, question, tx, found, feed.hold_s)
            done.add(_each(life, question, tx, some, feed.hold_s))
    except _AnyHandlerFailed:
        return None
    if done.works:
        life.rings.carried_out(question, done.works, done.watch)
    return done


def _separately(life: Life, question: Question, feed: Feed, keys: Sequence[PrimaryKey]) -> Done:
    """A transaction a record: what is refused only at COMMIT (a deferred constraint), or loses its connection, no savepoint can catch."""
    total = Done()
    began = time.monotonic()
    for number, key in enumerate(keys):
        if number and time.monotonic() - began >= feed.hold_s:
            total.let_go += keys[number:]
            total.cut = True
            break
        one = replace(feed, keys=[key])
        try:
            done = _one_by_one(life, question, one)
        except SQLAlchemyError as error:
            if trouble.transient(error):
                raise
            refused = text_of(getattr(error, "orig", None) or error)
            words = refused if isinstance(error, TransactionEnded) else f"its commit was refused: {refused}"
            done = _refused(life, question, one, HandlerFailed(words, error))
        total.add(done)
    return total


def _refused(life: Life, question: Question, feed: Feed, failure: HandlerFailed) -> Done:
    with life.transaction() as tx:
        found = feed.claim(question, tx)
        done = Done(taken=len(found.taken))
        for one in found.taken:
            _write_failure(life, question, tx, one, failure, done)
    return done


class _AnyHandlerFailed(Exception):
    """Some handler of the batch failed: the batch is rolled back and done again with savepoints. apart: for these, where that is known.

    ended: one of them ended the transaction.
    """

    def __init__(self, found: Claim, apart: Collection[PrimaryKey] = (), ended: TransactionEnded | None = None) -> None:
        super().__init__()
        self.ended = ended
        self.keys = [one.key for one in found.taken]
        self.apart = frozenset(apart)
        self.cursor = found.cursor
        self.read = found.read


def _together(life: Life, question: Question, feed: Feed) -> Done:
    found: Claim | None = None
    try:
        with life.transaction() as tx:
            found = feed.claim(question, tx)
            tx.touched.of_a_backlog = feed.keys is None
            done = _batch(life, question, tx, found, feed.hold_s)
    except (DBAPIError, TransactionEnded) as error:  # refused at COMMIT, or there is nothing to commit
        if trouble.transient(error) or found is None or not found.taken:
            raise
        if trouble.of_a_value(error) and not question.in_turn:
            raise  # perhaps of a row that is none of these
        raise _AnyHandlerFailed(found, ended=error if isinstance(error, TransactionEnded) else None) from error
    if done.works:
        life.rings.carried_out(question, done.works, done.watch)
    return done


def _batch(life: Life, question: Question, tx: Transaction, found: Claim, hold_s: float) -> Done:
    done = Done(read=found.read, cursor=found.cursor, busy=found.busy, taken=len(found.taken), last_due=_last_due(found))
    done.failed = put_off(life, question, tx, found.unreadable)
    if not found.taken:
        return done
    spent = [one.key for one in found.taken if _spent(question, one, tx.now)]
    if spent:
        raise _AnyHandlerFailed(found, spent)  # gave_up answers for those
    done.watch = life.rings.watch(question, tx.connection, found.taken)
    began = time.monotonic()
    try:
        works = _run(question, tx, found, done, began + hold_s)
        new = handling.flush_all(question, tx, works)
    except Exception as error:
        if trouble.transient(error) or isinstance(error, TransactionEnded):
            raise
        raise _AnyHandlerFailed(found) from error
    still = handling.without_progress(question, tx, works, new)
    if still:
        raise _AnyHandlerFailed(found, still)
    done.rows_s = time.monotonic() - began - AROUND * tx.asked_s
    attempts.remove(tx.database, tx.connection, [one.attempt for one in found.taken if one.attempt is not None])
    if done.watch is not None:
        done.watch.mine = [step for step in done.watch.mine if step[1] not in done.let_go]
        life.rings.look(done.watch, tx.connection)
    done.done = len(works)
    done.works = works
    tx.touched.add(question.entity, [work.key for work in works], new)
    return done


def _run(question: Question, tx: Transaction, found: Claim, done: Done, until_s: float) -> list[Work]:
    """Runs the handlers. Of a line only as far as nobody has touched the next one: what he did to it is looked at first."""
    works = [_work(tx, one) for one in found.taken]
    lines = _lines(question, found)
    if len(set(lines)) == len(lines):
        count = handling.run_each(question, tx, question.spec.handler, works, until_s)
        _let_go(found, done, count)
        return works[:count]
    ran: list[Taken] = []
    ended: set[object] = set()
    tx.watching, tx.strays = True, []
    try:
        for number, (one, work, name) in enumerate(zip(found.taken, works, lines, strict=True)):
            if ran and time.monotonic() >= until_s:
                _let_go(found, done, number)
                break
            if ran and (tx.strays or inspect(one.record).modified):
                ended.add(name)
            if name not in ended:
                handling.run_each(question, tx, question.spec.handler, [work])
                ran.append(one)
    finally:
        tx.watching = False
    found.taken = ran
    return [work for work in works if work.key in {one.key for one in ran}]


def _let_go(found: Claim, done: Done, reached: int) -> None:
    """Those behind so many of the records that were taken: no time was left for them."""
    done.let_go += [one.key for one in found.taken[reached:]]
    done.cut |= reached < len(found.taken)
    found.taken = found.taken[:reached]
    done.taken = reached


def _lines(question: Question, found: Claim) -> list[object]:
    """Of which line each is; what has none is one by itself."""
    if question.spec.in_order is None:
        return list(range(len(found.taken)))
    asked = groups.statements(question)
    return [asked.text_of(one.record) or number for number, one in enumerate(found.taken)]


def _last_due(found: Claim) -> datetime | None:
    return max((one.due for one in found.taken if one.due is not None), default=None)


def _one_by_one(life: Life, question: Question, feed: Feed) -> Done:
    with life.transaction() as tx:
        return _each(life, question, tx, feed.claim(question, tx), feed.hold_s)


def _each(life: Life, question: Question, tx: Transaction, found: Claim, hold_s: float) -> Done:
    """Each with a savepoint of its own."""
    done = Done(read=found.read, cursor=found.cursor, busy=found.busy, taken=len(found.taken), last_due=_last_due(found))
    done.failed = put_off(life, question, tx, found.unreadable)
    finished: list[Attempt] = []
    ended: set[object] = set()  # lines of which the next must wait
    seen_before: set[object] = set()
    began = time.monotonic()
    for number, (one, name) in enumerate(zip(found.taken, _lines(question, found), strict=True)):
        if number and time.monotonic() - began >= hold_s:
            _let_go(found, done, number)
            break
        if name in ended or (name in seen_before and not _still(question, tx, one)):
            ended.add(name)
            continue
        seen_before.add(name)
        try:
            _one(life, question, tx, one)
        except HandlerFailed as failure:
            if failure.cause is not None and trouble.transient(failure.cause):
                raise failure.cause from None
            _write_failure(life, question, tx, one, failure, done)
            ended.add(name)
        else:
            done.done += 1
            tx.touched.add(question.entity, [one.key], None)
            if one.attempt is not None:
                finished.append(one.attempt)
    done.rows_s = time.monotonic() - began
    attempts.remove(tx.database, tx.connection, finished)
    return done


def _still(question: Question, tx: Transaction, one: Taken) -> bool:
    """Whether it is still to be carried out, after the one before it in its line was."""
    return tx.connection.execute(question.still_holding([one.key])).first() is not None


def _one(life: Life, question: Question, tx: Transaction, one: Taken) -> None:
    """The handler, or `gave_up` where the last try was used."""
    if not _spent(question, one, tx.now):
        handling.run_one(question, tx, question.spec.handler, _work(tx, one))
        return
    spec, attempt = question.spec, one.attempt
    if attempt is None or spec.gave_up is None:
        raise HandlerFailed("the last try was used")
    failure = Failure(attempt.error or "", attempt.failures, attempt.since)
    handling.run_one(question, tx, spec.gave_up, replace(_work(tx, one), arguments=(failure,)))
    say_given_up(life, attempt)


def _spent(question: Question, one: Taken, now: datetime) -> bool:
    """Whether its last try was used, and gave_up answers. What is too late is answered by `expired`, however often it was tried."""
    if question.answers_late:
        return False
    return one.attempt is not None and last_try_used(question.spec.retry, one.attempt.failures, one.attempt.since, now)


def _work(tx: Transaction, one: Taken) -> Work:
    return Work(one.key, one.record, one.occurrence, (), {"at": tx.moment(due=one.due)})


def _write_failure(life: Life, question: Question, tx: Transaction, one: Taken, failure: HandlerFailed, done: Done) -> None:
    spec = question.spec
    error = life.shorten(failure.error)
    before = one.attempt or new_attempt(life, question, one.text, one.occurrence, tx.now)
    tried: str | None = None
    if question.answers_late:
        at = next_try(spec.retry, before.failures + 1, tx.now, life.dice.random())
        after = rules.expired_in_vain(before, spec.terms, tx.now, at, error).attempt
    elif _spent(question, one, tx.now):
        why = "the last try was used" if spec.gave_up is None else f"its gave_up handler failed: {error}"
        after = rules.held_as(before, why, error=before.error or error).attempt
        tried = "its last try was used"
    else:
        failures = before.failures + 1
        at = next_try(spec.retry, failures, tx.now, life.dice.random())
        after = replace(before, state=State.FAILED, failures=failures, next_at=at, error=error)
        if last_try_used(spec.retry, failures, before.since, tx.now):
            # Nothing more is tried: gave_up answers, or it is held, and neither waits.
            after = replace(after, next_at=tx.now) if spec.gave_up else rules.held_as(after, "the last try was used").attempt
    done.failed += 1
    done.wrong[one.key] = error
    done.next_at = min(filter(None, (done.next_at, after.next_at)), default=None)
    say_failed(life, spec, one.text, f"{error}; {tried or which_try(spec.retry, after, tx.now)}", failure.cause)
    say_held(life, after)
    if one.attempt is None:
        attempts.insert(tx, [after])
    else:
        attempts.save(tx.connection, [(before, after)])


def put_off(life: Life, question: Question, tx: Transaction, bad: Sequence[Unreadable]) -> int:
    """Records that cannot be read have failed, each for itself: the others of their batch go on. Those whose key cannot be read are held
    at once. Returns how many.
    """
    new: list[Attempt] = []
    for one in bad:
        before = one.attempt or new_attempt(life, question, one.text, one.occurrence, tx.now)
        if one.nameless:
            after = rules.held_as(replace(before, failures=1, error=life.shorten(one.words)), "no record is found by such a key").attempt
            say_held(life, after)
        else:
            after = unread(life, question, before, one.words, tx.now)
        say_unreadable(life, question.spec, one.text, after.error)
        if one.attempt is None:
            new.append(after)
        else:
            attempts.save(tx.connection, [(before, after)])
    attempts.insert(tx, new)
    return len(bad)


def unread(life: Life, question: Question, before: Attempt, words: str, now: datetime) -> Attempt:
    """The attempt after its record could not be read once more: surely nothing was done with it. Held after the last try."""
    return failed_once_more(life, question.spec.terms.retry, before, life.shorten(words), now)


def failed_once_more(life: Life, retry: Retry, before: Attempt, error: str, now: datetime) -> Attempt:
    """The attempt after a try that surely did nothing. Held after the last one."""
    failures = before.failures + 1
    at = next_try(retry, failures, now, life.dice.random())
    after = replace(before, state=State.FAILED, failures=failures, next_at=at, error=error)
    if last_try_used(retry, failures, before.since, now):
        after = rules.held_as(after, "the last try was used").attempt
        say_held(life, after)
    return after


def new_attempt(life: Life, question: Question, text: str, occurrence: str, now: datetime) -> Attempt:
    """An attempt that was not there yet, before anything happened to it."""
    spec = question.spec
    return attempts.new((spec.app, spec.name, text, occurrence), life.id, now, None if spec.fact else spec.table_name)
