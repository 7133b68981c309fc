"""Applies outcomes: each is written to its record by the handler or by `overtaken`, or held. An outcome is never dropped silently, and
never leads to a new call.

It makes no difference whether a call, a lookup or a person brought the outcome. Changes of the attempts are collected and written once.
"""

from __future__ import annotations

import copy
import logging
import math
import time as clock
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

from groundstate.engine.handle import asked_again, failed_records, run_handler
from groundstate.engine.handle.asked_again import AskedAgain
from groundstate.engine.handle.run_handler import HandlerFailed, Work
from groundstate.engine.rows import attempts, outcome_json
from groundstate.engine.rows.attempt_log import of_attempt, say_held, say_held_with_outcome, say_let_go
from groundstate.engine.rows.attempts import Identity
from groundstate.engine.rows.claim import AttemptWithFacts
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql import db_errors
from groundstate.engine.sql.condition_query import ConditionQuery, PrimaryKey
from groundstate.engine.sql.record_cycles import Watch
from groundstate.engine.sql.safe_text import let_through
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules import attempt as rules
from groundstate.rules import begun_kind, overtaken
from groundstate.rules.attempt import Attempt
from groundstate.values.answers import IdempotencyKey, Occurrence

log = logging.getLogger("groundstate")


class SomeHandlerFailed(Exception):
    """Raised if a handler failed in a batch that runs without savepoints: the caller rolls back and applies the outcomes one by one.

    `reaction` names whose handler it was; `apart` are the failing attempts, if known; `others` those for which no failure was found.
    """

    def __init__(self, reaction: str, apart: Collection[Identity] = (), others: Collection[Identity] = ()) -> None:
        super().__init__()
        self.reaction = reaction
        self.apart = frozenset(apart)
        self.others = frozenset(others)


Some = Callable[[Identity], bool]


def everyone(_: Identity) -> bool:
    """Return True for every attempt: a value for `Conclusion.one_by_one`."""
    return True


def nobody(_: Identity) -> bool:
    """Return False for every attempt: a value for `Conclusion.one_by_one`."""
    return False


@dataclass(frozen=True, eq=False)
class OutcomeToApply:
    """An outcome to be applied, with what its handler may be given beside it.

    `written` is the JSON array that is kept if the outcome must be held; None means the attempt's outcomes and this one.
    `remaining` is the JSON array of the attempt's other outcomes, to be concluded after this one.
    """

    value: Any
    key: IdempotencyKey
    occurrence: Occurrence
    restarted: bool = False
    written: str | None = None
    remaining: str | None = None


