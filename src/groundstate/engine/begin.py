"""Begin: an attempt is written before its call goes out, many in one transaction. The calls go out after the commit, never before.

Also looks at attempts that stand: failed ones that are due, and doubts of ours, each to what rules/attempt.py says.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from groundstate.engine import attempts, careful, claim, groups, handling, in_place, line, snapshot, trouble
from groundstate.engine.attempt_log import of_attempt, say_given_up, say_held, say_kept, say_let_go, which_try
from groundstate.engine.claim import Claim, Standing, Taken, Unreadable
from groundstate.engine.flight import Flight, part_of
from groundstate.engine.guarded import describe, user_code
from groundstate.engine.handling import HandlerFailed, Work
from groundstate.engine.inside_call import SENDS_CURE, inside
from groundstate.engine.life import Life
from groundstate.engine.plain import Feed, new_attempt, put_off, unread
from groundstate.engine.question import PrimaryKey, Question
from groundstate.engine.transaction import Transaction
from groundstate.rules import attempt as rules
from groundstate.rules import blocking
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.careful import TOGETHER
from groundstate.rules.policy import LONG_AGO, MARGIN
from groundstate.rules.reaction import Function
from groundstate.rules.retry import last_try_used, next_try
from groundstate.values import keys
from groundstate.values.answers import Failure
from groundstate.values.errors import StateRefused

log = logging.getLogger("groundstate")


@dataclass
class Begun:
    """What a begin wrote, and the flights that go out once it is committed."""

    flights: list[Flight] = field(default_factory=list)
    claimed: Claim = field(default_factory=Claim)
    changed: int = 0  # attempts that became something else without a call
    busy: list[attempts.Identity] = field(default_factory=list)
    new_calls: int = 0
    sends_s: float = 0.0  # what `sends` took
    let_go: bool = False  # some of the attempts were not looked at, since handlers before them took long
    denied: list[PrimaryKey] = field(default_factory=list)  # taken, and then no slot or token was free for them
    expired: Counter[str] = field(default_factory=Counter)  # of the changed ones, by reaction

    def add(self, other: Begun) -> None:
        self.flights += other.flights
        self.changed += other.changed
        self.busy += other.busy
        self.new_calls += other.new_calls
        self.expired.update(other.expired)


Clocks = tuple[float, float]
Gate = Callable[[Sequence[Any]], Sequence[bool]]


def unlimited(records: Sequence[Any]) -> Sequence[bool]:
    """A gate that lets a call through for each of these records."""
    return [True] * len(records)


def begin(  # each differs from call to call
    life: Life, tx: Transaction, question: Question, feed: Feed, clock: tuple[float, float], gate: Gate = unlimited
) -> Begun:
    """Takes records by their condition and begins a call for each that the gate lets through, at most `feed.limit`."""
    spec, suspect = question.spec, question.spec.name in life.suspects
    found = claim_for_doubts(tx, question, feed) if suspect else feed.claim(question, tx)
    result = Begun(claimed=found)
    chosen = [one for one in found.taken if one.attempt is None or not _left_to_consider(life, question, one.attempt, tx.now)][: feed.limit]
    if suspect:
        result.changed = doubt(life, tx, question, [*chosen, *found.unreadable])
        # Its doubt was settled since: it is surely not done.
        chosen = [one for one in chosen if one.attempt is not None and not life.air.holds(spec, one.text)]
    else:
        result.changed = put_off(life, question, tx, found.unreadable)
    may = gate([one.record for one in chosen])
    result.denied = [one.key for one, through in zip(chosen, may, strict=True) if not through]
    chosen = [one for one, through in zip(chosen, may, strict=True) if through]
    new: list[Attempt] = []
    again: list[tuple[Attempt, Attempt]] = []
    flights: list[Flight] = []
    together = TOGETHER if life.care.careful else 0
    began = time.monotonic()
    for one in chosen:
        before = one.attempt or new_attempt(life, question, one.text, one.occurrence, tx.now)
        flown = _flight(life, tx, question, before, one.record, clock, due=one.due, together=together)
        after = flown if isinstance(flown, Attempt) else flown[0]
        if one.attempt is None:
            new.append(after)
        else:
            again.append((before, after))
        if not isinstance(flown, Attempt):
            flights.append(flown[1])
    if spec.sends is not None:
        result.sends_s = time.monotonic() - began
    written = attempts.insert(tx, new) | attempts.save(tx.connection, again)
    _detach(tx)
    result.flights = [flight for flight in flights if flight.call in written]  # no attempt, no call
    result.new_calls = len(result.flights)
    return result


def claim_for_doubts(tx: Transaction, question: Question, feed: Feed) -> Claim:
    """Also records for which this worker has a call in the air: a doubt begins nothing, and lists a call that the database lost."""
    air, tx.air = tx.air, None
    try:
        return feed.claim(question, tx)
    finally:
        tx.air = air


def doubt(life: Life, tx: Transaction, question: Question, found: Sequence[Taken | Unreadable]) -> int:
    """While the reaction is suspect: a doubt for each of these records that has no attempt (hazard 46); returns how many."""
    suspected = [_suspect(life, question, one, tx.now) for one in found if one.attempt is None]
    attempts.insert(tx, suspected)
    return len(suspected)


def consider(  # noqa: PLR0913  # each differs from call to call
    life: Life,
    tx: Transaction,
    question: Question,
    identities: Sequence[attempts.Identity],
    clock: Clocks,
    *,
    room: int,
    gate: Gate,
    alone: bool = False,
    hold_s: float,
) -> Begun:
    """Looks at attempts that stand, each by its row of the table; begins and asks as far as there is room. alone: careful mode, one that is
    suspected and whose turn it is. hold_s: for so long handlers are run that answer in place of a call.
    """
    looked = claim.look(question, tx, identities)
    looking = _Looking(life, tx, question, clock, time.monotonic() + hold_s)
    decided: list[_Decided] = []
    for standing in looked.standing.values():
        attempt = standing.attempt
        if attempt is None or not blocking.due(attempt, tx.now):
            continue
        if attempt.state is State.DOUBT and attempt.worker != life.id:
            continue  # whose doubt it is: the worker's that lives, or the adopter's
        decided.append(_Decided(attempt, standing, _decide(question, attempt, standing, tx.now)))
    flying = _in_their_turn(tx, question, [one for one in decided if one.wants_to_fly and (alone or not one.is_left_out(life))])[:room]
    through = {one.attempt.identity for one, may in zip(flying, gate([one.standing.record for one in flying]), strict=True) if may}
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
    """What is to become of an attempt that was looked at."""

    attempt: Attempt
    standing: Standing
    decision: rules.Decision

    @property
    def wants_to_fly(self) -> bool:
        """Not before its due time: that was moved, or the clock stepped back. Nor beside a call of ours for the same record."""
        if isinstance(self.decision, rules.Ask):
            return True
        return isinstance(self.decision, rules.Begin) and not self.standing.early and not self.standing.in_the_air

    def is_left_out(self, life: Life) -> bool:
        """Whether it is to be called while nothing else is under way. Asked after it may be at any time."""
        return isinstance(self.decision, rules.Begin) and careful.is_suspected(life, self.attempt)


def _in_their_turn(tx: Transaction, question: Question, some: list[_Decided]) -> list[_Decided]:
    """Without those whose turn it is not. What is asked after needs none."""
    if question.spec.in_order is None:
        return some
    begins = [one for one in some if isinstance(one.decision, rules.Begin)]
    failed = [(one.standing.key, one.standing.record) for one in begins if one.attempt.state is State.FAILED]
    doubts = [(one.standing.key, one.standing.record) for one in begins if one.attempt.state is State.DOUBT]
    may = set(line.of_their_turn(tx, question, failed)) if failed else set()
    may |= line.doubts_of_their_turn(tx, question, doubts) if doubts else set()
    return [one for one in some if one not in begins or one.standing.key in may]


@dataclass
class _Looking:
    """What became of attempts that were looked at, before it is written."""

    life: Life
    tx: Transaction
    question: Question
    clock: tuple[float, float]
    until_s: float
    result: Begun = field(default_factory=Begun)
    _ran: bool = False  # a handler, in place of a call
    saved: list[tuple[Attempt, Attempt]] = field(default_factory=list)
    removed: list[Attempt] = field(default_factory=list)

    def at(self, one: _Decided, *, may_fly: bool) -> None:
        attempt, standing = one.attempt, one.standing
        match one.decision:
            case rules.Begin() | rules.Ask() if not may_fly:
                pass  # looked at again later
            case rules.Begin():
                self._begin(attempt, standing)
            case rules.Ask():
                asked = _question(self.life, self.tx, self.question, attempt, standing, self.clock)
                if isinstance(asked, Attempt):
                    self.saved.append((attempt, asked))
                else:
                    self.result.flights.append(asked)
            case rules.Keep(after):
                self.saved.append((attempt, after))
                say_kept(self.life, after)
            case rules.Delete(say):
                self.removed.append(attempt)
                say_let_go(self.life, attempt, say)
            case rules.GaveUp() | rules.Expired() if self._ran and time.monotonic() >= self.until_s:
                self.result.let_go = True
            case rules.GaveUp():
                self._ended(attempt, _give_up(self.life, self.tx, self.question, standing, attempt))
            case rules.Expired(unsure=False) if self.life.care.careful and attempt.reaction not in self.life.suspects:
                pass  # the lane of what is too late takes it, which begins it first: its handler may be what kills workers
            case rules.Expired():
                self._expired(attempt, standing)
            case _:
                pass  # it waits for another attempt on its record

    def _expired(self, attempt: Attempt, standing: Standing) -> None:
        failed = _expire(self.life, self.tx, self.question, standing, attempt)
        if failed is None:
            log.info(
                "%s expired: it was due at %s",
                of_attempt(self.life, attempt),
                standing.due,
                extra={"event": "expired", "reaction": attempt.reaction, "count": 1, "record": attempt.record},
            )
            self.result.expired[attempt.reaction] += 1
        self._ended(attempt, failed)

    def _ended(self, attempt: Attempt, held: Attempt | None) -> None:
        self._ran = True
        if held is None:
            self.removed.append(attempt)
        else:
            self.saved.append((attempt, held))
            say_held(self.life, held)

    def unread(self, looked: claim.Look) -> None:
        """Those whose record cannot be read just now: a failure, and of a doubt no answer."""
        terms, now = self.question.spec.terms, self.tx.now
        for attempt, words in looked.unreadable.values():
            if attempt is None or not blocking.due(attempt, now):
                continue
            if attempt.state is State.FAILED:
                self.saved.append((attempt, unread(self.life, self.question, attempt, words, now)))
            elif attempt.worker == self.life.id:
                at = now + min(max(terms.retry.first, timedelta(seconds=1)), terms.retry.longest)
                self.saved.append((attempt, rules.unanswered(attempt, terms, now, at, self.life.shorten(words)).attempt))

    def _begin(self, attempt: Attempt, standing: Standing) -> None:
        together = 1 if careful.is_suspected(self.life, attempt) else TOGETHER if self.life.care.careful else 0
        flown = _flight(self.life, self.tx, self.question, attempt, standing.record, self.clock, due=standing.due, together=together)
        if isinstance(flown, Attempt):
            self.saved.append((attempt, flown))
            return
        self.saved.append((attempt, flown[0]))
        self.result.flights.append(flown[1])
        self.result.new_calls += 1


def _detach(tx: Transaction) -> None:
    """Snapshots leave their session: what handlers changed was flushed, and nothing of a snapshot may be."""
    tx.session.flush()
    tx.session.expunge_all()


def _decide(question: Question, attempt: Attempt, standing: Standing, now: datetime) -> rules.Decision:
    terms = question.spec.terms
    if attempt.state is State.FAILED:
        return rules.retry_failed(attempt, terms, standing.facts, now, blocked=standing.blocked is not None)
    return rules.settle(attempt, terms, standing.facts, now)


def _left_to_consider(life: Life, question: Question, attempt: Attempt, now: datetime) -> bool:
    """A failed attempt that `consider` must look at: gave_up answers, or it is suspected."""
    return _spent(question, attempt, now) or careful.is_suspected(life, attempt)


def _spent(question: Question, attempt: Attempt, now: datetime) -> bool:
    return last_try_used(question.spec.terms.retry, attempt.failures, attempt.since, now)


def _suspect(life: Life, question: Question, one: Taken | Unreadable, now: datetime) -> Attempt:
    """While the reaction is suspect: it may have been called in the lost time, so it starts as a doubt (hazard 46)."""
    new = new_attempt(life, question, one.text, one.occurrence, now)
    return replace(
        new, state=State.DOUBT, unsure=True, next_at=now, first_at=LONG_AGO, deadline=now + question.spec.terms.timeout + MARGIN,
        begun_with=question.begun_with,  # by code like this, for all that is known: other code asks elsewhere, and holds it
        why="the database went back in time: it may have been called in the lost time",
    )  # fmt: skip


def _flight(  # noqa: PLR0913  # each differs from call to call
    life: Life,
    tx: Transaction,
    question: Question,
    before: Attempt,
    record: Any,
    clock: tuple[float, float],
    *,
    due: datetime | None,
    together: int,
) -> tuple[Attempt, Flight] | Attempt:
    """The attempt with a new call, and its flight; or the attempt failed, where `sends` raised: surely not done."""
    spec = question.spec
    deadline = tx.now + spec.terms.timeout + MARGIN
    after = rules.begun(
        before,
        worker=life.id,
        call=attempts.new_call(),
        now=tx.now,
        deadline=deadline,
        together=together,
        begun_with=question.begun_with,
    )
    try:
        argument = _argument(tx, question, record, due)
    except Exception as error:
        if trouble.transient(error):
            raise
        words = life.shorten(f"sends raised {describe(error)}")
        failures = before.failures + 1
        kept = rules.not_done(before, words, next_try(spec.terms.retry, failures, tx.now, life.dice.random()), counts=True).attempt
        log.warning(
            "%s: %s; %s",
            of_attempt(life, before),
            words,
            which_try(spec.terms.retry, kept, tx.now),
            extra={"event": "sends_failed", "reaction": before.reaction, "record": before.record},
        )
        return replace(kept, state=State.DOUBT if before.unsure else State.FAILED, worker=life.id)
    return after, _of_record(_fly(life, tx, question, after, argument, clock, due=due), record)


def _question(
    life: Life, tx: Transaction, question: Question, attempt: Attempt, standing: Standing, clock: tuple[float, float]
) -> Flight | Attempt:
    """A find on its way; or the attempt to be asked later, where `sends` raised, which is Unknown."""
    try:
        argument = _argument(tx, question, standing.record, standing.due)
    except Exception as error:
        if trouble.transient(error):
            raise
        at = tx.now + max(question.spec.terms.retry.first, timedelta(seconds=1))
        return rules.unknown(attempt, at, life.shorten(f"sends raised {describe(error)}")).attempt
    return replace(_of_record(_fly(life, tx, question, attempt, argument, clock, due=standing.due), standing.record), asked_at=tx.now)


def _argument(tx: Transaction, question: Question, record: Any, due: datetime | None) -> Any:
    """What the call is given: a snapshot of the record, or what `sends` makes of it.

    Raises:
        StateRefused: `sends` changed a row. Nothing of it is left in the session.
    """
    spec = question.spec
    if spec.sends is None:
        return snapshot.take(record)
    session, was = tx.session, in_place.before(record)
    session.flush()  # what is found in it afterwards was left there by `sends`
    with inside(spec.app, f"`sends` of {spec.name}", SENDS_CURE, may_say=False), user_code():
        # A statement of its own that fails would take the whole transaction with it.
        own = session.begin_nested() if "session" in spec.sends.wants.values() else nullcontext()
        try:
            with session.no_autoflush, own:
                made = spec.sends(record, session=session, at=tx.moment(due=due))
                _refuse_changes(session, spec.name)
            if was is not None and (inside_of := in_place.edited(record, was)):
                session.expire(record, inside_of)
                raise StateRefused(f"`sends` of {spec.name} changed the inside of {', '.join(inside_of)}: {SENDS_CURE}, or change a copy")
        except BaseException:
            _forget_changes(session)
            raise
    return made


def _refuse_changes(session: Session, name: str) -> None:
    """Before the savepoint ends, which would flush them."""
    if session.new or session.deleted or any(session.is_modified(one) for one in session.dirty):
        raise StateRefused(f"`sends` of {name} changed a row: {SENDS_CURE}")


def _forget_changes(session: Session) -> None:
    """The rows are as they were. Those that were read stay in the session: others of the batch are among them."""
    for one in list(session.new):
        session.expunge(one)
    for one in list(session.deleted):
        session.add(one)  # which takes the delete back
    for one in list(session.dirty):
        session.expire(one)


def _fly(  # noqa: PLR0913  # as above
    life: Life, tx: Transaction, question: Question, attempt: Attempt, argument: Any, clock: tuple[float, float], *, due: datetime | None
) -> Flight:
    name = life.key_names.get(attempt.reaction, attempt.reaction)
    return Flight(
        question=question,
        identity=attempt.identity,
        call=attempt.call,
        argument=argument,
        key=keys.call_key(attempt.app, name, attempt.record, attempt.occurrence),
        moment=tx.moment(due=due, call_no=attempt.call_no, restarted=attempt.call_no > 1 and attempt.unsure),
        occurrence=keys.occurrence_of(attempt.occurrence, len(question.spec.occurrence)),
        begun=clock,
        life=life.id,
        failures=attempt.failures,
        together=attempt.together if attempt.state is State.BEGUN else 0,
    )


def _of_record(flight: Flight, record: Any) -> Flight:
    """With the part of the outside, and the line, that the record is of."""
    question = flight.question
    flight.part = part_of(question, record)
    flight.line = groups.statements(question).text_of(record) if question.spec.in_order is not None and record is not None else None
    return flight


def _give_up(life: Life, tx: Transaction, question: Question, standing: Standing, attempt: Attempt) -> Attempt | None:
    """The `gave_up` handler: None where it made progress and the attempt may go, else the attempt held."""
    spec = question.spec
    if spec.gave_up is None:
        return rules.held_as(attempt, "the last try was used").attempt
    failure = Failure(attempt.error or "", attempt.call_no or attempt.failures, attempt.since)
    words = _end(life, tx, question, standing, attempt, handler=spec.gave_up, arguments=(failure,))
    if words is None:
        say_given_up(life, attempt)
        return None
    return rules.held_as(attempt, f"its gave_up handler failed: {words}").attempt


def _expire(life: Life, tx: Transaction, question: Question, standing: Standing, attempt: Attempt) -> Attempt | None:
    """The `expired` handler: None likewise, else the attempt that is to be tried again, or is held after the last try."""
    spec, late = question.spec, question.late
    assert late is not None  # noqa: S101  # nothing else expires
    words = _end(life, tx, late, standing, attempt, handler=late.spec.handler)
    if words is None:
        return None
    next_at = next_try(spec.terms.retry, attempt.failures + 1, tx.now, life.dice.random())
    after = rules.expired_in_vain(attempt, spec.terms, tx.now, next_at, words).attempt
    log.warning(
        "%s: %s; %s",
        of_attempt(life, attempt),
        words,
        which_try(spec.terms.retry, after, tx.now),
        extra={"event": "expired_failed", "reaction": spec.name, "record": attempt.record},
    )
    return after


def _end(  # noqa: PLR0913  # as above
    life: Life,
    tx: Transaction,
    question: Question,
    standing: Standing,
    attempt: Attempt,
    *,
    handler: Function,
    arguments: tuple[Any, ...] = (),
) -> str | None:
    """Runs a handler that answers in place of a call; returns why that failed."""
    moment = tx.moment(due=standing.due, call_no=attempt.call_no)
    try:
        work = Work(standing.key, standing.record, attempt.occurrence, arguments, {"at": moment})
        handling.run_one(question, tx, handler, work)
    except HandlerFailed as refused:
        if refused.cause is not None and trouble.transient(refused.cause):
            raise refused.cause from None
        return life.shorten(refused.error)
    tx.touched.add(question.entity, [standing.key], None)
    return None
