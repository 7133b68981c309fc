"""Applies the outcomes of calls: the handler or the `overtaken` handler writes an outcome into its record, or the outcome is held for a
person. An outcome is never dropped without a log line, and never causes a new call.

An outcome may come from a call, from a lookup or from a person; all are applied alike. Changes of attempts are collected and written
together.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

from groundstate.engine.handle import failed_records, run_handler
from groundstate.engine.handle.recheck_conditions import RecheckBeforeHandlers, Work, keys_not_overtaken
from groundstate.engine.handle.run_handler import HandlerFailed
from groundstate.engine.rows import attempts, outcome_json
from groundstate.engine.rows.attempt_log import log_held_with_outcome, log_if_held, log_removed, name_attempt
from groundstate.engine.rows.attempts import Identity
from groundstate.engine.rows.claim import AttemptWithFacts
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql import db_errors
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.record_cycles import TracedTransaction
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.sql.safe_text import reraise_keyboard_interrupt
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules import attempt as rules
from groundstate.rules import begun_kind, overtaken
from groundstate.rules.attempt import Attempt
from groundstate.values.answers import IdempotencyKey, Occurrence

log = logging.getLogger("groundstate")


class SomeHandlerFailed(Exception):
    """Raised if a handler failed, or must run in a savepoint, in a batch without savepoints. The caller rolls back and repeats the batch
    with savepoints.

    Attributes:
        reaction: The name of the reaction whose handler failed.
        apart: The identities of attempts whose handler fails; empty if they are not known.
        others: The identities of attempts for which no failure was found.
    """

    def __init__(self, reaction: str, apart: Collection[Identity] = (), others: Collection[Identity] = ()) -> None:
        super().__init__()
        self.reaction = reaction
        self.apart = frozenset(apart)
        self.others = frozenset(others)


AttemptFilter = Callable[[Identity], bool]


def always_one_by_one(_: Identity) -> bool:
    """Return True for every attempt. As `Conclusion.one_by_one`, this runs every handler in a savepoint of its own."""
    return True


def never_one_by_one(_: Identity) -> bool:
    """Return False for every attempt. As `Conclusion.one_by_one`, this runs all handlers together, without savepoints."""
    return False


@dataclass(frozen=True, eq=False)
class OutcomeToApply:
    """An outcome to be applied, with the other arguments that its handler may take.

    Attributes:
        value: The outcome itself.
        key: The idempotency key of the call.
        occurrence: The occurrence (the values that tell one round of a record from the next) for which the call was made.
        restarted: Whether an earlier try of the call may have been made as well. The handler gets this value in its `ctx`.
        written: The JSON array of outcomes to keep if this outcome must be held; None for the attempt's stored outcomes plus this one.
        remaining: The JSON array of the attempt's other outcomes, which are held after this one is applied; None if there are none.
    """

    value: Any
    key: IdempotencyKey
    occurrence: Occurrence
    restarted: bool = False
    written: str | None = None
    remaining: str | None = None


@dataclass
class Conclusion:
    """Applies outcomes of one reaction in one transaction. It collects the changes of the attempts, and `write_attempts` writes them.

    Attributes:
        one_by_one: A function that tells for an attempt's identity whether its handler runs in a savepoint of its own. All other handlers
            run together, without savepoints.
        refused: Why the handlers' work cannot be committed, in words. If it is set, no handler runs, and the outcomes are held.
        until_s: The time after which no further handler starts, in monotonic seconds. The first handler always runs.
        only_search: If True, only find out which handlers fail, and raise SomeHandlerFailed with the result.
    """

    incarnation: Incarnation
    tx: Transaction
    query: ConditionQuery
    one_by_one: AttemptFilter
    refused: str | None = None
    until_s: float = math.inf
    only_search: bool = False
    saved: list[tuple[Attempt, Attempt]] = field(default_factory=list)
    removed: list[Attempt] = field(default_factory=list)
    dropped: list[Attempt] = field(default_factory=list)  # attempts in `removed` whose outcome was only logged, and written to no record
    new: list[Attempt] = field(default_factory=list)
    together: list[tuple[Work, Attempt]] = field(default_factory=list)
    watch: TracedTransaction | None = (
        None  # the trace that record_cycles.py keeps of this transaction; None if it traces none of the records
    )
    ran: int = 0  # how many handlers have run
    reached: set[int] = field(default_factory=set)  # `id()` of each work in `together` whose handler ran; all other works are tried later

    def apply_decision(self, attempt: Attempt, decision: rules.Decision) -> None:
        """Carry out a decision that needs no handler: note that the attempt is to be saved in its new form, or to be deleted."""
        match decision:
            case rules.Keep(after):
                self.saved.append((attempt, after))
                log_if_held(self.incarnation, after)
            case rules.Delete(say):
                self.removed.append(attempt)
                log_removed(self.incarnation, attempt, say)
            case _:
                raise AssertionError(decision)

    def apply_outcome(self, outcome: OutcomeToApply, standing: AttemptWithFacts, attempt: Attempt, *, loudly: str | None = None) -> None:
        """Apply an outcome to its record: by the ordinary handler if the record's condition holds, otherwise as `overtaken=` says.

        loudly: An error text to log after the commit; None if the outcome was expected.

        Raises SomeHandlerFailed if the outcome can only be applied in a savepoint.
        """
        if loudly:
            self.incarnation.after_commit.log(partial(_log_unexpected_outcome, self.incarnation, attempt, loudly))
        why = self.refused or standing.unreadable
        if why is not None:
            words = self.incarnation.shorten(why)
            self._hold_and_log(attempt, outcome, words, words)
            return
        decision = rules.on_call_returned(standing.facts)
        if isinstance(decision, rules.Conclude):
            work = self._make_work(outcome, standing, attempt)
            if self.one_by_one(attempt.identity):
                self._run_and_settle_attempt(
                    attempt, outcome, lambda: run_handler.run_in_savepoint(self.query, self.tx, self.query.spec.handler, work), standing
                )
            else:
                self.together.append((work, attempt))
            return
        self._apply_overtaken_outcome(outcome, standing, attempt)

    def apply_outcome_without_attempt(
        self, outcome: OutcomeToApply, standing: AttemptWithFacts, identity: Identity, *, same_life: bool
    ) -> None:
        """Apply an outcome whose attempt was deleted: run the `overtaken` handler. If there is none or it fails, insert a held attempt with
        the outcome.

        `same_life` tells whether the worker that made the call has kept its lock ever since, so that no other worker has concluded the
        call. Only then does overtaken='same' run the ordinary handler, since that handler might otherwise write this outcome a second time.
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
                run_handler.run_in_savepoint(self.query, self.tx, handler, self._make_work(outcome, standing, fresh), progress=False)
            except HandlerFailed as failure:
                if failure.cause is not None and db_errors.is_no_fault_of_record(failure.cause):
                    raise failure.cause from None
                why = self.incarnation.shorten(failure.error)
            else:
                self.tx.touched.add(self.query.entity, [standing.key], None)
                return
        else:
            unreadable = "" if standing.unreadable is None else f", and {self.incarnation.shorten(standing.unreadable)}"
            why = f"an outcome came after its attempt was gone{unreadable}"
        written = outcome_json.dump_outcomes(spec.outcome_type, [outcome.value], pen=outcome_writer_of(self.incarnation))
        why = outcome_json.note_if_only_text_was_kept(why, written)
        log_held_with_outcome(self.incarnation, spec.name, text, why)
        self.new.append(rules.hold_refused_outcome(fresh, why, None, written).attempt)

    @property
    def is_out_of_time(self) -> bool:
        """Whether a handler has run and the time `until_s` has passed, so that no further handler may start."""
        return self.ran > 0 and self.incarnation.clock.monotonic() >= self.until_s

    def write_attempts(self) -> None:
        """Run the handlers in `together`, then write all collected changes of attempts. Raises SomeHandlerFailed if one of these handlers
        fails.
        """
        self._run_handlers_together()
        attempts.update_attempts(self.tx.connection, self.saved)
        attempts.delete_attempts(self.tx.database, self.tx.connection, self.removed)
        attempts.insert_attempts(self.tx, self.new)

    def _apply_overtaken_outcome(self, outcome: OutcomeToApply, standing: AttemptWithFacts, attempt: Attempt) -> None:
        if not self.one_by_one(attempt.identity):
            # The decision about an overtaken outcome is logged. It is left to the rerun with savepoints, which logs it only once.
            raise SomeHandlerFailed(self.query.spec.name)
        spec = self.query.spec
        exists, has_handler = standing.facts.exists, spec.overtaken is not None
        decision = overtaken.decide_overtaken_outcome(spec.when_overtaken, has_handler=has_handler, repeats=spec.repeats, exists=exists)
        match decision:
            case overtaken.Hold(why):
                self._hold_and_log(attempt, outcome, why, None)
                return
            case overtaken.DropOutcome(say):
                self._drop_attempt_and_log(attempt, outcome, say)
                return
        work = self._make_work(outcome, standing, attempt)
        if isinstance(decision, overtaken.WriteFact):
            same = self.query.occurrences.means_occurrence(attempt.occurrence, self.query.occurrences.occurrence_text(standing.record))
            run = partial(run_handler.run_overtaken, self.query, self.tx, work, same_occurrence=same)
            self._run_and_settle_attempt(attempt, outcome, run, standing, drops=decision.drops)
            return
        function = spec.overtaken or spec.handler
        self._run_and_settle_attempt(
            attempt, outcome, partial(run_handler.run_in_savepoint, self.query, self.tx, function, work, progress=False), standing
        )

    def _hold_and_log(
        self, attempt: Attempt, outcome: OutcomeToApply, why: str, error: str | None, cause: BaseException | None = None
    ) -> None:
        log_held_with_outcome(self.incarnation, attempt.reaction, attempt.record, why, cause)
        self._hold_with_outcome(attempt, outcome, why, error)

    def _drop_attempt_and_log(self, attempt: Attempt, outcome: OutcomeToApply, why: str) -> None:
        """Delete the attempt without running a handler, and log all its outcomes: the log is then their only trace."""
        text = self.incarnation.shorten(self._outcomes_as_json(attempt, outcome))
        self.incarnation.after_commit.log(partial(_log_dropped_outcome, self.incarnation, attempt, why, text), only_trace=True)
        self.removed.append(attempt)
        self.dropped.append(attempt)

    def _run_and_settle_attempt(
        self, attempt: Attempt, outcome: OutcomeToApply, run: Callable[[], None], standing: AttemptWithFacts, *, drops: bool = False
    ) -> None:
        """Run a handler, and delete the attempt if the handler succeeds. If the handler fails, hold the attempt with its outcome. If
        `drops` is true, delete the attempt and log its outcome instead. So a failing handler never causes a new call.
        """
        self.ran += 1
        try:
            run()
        except HandlerFailed as failure:
            if failure.cause is not None and db_errors.is_no_fault_of_record(failure.cause):
                raise failure.cause from None
            words = self.incarnation.shorten(failure.error)
            if drops:
                self._drop_attempt_and_log(attempt, outcome, f"let go under InDoubt.repeat(): {words}")
                return
            self._hold_and_log(attempt, outcome, words, words, failure.cause)
            return
        if outcome.remaining is None:
            self.removed.append(attempt)
        else:
            self.saved.append((attempt, rules.hold_remaining_outcomes(attempt, outcome.remaining).attempt))
        self.tx.touched.add(self.query.entity, [standing.key], None)

    def _hold_with_outcome(self, attempt: Attempt, outcome: OutcomeToApply, why: str, error: str | None) -> None:
        written = self._outcomes_as_json(attempt, outcome)
        kept = outcome_json.note_if_only_text_was_kept(why, written, last=outcome.written is None)
        if kept != why:
            log_outcome_kept_as_text(self.incarnation, attempt, kept)
            why = kept
        self.saved.append((attempt, rules.hold_refused_outcome(attempt, why, error, written).attempt))

    def _outcomes_as_json(self, attempt: Attempt, outcome: OutcomeToApply) -> str:
        """Return a JSON array with the attempt's stored outcomes, followed by this outcome."""
        return outcome.written or outcome_json.append_outcome(
            self.query.spec.outcome_type, attempt.outcome, outcome.value, pen=outcome_writer_of(self.incarnation)
        )

    def _run_handlers_together(self) -> None:
        """Run the handlers in `together`, without savepoints. If a handler fails, raise SomeHandlerFailed, so that the caller rolls the
        transaction back and repeats it with savepoints.
        """
        query, tx = self.query, self.tx
        works = [work for work, _ in self.together]
        if self.only_search:
            looked = failed_records.find_failing_records(
                query, tx, query.spec.handler, works, keys_not_overtaken, self.until_s - self.incarnation.clock.monotonic()
            )
            raise self._handler_failure(looked.failed, looked.others)
        if not works:
            return
        self.watch = self.incarnation.rings.note_conditions_before(query, tx.connection, works)
        try:
            recheck = RecheckBeforeHandlers(query, tx, works, keys_not_overtaken, stale=self.ran > 0)
            works = run_handler.run_for_each_record(query, tx, query.spec.handler, recheck, self.until_s).works
            self.ran += len(works)
            new = run_handler.write_changes(query, tx, works)
        except Exception as error:
            if db_errors.is_no_fault_of_record(error) or isinstance(error, db_errors.TransactionEnded):
                raise
            raise self._handler_failure() from error
        still = run_handler.keys_without_progress(query, tx, works, new)
        if still:
            raise self._handler_failure(still, {work.key for work in works} - set(still))
        if self.watch is not None:
            reached = {work.key for work in works}
            self.watch.mine = [step for step in self.watch.mine if step[1] in reached]
            self.incarnation.rings.note_conditions_after(self.watch, tx.connection)
        self.reached = {id(work) for work in works}
        self.removed += [attempt for work, attempt in self.together if id(work) in self.reached]
        tx.touched.add(query.entity, [work.key for work in works], new)

    def _handler_failure(self, apart: Collection[PrimaryKey] = (), others: Collection[PrimaryKey] = ()) -> SomeHandlerFailed:
        told = {work.key: attempt.identity for work, attempt in self.together}
        return SomeHandlerFailed(self.query.spec.name, [told[key] for key in apart], [told[key] for key in others])

    def _make_work(self, outcome: OutcomeToApply, standing: AttemptWithFacts, attempt: Attempt) -> Work:
        moment = self.tx.context_for(due=standing.due, call_no=attempt.call_no, restarted=outcome.restarted)
        supplies = {"ctx": moment, "key": outcome.key, "occurrence": outcome.occurrence}
        # An older version of the application may have made the attempt's occurrence from other columns. The text of such an occurrence
        # cannot be compared with a present one, so the check for progress compares with the record's present occurrence instead.
        other = begun_kind.has_other_occurrence_columns(attempt.begun_with, self.query.spec.occurrence_columns)
        round_ = self.query.occurrences.occurrence_text(standing.record) if other else attempt.occurrence
        return Work(standing.key, standing.record, round_, (_copy_for_handler(outcome.value),), supplies)


