"""Begins calls: writes an attempt for each call, many in one transaction. A call is sent only after the commit of its attempt.

Also processes attempts that exist already and are due: failed attempts, and this worker's attempts in doubt. rules/attempt.py decides what
becomes of each attempt.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from groundstate.engine.handle import in_order, poison_guard, run_handler
from groundstate.engine.handle.recheck_conditions import Work
from groundstate.engine.handle.run_batch import Feed, attempt_after_failed_read, fail_unreadable_records
from groundstate.engine.handle.run_handler import HandlerFailed
from groundstate.engine.rows import attempts, claim
from groundstate.engine.rows.attempt_log import describe_try, log_given_up, log_if_held, log_kept, log_removed, log_unreadable, name_attempt
from groundstate.engine.rows.claim import AttemptWithFacts, Claim, ClaimedRecord, Unreadable
from groundstate.engine.rows.in_flight import InFlightCall, tenant_of
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql import db_errors, group_scan, in_place_changes, readonly_record
from groundstate.engine.sql.call_write_guard import PREPARE_CURE, refusing_writes
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.sql.safe_text import describe_exception, running_user_code
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules import attempt as rules
from groundstate.rules import blocking
from groundstate.rules.attempt import Attempt, Facts, State
from groundstate.rules.poison_suspects import TOGETHER
from groundstate.rules.policy import LONG_AGO, MARGIN
from groundstate.rules.retry import is_last_try_used, next_try_at, reason_of_last_try
from groundstate.rules.specs import Function
from groundstate.values import keys
from groundstate.values.answers import Failure
from groundstate.values.errors import StateRefusedError
from groundstate.values.unawaited import describe_unawaited

log = logging.getLogger("groundstate")


@dataclass
class Begun:
    """What one transaction wrote while calls were begun, and the calls to be sent once it is committed."""

    in_flights: list[InFlightCall] = field(default_factory=list)
    claimed: Claim = field(default_factory=Claim)
    changed: int = 0  # number of attempts that were changed or deleted without a call
    busy: list[attempts.Identity] = field(default_factory=list)
    new_calls: int = 0
    prepare_s: float = 0.0  # seconds spent in the user's `prepare`
    let_go: bool = False  # whether some attempts were left for later because handlers took long
    # keys of records that have no attempt, and for whose call no slot or token was free
    denied: list[PrimaryKey] = field(default_factory=list)
    denied_again: bool = False  # whether a call for a record with an attempt got no slot or token, so that the attempt stays due
    expired: Counter[str] = field(default_factory=Counter)  # by reaction, the number of expired attempts among `changed`

    def add(self, other: Begun) -> None:
        self.in_flights += other.in_flights
        self.changed += other.changed
        self.busy += other.busy
        self.new_calls += other.new_calls
        self.expired.update(other.expired)


Clocks = tuple[float, float]
# A gate decides which calls may begin. It takes the records, and a bool for each: whether it was tried before. It returns a bool for each.
Gate = Callable[[Sequence[Any], Sequence[bool]], Sequence[bool]]


def admit_all(records: Sequence[Any], _again: Sequence[bool]) -> Sequence[bool]:
    """Return True for each of these records: every call may begin. This gate is used where there are no limits."""
    return [True] * len(records)


def begin_calls(
    incarnation: Incarnation, tx: Transaction, query: ConditionQuery, feed: Feed, clock: tuple[float, float], gate: Gate = admit_all
) -> Begun:
    """Claim records by their condition, and begin a call for each that `gate` lets pass, at most `feed.limit` of them.

    clock: the result of an earlier call of `read_clocks`.
    """
    spec, suspect = query.spec, query.spec.name in incarnation.suspects
    found = claim_including_records_in_flight(tx, query, feed) if suspect else feed.claim_records(query, tx)
    result = Begun(claimed=found)
    chosen = [
        one for one in found.records if one.attempt is None or not _is_left_to_process_due_attempts(incarnation, query, one.attempt, tx.now)
    ][: feed.limit]
    if suspect:
        result.changed = insert_attempts_in_doubt(incarnation, tx, query, [*chosen, *found.unreadable])
        # A call of a suspect reaction may begin only for a record that has a failed attempt. That attempt was in doubt before, and was
        # then settled as not made. A record without an attempt has just got an attempt in doubt.
        chosen = [one for one in chosen if one.attempt is not None and not incarnation.air.must_leave_alone(spec, one.text)]
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
    began = incarnation.clock.monotonic()
    for one in chosen:
        before = one.attempt or attempts.new_attempt_of_record(query, one.text, one.occurrence, incarnation.id, tx.now)
        flown = _begun_attempt_and_call(incarnation, tx, query, before, one.record, clock, due=one.due, together=together)
        after = flown if isinstance(flown, Attempt) else flown[0]
        if one.attempt is None:
            new.append(after)
        else:
            again.append((before, after))
        if not isinstance(flown, Attempt):
            in_flights.append(flown[1])
    if spec.prepare is not None:
        result.prepare_s = incarnation.clock.monotonic() - began
    written = attempts.insert_attempts(tx, new) | attempts.update_attempts(tx.connection, again)
    _detach_snapshots(tx)
    result.in_flights = [in_flight for in_flight in in_flights if in_flight.call in written]  # no call is sent without its attempt
    result.new_calls = len(result.in_flights)
    return result


def claim_including_records_in_flight(tx: Transaction, query: ConditionQuery, feed: Feed) -> Claim:
    """Claim records, including those for which this worker has a call in flight.

    Call it where each claimed record without an attempt gets an attempt in doubt. If a call is in flight for such a record, the database
    has lost the call's attempt. The new attempt in doubt takes its place, and begins no second call.
    """
    air, tx.air = tx.air, None
    try:
        return feed.claim_records(query, tx)
    finally:
        tx.air = air


def insert_attempts_in_doubt(
    incarnation: Incarnation, tx: Transaction, query: ConditionQuery, found: Sequence[ClaimedRecord | Unreadable]
) -> int:
    """Insert an attempt in doubt for each of these records that has no attempt. Return the number of inserted attempts.

    Call it while the reaction is suspect: a backup was put back, so the database may have lost a call for the record (hazard 46).
    """
    suspected = [_new_attempt_in_doubt(incarnation, query, one, tx.now) for one in found if one.attempt is None]
    attempts.insert_attempts(tx, suspected)
    return len(suspected)


def process_due_attempts(  # noqa: PLR0913  # every argument differs from call to call
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
    """Decide what becomes of these attempts, as far as they are due, and begin at most `room` calls and lookups for them.

    alone: whether these attempts are a single attempt that is suspected of ending workers. Careful mode runs it while nothing else is in
        flight.
    hold_s: seconds after which this transaction starts no further handler.
    """
    looked = claim.lock_and_read_attempts(query, tx, identities)
    looking = _ConsideredAttempts(incarnation, tx, query, clock, incarnation.clock.monotonic() + hold_s)
    decided: list[_Decided] = []
    for standing in looked.standing.values():
        attempt = standing.attempt
        if attempt is None or not blocking.is_retry_due(attempt, tx.now):
            continue
        if attempt.state is State.DOUBT and attempt.worker != incarnation.id:
            continue  # another worker's attempt in doubt is settled by that worker, or by one that takes over its attempts
        decided.append(_Decided(attempt, standing, _decision_for_attempt(query, attempt, standing, tx.now)))
    flying = _without_those_waiting_in_order(
        tx, query, [one for one in decided if one.wants_call_or_lookup and (alone or not one.must_be_called_alone(incarnation))]
    )[:room]
    may = gate([one.standing.record for one in flying], [True] * len(flying))
    through = {one.attempt.identity for one, goes in zip(flying, may, strict=True) if goes}
    for one in decided:
        looking.apply_decision(one, may_fly=one.attempt.identity in through)
    looking.add_failure_where_record_is_unreadable(looked)
    attempts.update_attempts(tx.connection, looking.saved)
    attempts.delete_attempts(tx.database, tx.connection, looking.removed)
    _detach_snapshots(tx)
    result = looking.result
    result.busy = list(looked.busy)
    result.changed = len(looking.saved) + len(looking.removed) - result.new_calls
    return result


@dataclass(frozen=True)
class _Decided:
    """An attempt that is due, and what the rules decided about it."""

    attempt: Attempt
    standing: AttemptWithFacts
    decision: rules.Decision

    @property
    def wants_call_or_lookup(self) -> bool:
        """Return whether a lookup or call is to be made now.

        A call must wait until the record is due, since the due time may have been moved, or the clock set back. It must also wait until
        this worker has no other call in flight for the record.
        """
        if isinstance(self.decision, rules.AskLookup):
            return True
        return isinstance(self.decision, rules.Begin) and not self.standing.early and not self.standing.in_the_air

    def must_be_called_alone(self, incarnation: Incarnation) -> bool:
        """Return whether the attempt's call must run alone in careful mode, with no other call in flight. A lookup for the attempt may be
        made at any time.
        """
        return isinstance(self.decision, rules.Begin) and poison_guard.is_suspected(incarnation, self.attempt)


def _without_those_waiting_in_order(tx: Transaction, query: ConditionQuery, some: list[_Decided]) -> list[_Decided]:
    """Return these attempts, but leave out each attempt whose call must wait for an earlier record with an equal `in_order` value. Lookups
    never wait.
    """
    if query.spec.in_order is None:
        return some
    begins = [one for one in some if isinstance(one.decision, rules.Begin)]
    failed = [(one.standing.key, one.standing.record) for one in begins if one.attempt.state is State.FAILED]
    doubts = [(one.standing.key, one.standing.record) for one in begins if one.attempt.state is State.DOUBT]
    may = set(in_order.find_places_of_records_in_turn(tx, query, failed)) if failed else set()
    may |= in_order.find_doubts_in_turn(tx, query, doubts) if doubts else set()
    return [one for one in some if one not in begins or one.standing.key in may]


@dataclass
class _ConsideredAttempts:
    """Collects what becomes of due attempts, so that all changes can be written by a few statements."""

    incarnation: Incarnation
    tx: Transaction
    query: ConditionQuery
    clock: tuple[float, float]
    until_s: float
    result: Begun = field(default_factory=Begun)
    _ran: bool = False  # whether a handler was run in place of a call
    saved: list[tuple[Attempt, Attempt]] = field(default_factory=list)
    removed: list[Attempt] = field(default_factory=list)

    def apply_decision(self, one: _Decided, *, may_fly: bool) -> None:
        attempt, standing = one.attempt, one.standing
        match one.decision:
            case rules.Begin() | rules.AskLookup() if not may_fly:
                pass  # no room for a call now: the attempt stays due
            case rules.Begin():
                self._begin_call(attempt, standing)
            case rules.AskLookup():
                asked = _make_lookup(self.incarnation, self.tx, self.query, attempt, standing, self.clock)
                if isinstance(asked, Attempt):
                    self.saved.append((attempt, asked))
                else:
                    self.result.in_flights.append(asked)
            case rules.Keep(after):
                self.saved.append((attempt, after))
                log_kept(self.incarnation, after)
            case rules.Delete(say):
                self.removed.append(attempt)
                log_removed(self.incarnation, attempt, say)
            case rules.GaveUp() | rules.Expired() if self._ran and self.incarnation.clock.monotonic() >= self.until_s:
                self.result.let_go = True
            case rules.GaveUp():
                self._remove_or_hold(attempt, _run_gave_up_handler(self.incarnation, self.tx, self.query, standing, attempt))
            case rules.Expired(unsure=False) if self.incarnation.care.careful and attempt.reaction not in self.incarnation.suspects:
                # The handler may end the worker, so careful mode needs a begun attempt first. The queue of expired records writes that
                # attempt, and then runs the handler.
                pass
            case rules.Expired():
                self._expire_attempt(attempt, standing)
            case _:
                pass  # another attempt on the same record must end first

    def _expire_attempt(self, attempt: Attempt, standing: AttemptWithFacts) -> None:
        failed = _run_expired_handler(self.incarnation, self.tx, self.query, standing, attempt)
        if failed is None:
            self.incarnation.after_commit.log(partial(_log_expired, self.incarnation, attempt, standing.due))
            self.result.expired[attempt.reaction] += 1
        self._remove_or_hold(attempt, failed)

    def _remove_or_hold(self, attempt: Attempt, held: Attempt | None) -> None:
        self._ran = True
        if held is None:
            self.removed.append(attempt)
        else:
            self.saved.append((attempt, held))
            log_if_held(self.incarnation, held)

    def add_failure_where_record_is_unreadable(self, looked: claim.AttemptsUnderLock) -> None:
        """Add a failure to each due attempt whose record cannot be read now.

        An attempt in doubt is treated as if a lookup had given no answer. An attempt that the rules would hold anyway, with a readable
        record too, is held at once.
        """
        terms, now = self.query.spec.terms, self.tx.now
        for attempt, words in looked.unreadable.values():
            if attempt is None or not blocking.is_retry_due(attempt, now):
                continue
            if attempt.state is State.DOUBT and attempt.worker == self.incarnation.id:
                decision = rules.decide_attempt_in_doubt(attempt, terms, Facts(exists=True, holds=True), now)
                if isinstance(decision, rules.Keep):
                    self.saved.append((attempt, decision.attempt))
                    log_kept(self.incarnation, decision.attempt)
                    continue
            if attempt.state is State.FAILED:
                self.saved.append((attempt, attempt_after_failed_read(self.incarnation, self.query, attempt, words, now)))
                log_unreadable(self.incarnation, self.query.spec, attempt.record, self.saved[-1][1].error)
            elif attempt.state is State.DOUBT and attempt.worker == self.incarnation.id:
                log_unreadable(self.incarnation, self.query.spec, attempt.record, self.incarnation.shorten(words))
                at = now + min(max(terms.retry.first, timedelta(seconds=1)), terms.retry.longest)
                self.saved.append((attempt, rules.ask_again_or_hold(attempt, terms, now, at, self.incarnation.shorten(words)).attempt))

    def _begin_call(self, attempt: Attempt, standing: AttemptWithFacts) -> None:
        together = 1 if poison_guard.is_suspected(self.incarnation, attempt) else TOGETHER if self.incarnation.care.careful else 0
        flown = _begun_attempt_and_call(
            self.incarnation, self.tx, self.query, attempt, standing.record, self.clock, due=standing.due, together=together
        )
        if isinstance(flown, Attempt):
            self.saved.append((attempt, flown))
            return
        self.saved.append((attempt, flown[0]))
        self.result.in_flights.append(flown[1])
        self.result.new_calls += 1


def _detach_snapshots(tx: Transaction) -> None:
    """Detach the snapshots (the copies of records that calls receive) from their session. Changes that handlers made are flushed first;
    later changes to a snapshot are never written.
    """
    tx.session.flush()
    tx.session.expunge_all()


def _decision_for_attempt(query: ConditionQuery, attempt: Attempt, standing: AttemptWithFacts, now: datetime) -> rules.Decision:
    terms = query.spec.terms
    if attempt.state is State.FAILED:
        return rules.decide_failed_attempt(attempt, terms, standing.facts, now, blocked=standing.blocked is not None)
    return rules.decide_attempt_in_doubt(attempt, terms, standing.facts, now)


def _is_left_to_process_due_attempts(incarnation: Incarnation, query: ConditionQuery, attempt: Attempt, now: datetime) -> bool:
    """Return whether `begin_calls` must leave this failed attempt to `process_due_attempts`: either its last try was used, so that
    `gave_up` runs, or it is suspected of killing workers.
    """
    return _is_last_try_used(query, attempt, now) or poison_guard.is_suspected(incarnation, attempt)


def _is_last_try_used(query: ConditionQuery, attempt: Attempt, now: datetime) -> bool:
    return is_last_try_used(query.spec.terms.retry, attempt.failures, attempt.since, now)


def _new_attempt_in_doubt(incarnation: Incarnation, query: ConditionQuery, one: ClaimedRecord | Unreadable, now: datetime) -> Attempt:
    """Return a new attempt in doubt for a record of a suspect reaction: the call may have been made in the time that the database lost when
    a backup was put back (hazard 46).
    """
    new = attempts.new_attempt_of_record(query, one.text, one.occurrence, incarnation.id, now)
    return replace(
        new, state=State.DOUBT, unsure=True, next_at=now, first_at=LONG_AGO, deadline=now + query.spec.terms.timeout + MARGIN,
        # This assumes that the call was made as this version makes it. A version whose call differs will hold the attempt.
        begun_with=query.attempts.begun_with_text,
        why="the database went back in time: it may have been called in the lost time",
    )  # fmt: skip


def _begun_attempt_and_call(  # noqa: PLR0913  # every argument differs from call to call
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
    """Return a pair: the begun attempt, and its call. If `prepare` raised, return only the failed attempt, since nothing was sent."""
    spec = query.spec
    deadline = tx.now + spec.terms.timeout + MARGIN
    after = rules.attempt_with_new_call(
        before,
        worker=incarnation.id,
        call=attempts.new_call_number(tx.database.dice),
        now=tx.now,
        deadline=deadline,
        together=together,
        begun_with=query.attempts.begun_with_text,
    )
    try:
        argument = _make_call_argument(tx, query, record, due)
    except Exception as error:
        if db_errors.is_no_fault_of_record(error):
            raise
        words = incarnation.shorten(f"prepare raised {describe_exception(error)}")
        failures = before.failures + 1
        kept = rules.on_call_not_done(
            before, words, next_try_at(spec.terms.retry, failures, tx.now, incarnation.dice.random()), counts=True
        ).attempt
        said = f"{words}; {describe_try(spec.terms.retry, kept, tx.now)}"
        incarnation.after_commit.log(partial(_log_prepare_failed, incarnation, before, said))
        return replace(kept, state=State.DOUBT if before.unsure else State.FAILED, worker=incarnation.id)
    return after, _set_tenant_and_in_order_value(_make_in_flight_call(incarnation, tx, query, after, argument, clock, due=due), record)


def _make_lookup(
    incarnation: Incarnation,
    tx: Transaction,
    query: ConditionQuery,
    attempt: Attempt,
    standing: AttemptWithFacts,
    clock: tuple[float, float],
) -> InFlightCall | Attempt:
    """Return a lookup that is ready to be sent. If `prepare` raised, return the attempt instead, with a later time for its lookup."""
    try:
        argument = _make_call_argument(tx, query, standing.record, standing.due)
    except Exception as error:
        if db_errors.is_no_fault_of_record(error):
            raise
        at = tx.now + max(query.spec.terms.retry.first, timedelta(seconds=1))
        return rules.on_lookup_unknown(attempt, at, incarnation.shorten(f"prepare raised {describe_exception(error)}")).attempt
    return replace(
        _set_tenant_and_in_order_value(
            _make_in_flight_call(incarnation, tx, query, attempt, argument, clock, due=standing.due), standing.record
        ),
        asked_at=tx.now,
    )


def _make_call_argument(tx: Transaction, query: ConditionQuery, record: Any, due: datetime | None) -> Any:
    """Return the argument of the call: a read-only copy of the record (a snapshot), or what `prepare` makes of that copy.

    Raises:
        StateRefusedError: `prepare` changed a row. Its changes are removed from the session.
    """
    spec = query.spec
    if spec.prepare is None:
        return readonly_record.make_read_only(record)
    session, was = tx.session, in_place_changes.copy_mutable_values(record)
    session.flush()  # writes earlier changes, so that each change that is found below comes from `prepare`
    with refusing_writes(spec.app, f"`prepare` of {spec.name}", PREPARE_CURE, may_say=False), running_user_code():
        # Without a savepoint, a statement of `prepare` that fails would abort the whole transaction.
        own = session.begin_nested() if "session" in spec.prepare.wants.values() else nullcontext()
        try:
            with session.no_autoflush, own:
                made = spec.prepare(record, session=session, ctx=tx.context_for(due=due))
                if tx.refuses():
                    raise StateRefusedError(f"`prepare` of {spec.name}: {run_handler.swallowed_error_message(tx)}")
                lost = describe_unawaited(made)
                if lost is not None:
                    raise TypeError(
                        f"`prepare` returned {lost}: `prepare` runs in a transaction, where nothing is awaited: await it in the call"
                    )
                _raise_if_prepare_changed_a_row(session, spec.name)
            if was is not None and (inside_of := in_place_changes.edited_attributes(record, was)):
                session.expire(record, inside_of)
                raise StateRefusedError(
                    f"`prepare` of {spec.name} changed the inside of {', '.join(inside_of)}: {PREPARE_CURE}, or change a copy"
                )
        except BaseException:
            _discard_pending_changes(session)
            raise
    return made


def _raise_if_prepare_changed_a_row(session: Session, name: str) -> None:
    """Raise StateRefusedError if `prepare` changed a row. Call it before the savepoint ends, since its end would flush the changes."""
    if session.new or session.deleted or any(session.is_modified(one) for one in session.dirty):
        raise StateRefusedError(f"`prepare` of {name} changed a row: {PREPARE_CURE}")


def _discard_pending_changes(session: Session) -> None:
    """Discard changes that the session has not flushed, but keep the rows that it read: other records of the batch are among these rows."""
    for one in list(session.new):
        session.expunge(one)
    for one in list(session.deleted):
        session.add(one)  # cancels a delete that `prepare` asked for
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
        moment=tx.context_for(due=due, call_no=attempt.call_no, restarted=attempt.call_no > 1 and attempt.unsure),
        occurrence=keys.parse_occurrence(attempt.occurrence, len(query.spec.occurrence)),
        begun=clock,
        incarnation=incarnation.id,
        failures=attempt.failures,
        together=attempt.together if attempt.state is State.BEGUN else 0,
    )


def _set_tenant_and_in_order_value(in_flight: InFlightCall, record: Any) -> InFlightCall:
    """Set two fields of a call from its record: `tenant`, and `line` (the value of `in_order`). Return the call."""
    query = in_flight.query
    in_flight.tenant = tenant_of(query, record)
    in_flight.line = (
        group_scan.group_statements(query).group_text_of(record) if query.spec.in_order is not None and record is not None else None
    )
    return in_flight


def _run_gave_up_handler(
    incarnation: Incarnation, tx: Transaction, query: ConditionQuery, standing: AttemptWithFacts, attempt: Attempt
) -> Attempt | None:
    """Run the `gave_up` handler. Return None if the condition no longer holds after it, so that the attempt may be deleted; otherwise
    return the held attempt.
    """
    spec = query.spec
    if spec.gave_up is None:
        return rules.hold_attempt(attempt, reason_of_last_try(spec.terms.retry, attempt.failures)).attempt
    failure = Failure(attempt.error or "", attempt.call_no or attempt.failures, attempt.since)
    words = _run_handler_instead_of_call(incarnation, tx, query, standing, attempt, handler=spec.gave_up, arguments=(failure,))
    if words is None:
        log_given_up(incarnation, attempt)
        return None
    return rules.hold_attempt(attempt, f"its gave_up handler failed: {words}").attempt


def _run_expired_handler(
    incarnation: Incarnation, tx: Transaction, query: ConditionQuery, standing: AttemptWithFacts, attempt: Attempt
) -> Attempt | None:
    """Run the `expired` handler. Return None if it succeeded, so that the attempt may be deleted. Otherwise return the attempt, which is to
    be tried again or, after the last try, is held.
    """
    spec, late = query.spec, query.query_for_expired
    assert late is not None  # noqa: S101  # only a reaction with `valid_for` expires, and it has `query_for_expired`
    words = _run_handler_instead_of_call(incarnation, tx, late, standing, attempt, handler=late.spec.handler)
    if words is None:
        return None
    next_at = next_try_at(spec.terms.retry, attempt.failures + 1, tx.now, incarnation.dice.random())
    after = rules.on_expired_handler_failed(attempt, spec.terms, tx.now, next_at, words).attempt
    said = f"{words}; {describe_try(spec.terms.retry, after, tx.now)}"
    incarnation.after_commit.log(partial(_log_expired_handler_failed, incarnation, attempt, said))
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
    """Run a handler in place of a call. Return why the handler failed, as a text; None if it succeeded."""
    moment = tx.context_for(due=standing.due, call_no=attempt.call_no)
    try:
        work = Work(standing.key, standing.record, attempt.occurrence, arguments, {"ctx": moment})
        run_handler.run_in_savepoint(query, tx, handler, work)
    except HandlerFailed as refused:
        if refused.cause is not None and db_errors.is_no_fault_of_record(refused.cause):
            raise refused.cause from None
        return incarnation.shorten(refused.error)
    tx.touched.add(query.entity, [standing.key], None)
    return None


# ---- log lines, written after the commit -----------------------------------------------------------------------------------------
def _log_expired(incarnation: Incarnation, attempt: Attempt, due: datetime | None) -> None:
    log.info(
        "%s expired: it was due at %s",
        name_attempt(incarnation, attempt),
        due,
        extra={"event": "expired", "reaction": attempt.reaction, "count": 1, "record": attempt.record},
    )


def _log_prepare_failed(incarnation: Incarnation, attempt: Attempt, words: str) -> None:
    log.warning(
        "%s: %s",
        name_attempt(incarnation, attempt),
        words,
        extra={"event": "sends_failed", "reaction": attempt.reaction, "record": attempt.record},
    )


def _log_expired_handler_failed(incarnation: Incarnation, attempt: Attempt, words: str) -> None:
    log.warning(
        "%s: %s",
        name_attempt(incarnation, attempt),
        words,
        extra={"event": "expired_failed", "reaction": attempt.reaction, "record": attempt.record},
    )