@dataclass
class Conclusion:
    """Applies outcomes of one reaction in one transaction, and collects what becomes of their attempts; `write` writes that.

    Attributes:
        one_by_one: Tells for which attempts the handler runs in a savepoint of its own; the others run together.
        refused: Why the handler's work cannot be committed: then it does not run, and the outcome is held. So it is where the record cannot
            be read.
        until_s: Monotonic seconds after which no further handler starts; the first one always runs.
        looks: Only find out which handlers fail, and raise SomeHandlerFailed with the result.
    """

    incarnation: Incarnation
    tx: Transaction
    query: ConditionQuery
    one_by_one: Some
    refused: str | None = None
    until_s: float = math.inf
    looks: bool = False
    saved: list[tuple[Attempt, Attempt]] = field(default_factory=list)
    removed: list[Attempt] = field(default_factory=list)
    dropped: list[Attempt] = field(default_factory=list)  # removed attempts whose outcome is only in the log, and in no record
    new: list[Attempt] = field(default_factory=list)
    together: list[tuple[Work, Attempt]] = field(default_factory=list)
    watch: Watch | None = None  # set if some of the records that run together are watched for a ring
    ran: int = 0  # how many handlers ran
    reached: set[int] = field(default_factory=set)  # ids of those of the works of `together` whose handlers ran; the others come again

    def apply(self, attempt: Attempt, decision: rules.Decision) -> None:
        """Carry out a decision that needs no handler: save the attempt changed, or delete it."""
        match decision:
            case rules.Keep(after):
                self.saved.append((attempt, after))
                say_held(self.incarnation, after)
            case rules.Delete(say):
                self.removed.append(attempt)
                say_let_go(self.incarnation, attempt, say)
            case _:
                raise AssertionError(decision)

    def outcome(self, given: OutcomeToApply, standing: AttemptWithFacts, attempt: Attempt, *, loudly: str | None = None) -> None:
        """Apply an outcome to its record: by the handler if the condition holds, else as overtaken. Raises SomeHandlerFailed."""
        if loudly:
            self.incarnation.after_commit.say(partial(_say_unexpected, self.incarnation, attempt, loudly))
        why = self.refused or standing.unreadable
        if why is not None:
            words = self.incarnation.shorten(why)
            self._hold_loudly(attempt, given, words, words)
            return
        decision = rules.returned(standing.facts)
        if isinstance(decision, rules.Conclude):
            work = self._work(given, standing, attempt)
            if self.one_by_one(attempt.identity):
                self._try(attempt, given, lambda: run_handler.run_one(self.query, self.tx, self.query.spec.handler, work), standing)
            else:
                self.together.append((work, attempt))
            return
        self._overtaken(given, standing, attempt)

    def came_after_all(self, given: OutcomeToApply, standing: AttemptWithFacts, identity: Identity, *, same_life: bool) -> None:
        """Apply an outcome whose attempt is gone: the `overtaken` handler gets it; without one, a new held attempt keeps it.

        `same_life` means that the worker which made the call kept its lock throughout, so no other worker adopted and concluded the call.
        Only then does overtaken='same' run the ordinary handler; otherwise it might write one outcome twice.
        """
        spec = self.query.spec
        text, occurrence = identity[2], identity[3]
        fresh = attempts.new_attempt_of_record(self.query, text, occurrence, self.incarnation.id, self.tx.now)
        handler = spec.handler if spec.when_overtaken == "same" and same_life else spec.overtaken
        if handler is not None and standing.facts.exists and standing.unreadable is None:
            if not self.one_by_one(identity):
                raise SomeHandlerFailed(spec.name)
            self.ran += 1
            try:
                run_handler.run_one(self.query, self.tx, handler, self._work(given, standing, fresh), progress=False)
            except HandlerFailed as failure:
                if failure.cause is not None and db_errors.transient(failure.cause):
                    raise failure.cause from None
                why = self.incarnation.shorten(failure.error)
            else:
                self.tx.touched.add(self.query.entity, [standing.key], None)
                return
        else:
            unreadable = "" if standing.unreadable is None else f", and {self.incarnation.shorten(standing.unreadable)}"
            why = f"an outcome came after its attempt was gone{unreadable}"
        written = outcome_json.dump(spec.outcome_type, [given.value], pen=pen_of(self.incarnation))
        why = outcome_json.with_what_was_kept(why, written)
        say_held_with_outcome(self.incarnation, spec.name, text, why)
        self.new.append(rules.outcome_refused(fresh, why, None, written).attempt)

    @property
    def is_late(self) -> bool:
        """Whether no further handler may start."""
        return self.ran > 0 and clock.monotonic() >= self.until_s

    def write(self) -> None:
        """Run the handlers that were put off to run together, then write every attempt. Raises SomeHandlerFailed."""
        self._run_together()
        attempts.save(self.tx.connection, self.saved)
        attempts.remove(self.tx.database, self.tx.connection, self.removed)
        attempts.insert(self.tx, self.new)

    def _overtaken(self, given: OutcomeToApply, standing: AttemptWithFacts, attempt: Attempt) -> None:
        if not self.one_by_one(attempt.identity):
            raise SomeHandlerFailed(self.query.spec.name)  # an overtaken outcome is logged, so not in a batch that may run twice
        spec = self.query.spec
        exists, has_handler = standing.facts.exists, spec.overtaken is not None
        decision = overtaken.decide_overtaken_outcome(spec.when_overtaken, has_handler=has_handler, repeats=spec.repeats, exists=exists)
        match decision:
            case overtaken.Hold(why):
                self._hold_loudly(attempt, given, why, None)
                return
            case overtaken.DropIt(say):
                self._drop(attempt, given, say)
                return
        work = self._work(given, standing, attempt)
        if isinstance(decision, overtaken.WriteFact):
            same = self.query.is_round(attempt.occurrence, self.query.occurrence_text(standing.record))
            run = partial(run_handler.run_overtaken, self.query, self.tx, work, same_occurrence=same)
            self._try(attempt, given, run, standing, drops=decision.drops)
            return
        function = spec.overtaken or spec.handler
        self._try(attempt, given, partial(run_handler.run_one, self.query, self.tx, function, work, progress=False), standing)

    def _hold_loudly(
        self, attempt: Attempt, given: OutcomeToApply, why: str, error: str | None, cause: BaseException | None = None
    ) -> None:
        say_held_with_outcome(self.incarnation, attempt.reaction, attempt.record, why, cause)
        self._hold(attempt, given, why, error)

    def _drop(self, attempt: Attempt, given: OutcomeToApply, why: str) -> None:
        """Delete the attempt with all its outcomes, and log them, since no person is asked about them any more."""
        outcome = self.incarnation.shorten(self._written(attempt, given))
        self.incarnation.after_commit.say(partial(_say_dropped, self.incarnation, attempt, why, outcome), only_trace=True)
        self.removed.append(attempt)
        self.dropped.append(attempt)

    def _try(
        self, attempt: Attempt, given: OutcomeToApply, run: Callable[[], None], standing: AttemptWithFacts, *, drops: bool = False
    ) -> None:
        """Run a handler in its savepoint. If it raises, the attempt is held with the outcome (dropped, if `drops`), and never becomes a new
        call.
        """
        self.ran += 1
        try:
            run()
        except HandlerFailed as failure:
            if failure.cause is not None and db_errors.transient(failure.cause):
                raise failure.cause from None
            words = self.incarnation.shorten(failure.error)
            if drops:
                self._drop(attempt, given, f"let go under InDoubt.repeat(): {words}")
                return
            self._hold_loudly(attempt, given, words, words, failure.cause)
            return
        if given.remaining is None:
            self.removed.append(attempt)
        else:
            self.saved.append((attempt, rules.one_of_several(attempt, given.remaining).attempt))
        self.tx.touched.add(self.query.entity, [standing.key], None)

    def _hold(self, attempt: Attempt, given: OutcomeToApply, why: str, error: str | None) -> None:
        written = self._written(attempt, given)
        kept = outcome_json.with_what_was_kept(why, written, last=given.written is None)
        if kept != why:
            say_text_alone(self.incarnation, attempt, kept)
            why = kept
        self.saved.append((attempt, rules.outcome_refused(attempt, why, error, written).attempt))

    def _written(self, attempt: Attempt, given: OutcomeToApply) -> str:
        """Return the JSON array of the attempt's outcomes, this one included."""
        return given.written or outcome_json.add(self.query.spec.outcome_type, attempt.outcome, given.value, pen=pen_of(self.incarnation))

    def _run_together(self) -> None:
        """Run the handlers of all ordinary conclusions without savepoints. If one fails, raise SomeHandlerFailed, so that the whole
        transaction is done again.
        """
        query, tx = self.query, self.tx
        works = [work for work, _ in self.together]
        if self.looks:
            looked = failed_records.find_failing_records(
                query, tx, query.spec.handler, works, asked_again.concluded, self.until_s - clock.monotonic()
            )
            raise self._failed(looked.failed, looked.others)
        if not works:
            return
        self.watch = self.incarnation.rings.watch(query, tx.connection, works)
        try:
            again = AskedAgain(query, tx, works, asked_again.concluded, stale=self.ran > 0)
            works = run_handler.run_each(query, tx, query.spec.handler, again, self.until_s).works
            self.ran += len(works)
            new = run_handler.flush_all(query, tx, works)
        except Exception as error:
            if db_errors.transient(error) or isinstance(error, db_errors.TransactionEnded):
                raise
            raise self._failed() from error
        still = run_handler.without_progress(query, tx, works, new)
        if still:
            raise self._failed(still, {work.key for work in works} - set(still))
        if self.watch is not None:
            reached = {work.key for work in works}
            self.watch.mine = [step for step in self.watch.mine if step[1] in reached]
            self.incarnation.rings.look(self.watch, tx.connection)
        self.reached = {id(work) for work in works}
        self.removed += [attempt for work, attempt in self.together if id(work) in self.reached]
        tx.touched.add(query.entity, [work.key for work in works], new)

    def _failed(self, apart: Collection[PrimaryKey] = (), others: Collection[PrimaryKey] = ()) -> SomeHandlerFailed:
        told = {work.key: attempt.identity for work, attempt in self.together}
        return SomeHandlerFailed(self.query.spec.name, [told[key] for key in apart], [told[key] for key in others])

    def _work(self, given: OutcomeToApply, standing: AttemptWithFacts, attempt: Attempt) -> Work:
        moment = self.tx.moment(due=standing.due, call_no=attempt.call_no, restarted=given.restarted)
        supplies = {"ctx": moment, "key": given.key, "occurrence": given.occurrence}
        # If the attempt's occurrence was made of other columns, its text fits no occurrence of today, so progress is judged by the record's
        # present one.
        other = begun_kind.is_of_other_rounds(attempt.begun_with, self.query.spec.occurrence_columns)
        round_ = self.query.occurrence_text(standing.record) if other else attempt.occurrence
        return Work(standing.key, standing.record, round_, (_for_a_handler(given.value),), supplies)