def outcome_writer_of(incarnation: Incarnation) -> outcome_json.Pen:
    """Return the Pen (how outcomes are shortened and made JSON) that this worker uses to write outcomes."""
    return outcome_json.Pen(incarnation.shorten_outcome, incarnation.database.codec)


def log_outcome_kept_as_text(incarnation: Incarnation, attempt: Attempt, why: str) -> None:
    """Log, as an error after the commit, that only a text of an outcome could be stored. A person must act then, since no handler can be
    given such a text.
    """
    incarnation.after_commit.log(partial(_log_outcome_kept_as_text, incarnation, attempt, why))


def _log_outcome_kept_as_text(incarnation: Incarnation, attempt: Attempt, why: str) -> None:
    log.error(
        "%s: %s",
        name_attempt(incarnation, attempt),
        why,
        extra={"event": "outcome_as_text", "reaction": attempt.reaction, "record": attempt.record},
    )


def _log_unexpected_outcome(incarnation: Incarnation, attempt: Attempt, words: str) -> None:
    log.error(
        "%s: %s",
        name_attempt(incarnation, attempt),
        words,
        extra={"event": "outcome_unexpected", "reaction": attempt.reaction, "record": attempt.record},
    )


def _log_dropped_outcome(incarnation: Incarnation, attempt: Attempt, why: str, text: str) -> None:
    log.warning(
        "%s: %s; outcome: %s",
        name_attempt(incarnation, attempt),
        why,
        text,
        extra={"event": "outcome_dropped", "reaction": attempt.reaction, "record": attempt.record},
    )


def _copy_for_handler(value: Any) -> Any:
    """Return a deep copy of an outcome, or the outcome itself if it cannot be copied. A handler that edits its copy and then fails leaves
    the outcome unchanged for the next try.
    """
    if value.__class__ in _CANNOT_BE_EDITED:
        return value
    try:
        return copy.deepcopy(value)
    except BaseException as error:  # the outcome contains something that cannot be copied, such as a lock
        reraise_keyboard_interrupt(error)
        return value


_CANNOT_BE_EDITED = frozenset({str, bytes, int, float, bool, Decimal, date, datetime, time, timedelta, UUID, type(None)})
