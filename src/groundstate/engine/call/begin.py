"""Begins calls: an attempt is written for each, many in one transaction. The calls go out after the commit, never before.

Also considers existing attempts: failed ones that are due, and attempts in doubt of this worker; rules/attempt.py decides about each.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from groundstate.engine.handle import in_order, poison_guard, run_handler
from groundstate.engine.handle.run_batch import Feed, fail_unreadable_records, unread
from groundstate.engine.handle.run_handler import HandlerFailed, Work
from groundstate.engine.rows import attempts, claim
from groundstate.engine.rows.attempt_log import of_attempt, say_given_up, say_held, say_kept, say_let_go, say_unreadable, which_try
from groundstate.engine.rows.claim import AttemptWithFacts, Claim, Taken, Unreadable
from groundstate.engine.rows.in_flight import InFlightCall, tenant_of
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql import db_errors, group_scan, in_place_changes, readonly_record
from groundstate.engine.sql.call_write_guard import PREPARE_CURE, inside
from groundstate.engine.sql.condition_query import ConditionQuery, PrimaryKey
from groundstate.engine.sql.safe_text import describe, user_code
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules import attempt as rules
from groundstate.rules import blocking
from groundstate.rules.attempt import Attempt, Facts, State
from groundstate.rules.poison_suspects import TOGETHER
from groundstate.rules.policy import LONG_AGO, MARGIN
from groundstate.rules.retry import last_try_used, next_try
from groundstate.rules.specs import Function
from groundstate.values import keys
from groundstate.values.answers import Failure
from groundstate.values.errors import StateRefusedError
from groundstate.values.unawaited import unawaited

log = logging.getLogger("groundstate")


@dataclass
class Begun:
    """Lists what a begin wrote, and the calls that go out once it is committed."""

    in_flights: list[InFlightCall] = field(default_factory=list)
    claimed: Claim = field(default_factory=Claim)
    changed: int = 0  # attempts whose state changed without a call
    busy: list[attempts.Identity] = field(default_factory=list)
    new_calls: int = 0
    prepare_s: float = 0.0  # seconds spent in `prepare`
    let_go: bool = False  # whether attempts were left out, since handlers before them took long
    denied: list[PrimaryKey] = field(default_factory=list)  # records that were locked, but got no slot or token
    denied_again: bool = False  # whether some of the records that got none have an attempt already, so that they are due
    expired: Counter[str] = field(default_factory=Counter)  # those of `changed` that expired, by reaction

    def add(self, other: Begun) -> None:
        self.in_flights += other.in_flights
        self.changed += other.changed
        self.busy += other.busy
        self.new_calls += other.new_calls
        self.expired.update(other.expired)


Clocks = tuple[float, float]
Gate = Callable[[Sequence[Any], Sequence[bool]], Sequence[bool]]  # (the records, whether each was tried before) -> which may go


def unlimited(records: Sequence[Any], _again: Sequence[bool]) -> Sequence[bool]:
    """Return True for each of these records: the gate that admits every call."""
    return [True] * len(records)


def begin(
    incarnation: Incarnation, tx: Transaction, query: ConditionQuery, feed: Feed, clock: tuple[float, float], gate: Gate = unlimited
) -> Begun:
    """Claim records by their condition and begin a call for each that the gate admits, at most `feed.limit` of them."""
    spec, suspect = query.spec, query.spec.name in incarnation.suspects
    found = claim_for_doubts(tx, query, feed) if suspect else feed.claim(query, tx)
    result = Begun(claimed=found)
    chosen = [one for one in found.taken if one.attempt is None or not _left_to_consider(incarnation, query, one.attempt, tx.now)][
        : feed.limit
    ]
    if suspect:
        result.changed = doubt(incarnation, tx, query, [*chosen, *found.unreadable])
        # A record with a failed attempt was in doubt and is settled since: its call was surely not made.
        chosen = [one for one in chosen if one.attempt is not None and not incarnation.air.holds(spec, one.text)]
    else:
        result.changed = fail_unreadable_records(incarnation, query, tx, found.unreadable)
    may = gate([one.record for one in chosen], [one.attempt is not None for one in chosen])
    result.denied = [one.key for one, through in zip(chosen, may, strict=True) if not through and one.attempt is None]
    result.denied_again = not all(through or one.attempt is None for one, through in zip(chosen, may, strict=True))
    chosen = [one for one, through in zip(chosen, may, strict=True) if through]
    new: list[Attempt] = []
    again: list[tuple[Attempt, Attempt]] = []
    in_flights: list[InFlightCall] = []
    together = TOGETHER if incarnation.care.careful else 0
    began = time.monotonic()
    for one in chosen:
        before = one.attempt or attempts.new_attempt_of_record(query, one.text, one.occurrence, incarnation.id, tx.now)
        flown = _in_flight(incarnation, tx, query, before, one.record, clock, due=one.due, together=together)
        after = flown if isinstance(flown, Attempt) else flown[0]
        if one.attempt is None:
            new.append(after)
        else:
            again.append((before, after))
        if not isinstance(flown, Attempt):
            in_flights.append(flown[1])
    if spec.prepare is not None:
        result.prepare_s = time.monotonic() - began
    written = attempts.insert(tx, new) | attempts.save(tx.connection, again)
    _detach(tx)
    result.in_flights = [in_flight for in_flight in in_flights if in_flight.call in written]  # no call goes out without its attempt
    result.new_calls = len(result.in_flights)
    return result


def claim_for_doubts(tx: Transaction, query: ConditionQuery, feed: Feed) -> Claim:
    """Claim records, those for which this worker has a call in flight included: they get attempts in doubt, which begin no call, and record
    a call that the database lost.
    """
    air, tx.air = tx.air, None
    try:
        return feed.claim(query, tx)
    finally:
        tx.air = air


def doubt(incarnation: Incarnation, tx: Transaction, query: ConditionQuery, found: Sequence[Taken | Unreadable]) -> int:
    """Insert an attempt in doubt for each of these records that has no attempt, while the reaction is suspect
    (hazard 46). Return how many.
    """
    suspected = [_suspect(incarnation, query, one, tx.now) for one in found if one.attempt is None]
    attempts.insert(tx, suspected)
    return len(suspected)


def consider(  # noqa: PLR0913  # every argument differs from call to call
    incarnation: Incarnation,
    tx: Transaction,
    query: ConditionQuery,
    identities: Sequence[attempts.Identity],
    clock: Clocks,
    *,
    room: int,
    gate: Gate,
    alone: bool = False,
    hold_s: float,
) -> Begun:
    """Consider existing attempts, and begin calls and lookups for them as far as there is room. alone: careful mode runs a suspected
    attempt by itself. hold_s: seconds in which handlers that replace a call may be started.
    """
    looked = claim.lock_and_read_attempts(query, tx, identities)
    looking = _ConsideredAttempts(incarnation, tx, query, clock, time.monotonic() + hold_s)
    decided: list[_Decided] = []
    for standing in looked.standing.values():
        attempt = standing.attempt
        if attempt is None or not blocking.due(attempt, tx.now):
            continue
        if attempt.state is State.DOUBT and attempt.worker != incarnation.id:
            continue  # another worker's attempt in doubt is settled by that worker, or by its adopter
        decided.append(_Decided(attempt, standing, _decide(query, attempt, standing, tx.now)))
    flying = _in_their_turn(tx, query, [one for one in decided if one.wants_to_fly and (alone or not one.is_left_out(incarnation))])[:room]
    may = gate([one.standing.record for one in flying], [True] * len(flying))
    through = {one.attempt.identity for one, goes in zip(flying, may, strict=True) if goes}
    for one in decided:
        looking.at(one, may_fly=one.attempt.identity in through)
    looking.unread(looked)
    attempts.save(tx.connection, looking.saved)
    attempts.remove(tx.database, tx.connection, looking.removed)
    _detach(tx)
    result = looking.result
    result.busy = list(looked.busy)
    result.changed = len(looking.saved) + len(looking.removed) - result.new_calls
    return result


@dataclass(frozen=True)
class _Decided:
    """Holds an attempt that was considered, and what the rules decided about it."""

    attempt: Attempt
    standing: AttemptWithFacts
    decision: rules.Decision

    @property
    def wants_to_fly(self) -> bool:
        """Return whether a lookup or call is wanted now. A call is not wanted before its due time (which was moved, or the clock was set
        back), nor beside another call of this worker for the record.
        """
        if isinstance(self.decision, rules.AskLookup):
            return True
        return isinstance(self.decision, rules.Begin) and not self.standing.early and not self.standing.in_the_air

    def is_left_out(self, incarnation: Incarnation) -> bool:
        """Return whether the attempt may be called only while nothing else is in flight. A lookup for it may be made at any time."""
        return isinstance(self.decision, rules.Begin) and poison_guard.is_suspected(incarnation, self.attempt)


def _in_their_turn(tx: Transaction, query: ConditionQuery, some: list[_Decided]) -> list[_Decided]:
    """Return the attempts without those that `in_order` makes wait. A lookup does not wait for its turn."""
    if query.spec.in_order is None:
        return some
    begins = [one for one in some if isinstance(one.decision, rules.Begin)]
    failed = [(one.standing.key, one.standing.record) for one in begins if one.attempt.state is State.FAILED]
    doubts = [(one.standing.key, one.standing.record) for one in begins if one.attempt.state is State.DOUBT]
    may = set(in_order.places_of_records_that_may_go(tx, query, failed)) if failed else set()
    may |= in_order.doubts_of_their_turn(tx, query, doubts) if doubts else set()
    return [one for one in some if one not in begins or one.standing.key in may]


@dataclass
class _ConsideredAttempts:
    """Collects what becomes of the attempts that are considered, before it is written."""

    incarnation: Incarnation
    tx: Transaction
    query: ConditionQuery
    clock: tuple[float, float]
    until_s: float
    result: Begun = field(default_factory=Begun)
    _ran: bool = False  # whether a handler was run in place of a call
    saved: list[tuple[Attempt, Attempt]] = field(default_factory=list)
    removed: list[Attempt] = field(default_factory=list)

    def at(self, one: _Decided, *, may_fly: bool) -> None:
        attempt, standing = one.attempt, one.standing
        match one.decision:
            case rules.Begin() | rules.AskLookup() if not may_fly:
                pass  # the attempt is considered again later
            case rules.Begin():
                self._begin(attempt, standing)
            case rules.AskLookup():
                asked = _query(self.incarnation, self.tx, self.query, attempt, standing, self.clock)
                if isinstance(asked, Attempt):
                    self.saved.append((attempt, asked))
                else:
                    self.result.in_flights.append(asked)
            case rules.Keep(after):
                self.saved.append((attempt, after))
                say_kept(self.incarnation, after)
            case rules.Delete(say):
                self.removed.append(attempt)
                say_let_go(self.incarnation, attempt, say)
            case rules.GaveUp() | rules.Expired() if self._ran and time.monotonic() >= self.until_s:
                self.result.let_go = True
            case rules.GaveUp():
                self._ended(attempt, _give_up(self.incarnation, self.tx, self.query, standing, attempt))
            case rules.Expired(unsure=False) if self.incarnation.care.careful and attempt.reaction not in self.incarnation.suspects:
                pass  # the queue of expired records takes it, and writes a begun attempt first: its handler may kill workers
            case rules.Expired():
                self._expired(attempt, standing)
            case _:
                pass  # the attempt waits for another one on its record

    def _expired(self, attempt: Attempt, standing: AttemptWithFacts) -> None:
        failed = _expire(self.incarnation, self.tx, self.query, standing, attempt)
        if failed is None:
            self.incarnation.after_commit.say(partial(_say_expired, self.incarnation, attempt, standing.due))
            self.result.expired[attempt.reaction] += 1
        self._ended(attempt, failed)

    def _ended(self, attempt: Attempt, held: Attempt | None) -> None:
        self._ran = True
        if held is None:
            self.removed.append(attempt)
        else:
            self.saved.append((attempt, held))
            say_held(self.incarnation, held)

    def unread(self, looked: claim.AttemptsUnderLock) -> None:
        """Count a failure for each attempt whose record cannot be read just now. An attempt in doubt counts an unanswered lookup, unless it
        is to be held whatever its record is.
        """
        terms, now = self.query.spec.terms, self.tx.now
        for attempt, words in looked.unreadable.values():
            if attempt is None or not blocking.due(attempt, now):
                continue
            if attempt.state is State.DOUBT and attempt.worker == self.incarnation.id:
                decision = rules.settle(attempt, terms, Facts(exists=True, holds=True), now)
                if isinstance(decision, rules.Keep):
                    self.saved.append((attempt, decision.attempt))
                    say_kept(self.incarnation, decision.attempt)
                    continue
            if attempt.state is State.FAILED:
                self.saved.append((attempt, unread(self.incarnation, self.query, attempt, words, now)))
                say_unreadable(self.incarnation, self.query.spec, attempt.record, self.saved[-1][1].error)
            elif attempt.state is State.DOUBT and attempt.worker == self.incarnation.id:
                say_unreadable(self.incarnation, self.query.spec, attempt.record, self.incarnation.shorten(words))
                at = now + min(max(terms.retry.first, timedelta(seconds=1)), terms.retry.longest)
                self.saved.append((attempt, rules.unanswered(attempt, terms, now, at, self.incarnation.shorten(words)).attempt))

    def _begin(self, attempt: Attempt, standing: AttemptWithFacts) -> None:
        together = 1 if poison_guard.is_suspected(self.incarnation, attempt) else TOGETHER if self.incarnation.care.careful else 0
        flown = _in_flight(self.incarnation, self.tx, self.query, attempt, standing.record, self.clock, due=standing.due, together=together)
        if isinstance(flown, Attempt):
            self.saved.append((attempt, flown))
            return
        self.saved.append((attempt, flown[0]))
        self.result.in_flights.append(flown[1])
        self.result.new_calls += 1


def _detach(tx: Transaction) -> None:
    """Detach the snapshots from their session. What handlers changed is flushed before, and changes to a snapshot never are."""
    tx.session.flush()
    tx.session.expunge_all()


def _decide(query: ConditionQuery, attempt: Attempt, standing: AttemptWithFacts, now: datetime) -> rules.Decision:
    terms = query.spec.terms
    if attempt.state is State.FAILED:
        return rules.retry_failed(attempt, terms, standing.facts, now, blocked=standing.blocked is not None)
    return rules.settle(attempt, terms, standing.facts, now)


def _left_to_consider(incarnation: Incarnation, query: ConditionQuery, attempt: Attempt, now: datetime) -> bool:
    """Return whether a failed attempt is left to `consider`: its last try was used, so that gave_up decides, or it is suspected."""
    return _spent(query, attempt, now) or poison_guard.is_suspected(incarnation, attempt)


def _spent(query: ConditionQuery, attempt: Attempt, now: datetime) -> bool:
    return last_try_used(query.spec.terms.retry, attempt.failures, attempt.since, now)


def _suspect(incarnation: Incarnation, query: ConditionQuery, one: Taken | Unreadable, now: datetime) -> Attempt:
    """Return a new attempt in doubt for a record of a suspect reaction: it may have been called in the time that the database lost (hazard
    46).
    """
    new = attempts.new_attempt_of_record(query, one.text, one.occurrence, incarnation.id, now)
    return replace(
        new, state=State.DOUBT, unsure=True, next_at=now, first_at=LONG_AGO, deadline=now + query.spec.terms.timeout + MARGIN,
        begun_with=query.begun_with,  # assumed to be of this code's kind: code of another kind will hold the attempt
        why="the database went back in time: it may have been called in the lost time",
    )  # fmt: skip


def _in_flight(  # noqa: PLR0913  # every argument differs from call to call
    incarnation: Incarnation,
    tx: Transaction,
    query: ConditionQuery,
    before: Attempt,
    record: Any,
    clock: tuple[float, float],
    *,
    due: datetime | None,
    together: int,
) -> tuple[Attempt, InFlightCall] | Attempt:
    """Return the begun attempt and its call; or only the failed attempt where `prepare` raised, since nothing was sent then."""
    spec = query.spec
    deadline = tx.now + spec.terms.timeout + MARGIN
    after = rules.begun(
        before,
        worker=incarnation.id,
        call=attempts.new_call(),
        now=tx.now,
        deadline=deadline,
        together=together,
        begun_with=query.begun_with,
    )
    try:
        argument = _argument(tx, query, record, due)
    except Exception as error:
        if db_errors.transient(error):
            raise
        words = incarnation.shorten(f"prepare raised {describe(error)}")
        failures = before.failures + 1
        kept = rules.not_done(before, words, next_try(spec.terms.retry, failures, tx.now, incarnation.dice.random()), counts=True).attempt
        said = f"{words}; {which_try(spec.terms.retry, kept, tx.now)}"
        incarnation.after_commit.say(partial(_say_prepare_failed, incarnation, before, said))
        return replace(kept, state=State.DOUBT if before.unsure else State.FAILED, worker=incarnation.id)
    return after, _of_record(_make_in_flight_call(incarnation, tx, query, after, argument, clock, due=due), record)


def _query(
    incarnation: Incarnation,
    tx: Transaction,
    query: ConditionQuery,
    attempt: Attempt,
    standing: AttemptWithFacts,
    clock: tuple[float, float],
) -> InFlightCall | Attempt:
    """Return a lookup that is ready to go out; or, where `prepare` raised, the attempt with a later time for its lookup."""
    try:
        argument = _argument(tx, query, standing.record, standing.due)
    except Exception as error:
        if db_errors.transient(error):
            raise
        at = tx.now + max(query.spec.terms.retry.first, timedelta(seconds=1))
        return rules.unknown(attempt, at, incarnation.shorten(f"prepare raised {describe(error)}")).attempt
    return replace(
        _of_record(_make_in_flight_call(incarnation, tx, query, attempt, argument, clock, due=standing.due), standing.record),
        asked_at=tx.now,
    )


def _argument(tx: Transaction, query: ConditionQuery, record: Any, due: datetime | None) -> Any:
    """Return what the call is given: a snapshot of the record, or what `prepare` makes of it.

    Raises:
        StateRefusedError: `prepare` changed a row. Its changes are removed from the session.
    """
    spec = query.spec
    if spec.prepare is None:
        return readonly_record.make_read_only(record)
    session, was = tx.session, in_place_changes.copy_mutable_values(record)
    session.flush()  # so that each change found afterwards was made by `prepare`
    with inside(spec.app, f"`prepare` of {spec.name}", PREPARE_CURE, may_say=False), user_code():
        # Without a savepoint, a failing statement of `prepare` would abort the whole transaction.
        own = session.begin_nested() if "session" in spec.prepare.wants.values() else nullcontext()
        try:
            with session.no_autoflush, own:
                made = spec.prepare(record, session=session, ctx=tx.moment(due=due))
                if tx.refuses():
                    raise StateRefusedError(f"`prepare` of {spec.name}: {run_handler.swallowed(tx)}")
                lost = unawaited(made)
                if lost is not None:
                    raise TypeError(f"`prepare` returned {lost}: nothing is awaited there; do that in the call")
                _refuse_changes(session, spec.name)
            if was is not None and (inside_of := in_place_changes.edited(record, was)):
                session.expire(record, inside_of)
                raise StateRefusedError(
                    f"`prepare` of {spec.name} changed the inside of {', '.join(inside_of)}: {PREPARE_CURE}, or change a copy"
                )
        except BaseException:
            _forget_changes(session)
            raise
    return made


def _refuse_changes(session: Session, name: str) -> None:
    """Raise StateRefusedError if `prepare` changed a row. It is called before the savepoint ends, since that would flush the changes."""
    if session.new or session.deleted or any(session.is_modified(one) for one in session.dirty):
        raise StateRefusedError(f"`prepare` of {name} changed a row: {PREPARE_CURE}")


def _forget_changes(session: Session) -> None:
    """Discard pending changes in the session. Rows that were read stay in it, since other records of the batch are among them."""
    for one in list(session.new):
        session.expunge(one)
    for one in list(session.deleted):
        session.add(one)  # this takes the delete back
    for one in list(session.dirty):
        session.expire(one)


def _make_in_flight_call(  # noqa: PLR0913  # every argument differs from call to call
    incarnation: Incarnation,
    tx: Transaction,
    query: ConditionQuery,
    attempt: Attempt,
    argument: Any,
    clock: tuple[float, float],
    *,
    due: datetime | None,
) -> InFlightCall:
    name = incarnation.key_names.get(attempt.reaction, attempt.reaction)
    return InFlightCall(
        query=query,
        identity=attempt.identity,
        call=attempt.call,
        argument=argument,
        key=keys.call_key(attempt.app, name, attempt.record, attempt.occurrence),
        moment=tx.moment(due=due, call_no=attempt.call_no, restarted=attempt.call_no > 1 and attempt.unsure),
        occurrence=keys.occurrence_of(attempt.occurrence, len(query.spec.occurrence)),
        begun=clock,
        incarnation=incarnation.id,
        failures=attempt.failures,
        together=attempt.together if attempt.state is State.BEGUN else 0,
    )


def _of_record(in_flight: InFlightCall, record: Any) -> InFlightCall:
    """Set the tenant and the `in_order` value of a call by its record, and return the call."""
    query = in_flight.query
    in_flight.tenant = tenant_of(query, record)
    in_flight.line = group_scan.statements(query).text_of(record) if query.spec.in_order is not None and record is not None else None
    return in_flight


def _give_up(
    incarnation: Incarnation, tx: Transaction, query: ConditionQuery, standing: AttemptWithFacts, attempt: Attempt
) -> Attempt | None:
    """Run the `gave_up` handler. Return None where it made progress and the attempt may be deleted, otherwise the held attempt."""
    spec = query.spec
    if spec.gave_up is None:
        return rules.held_as(attempt, "the last try was used").attempt
    failure = Failure(attempt.error or "", attempt.call_no or attempt.failures, attempt.since)
    words = _run_handler_instead_of_call(incarnation, tx, query, standing, attempt, handler=spec.gave_up, arguments=(failure,))
    if words is None:
        say_given_up(incarnation, attempt)
        return None
    return rules.held_as(attempt, f"its gave_up handler failed: {words}").attempt


def _expire(
    incarnation: Incarnation, tx: Transaction, query: ConditionQuery, standing: AttemptWithFacts, attempt: Attempt
) -> Attempt | None:
    """Run the `expired` handler. Return None where it succeeded and the attempt may be deleted; otherwise the attempt that is to be tried
    again, or is held after the last try.
    """
    spec, late = query.spec, query.late
    assert late is not None  # noqa: S101  # only a reaction with `valid_for` expires, and it has `late`
    words = _run_handler_instead_of_call(incarnation, tx, late, standing, attempt, handler=late.spec.handler)
    if words is None:
        return None
    next_at = next_try(spec.terms.retry, attempt.failures + 1, tx.now, incarnation.dice.random())
    after = rules.expired_in_vain(attempt, spec.terms, tx.now, next_at, words).attempt
    said = f"{words}; {which_try(spec.terms.retry, after, tx.now)}"
    incarnation.after_commit.say(partial(_say_expired_failed, incarnation, attempt, said))
    return after


def _run_handler_instead_of_call(  # noqa: PLR0913  # every argument differs from call to call
    incarnation: Incarnation,
    tx: Transaction,
    query: ConditionQuery,
    standing: AttemptWithFacts,
    attempt: Attempt,
    *,
    handler: Function,
    arguments: tuple[Any, ...] = (),
) -> str | None:
    """Run a handler in place of a call. Return why it failed, or None."""
    moment = tx.moment(due=standing.due, call_no=attempt.call_no)
    try:
        work = Work(standing.key, standing.record, attempt.occurrence, arguments, {"ctx": moment})
        run_handler.run_one(query, tx, handler, work)
    except HandlerFailed as refused:
        if refused.cause is not None and db_errors.transient(refused.cause):
            raise refused.cause from None
        return incarnation.shorten(refused.error)
    tx.touched.add(query.entity, [standing.key], None)
    return None


# ---- the log, once that is committed ---------------------------------------------------------------------------------------------
def _say_expired(incarnation: Incarnation, attempt: Attempt, due: datetime | None) -> None:
    log.info(
        "%s expired: it was due at %s",
        of_attempt(incarnation, attempt),
        due,
        extra={"event": "expired", "reaction": attempt.reaction, "count": 1, "record": attempt.record},
    )


def _say_prepare_failed(incarnation: Incarnation, attempt: Attempt, words: str) -> None:
    log.warning(
        "%s: %s",
        of_attempt(incarnation, attempt),
        words,
        extra={"event": "sends_failed", "reaction": attempt.reaction, "record": attempt.record},
    )


def _say_expired_failed(incarnation: Incarnation, attempt: Attempt, words: str) -> None:
    log.warning(
        "%s: %s",
        of_attempt(incarnation, attempt),
        words,
        extra={"event": "expired_failed", "reaction": attempt.reaction, "record": attempt.record},
    )