def pen_of(incarnation: Incarnation) -> outcome_json.Pen:
    """Return the Pen with which this incarnation writes outcomes down."""
    return outcome_json.Pen(incarnation.outcome_as_text, incarnation.database.codec)


def say_text_alone(incarnation: Incarnation, attempt: Attempt, why: str) -> None:
    """Log an error that only a text of the outcome could be kept, so that no handler can be given it and a person has to act."""
    incarnation.after_commit.say(partial(_say_text_alone, incarnation, attempt, why))


def _say_text_alone(incarnation: Incarnation, attempt: Attempt, why: str) -> None:
    log.error(
        "%s: %s",
        of_attempt(incarnation, attempt),
        why,
        extra={"event": "outcome_as_text", "reaction": attempt.reaction, "record": attempt.record},
    )


def _say_unexpected(incarnation: Incarnation, attempt: Attempt, words: str) -> None:
    log.error(
        "%s: %s",
        of_attempt(incarnation, attempt),
        words,
        extra={"event": "outcome_unexpected", "reaction": attempt.reaction, "record": attempt.record},
    )


def _say_dropped(incarnation: Incarnation, attempt: Attempt, why: str, outcome: str) -> None:
    log.warning(
        "%s: %s; outcome: %s",
        of_attempt(incarnation, attempt),
        why,
        outcome,
        extra={"event": "outcome_dropped", "reaction": attempt.reaction, "record": attempt.record},
    )


def _for_a_handler(value: Any) -> Any:
    """Return a copy of an outcome for a handler. If the handler edits it and then fails, the outcome must still be as it came when the
    handler runs again or the outcome is held.
    """
    if value.__class__ in _CANNOT_BE_EDITED:
        return value
    try:
        return copy.deepcopy(value)
    except BaseException as error:  # the outcome holds something that cannot be copied, such as a lock
        let_through(error)
        return value


_CANNOT_BE_EDITED = frozenset({str, bytes, int, float, bool, Decimal, date, datetime, time, timedelta, UUID, type(None)})
