"""Applies the results of calls and lookups to their records and attempts, many in one transaction. An outcome is never lost.

A record that another transaction has locked is skipped: the record's result stays in memory and is applied later, and no failure is
counted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import select

from groundstate.engine.handle.apply_outcome import AttemptFilter, Conclusion, OutcomeToApply, outcome_writer_of
from groundstate.engine.handle.recheck_conditions import Work
from groundstate.engine.rows import attempts, claim, outcome_json
from groundstate.engine.rows.attempt_log import name_attempt, name_record
from groundstate.engine.rows.claim import AttemptWithFacts
from groundstate.engine.rows.in_flight import (
    CallResult,
    FoundAbsent,
    FoundUnknown,
    NothingHappened,
    NotSent,
    Returned,
    ThreadEnded,
    Unclear,
)
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.record_cycles import TracedTransaction
from groundstate.engine.sql.transaction import Transaction
from groundstate.engine.watch import unknown_states
from groundstate.rules import attempt as rules
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.retry import next_lookup_at, next_try_at
from groundstate.store.tables import worker

log = logging.getLogger("groundstate")


@dataclass
class Concluded:
    """What `conclude_results` wrote, and which results it left for later."""

    done: list[CallResult] = field(default_factory=list)
    # results to be applied in a later transaction; some of them are also in `locked` or `unasked`
    later: list[CallResult] = field(default_factory=list)
    locked: list[CallResult] = field(default_factory=list)  # results whose record another transaction has locked
    # pairs (result, error): the result has an outcome, and the condition raises the error for its record
    unasked: list[tuple[CallResult, str]] = field(default_factory=list)
    doubts: list[CallResult] = field(default_factory=list)  # results that put their attempts in doubt
    let_go: list[CallResult] = field(default_factory=list)  # results that were not reached before `until_s`
    outcomes: int = 0
    removed: set[int] = field(default_factory=set)  # call numbers of the attempts that were deleted
    works: Sequence[Work] = ()  # the work whose handlers were run together, without savepoints
    watch: TracedTransaction | None = None  # the trace of these handlers for record_cycles.py; None if none of them is traced


def conclude_results(  # noqa: PLR0913  # every argument differs from call to call
    incarnation: Incarnation,
    tx: Transaction,
    query: ConditionQuery,
    results: Sequence[CallResult],
    *,
    one_by_one: AttemptFilter,
    was_concluded_by_us: Callable[[CallResult], bool],
    refused: str | None = None,
    until_s: float = math.inf,
    only_search: bool = False,
    may_wait: bool = True,
) -> Concluded:
    """Apply the results to their attempts and records. Raises SomeHandlerFailed if a handler fails outside of a savepoint of its own.

    only_search: find out which handlers fail, and write nothing; SomeHandlerFailed names them.
    one_by_one: selects the attempts whose handlers run in a savepoint of their own.
    was_concluded_by_us: returns whether this worker may have committed a given result before (its COMMIT got no answer, and the lock was
        never lost).
    refused: why the work of the handlers cannot be committed; then no handler runs, and the outcomes are held. None otherwise.
    until_s: monotonic seconds after which no further handler starts; the first one always runs.
    may_wait: whether an outcome waits in memory if the condition raises an error for its record; if not, its attempt is held.
    """
    conclusion = Conclusion(incarnation, tx, query, one_by_one, refused, until_s, only_search)
    return _ResultWriter(incarnation, tx, query, was_concluded_by_us, conclusion, may_wait).write_results(results)


@dataclass
class _ResultWriter:
    incarnation: Incarnation
    tx: Transaction
    query: ConditionQuery
    was_concluded_by_us: Callable[[CallResult], bool]
    conclusion: Conclusion
    may_wait: bool
    concluded: Concluded = field(default_factory=Concluded)

    def write_results(self, results: Sequence[CallResult]) -> Concluded:
        looked = claim.lock_and_read_attempts(self.query, self.tx, list({result.in_flight.identity for result in results}))
        seen: set[attempts.Identity] = set()
        run_together: list[CallResult] = []  # results whose handlers run together after this loop
        for result in results:
            identity = result.in_flight.identity
            if identity in looked.busy:
                self.concluded.locked.append(result)
            if identity in looked.busy or identity in seen:
                self.concluded.later.append(result)  # a second result for an attempt is applied after the first one is written
                continue
            seen.add(identity)
            unread = looked.attempt_of_unreadable_record(identity)
            if self.may_wait and identity in looked.unasked and isinstance(result, Returned):
                self.concluded.later.append(result)
                self.concluded.unasked.append((result, looked.unreadable[identity][1]))
                continue
            if self.conclusion.is_out_of_time and isinstance(result, Returned):
                self.concluded.let_go.append(result)
                continue
            standing = unread or looked.standing[identity]
            if unread is None and self.conclusion.ran:  # the handler of an earlier result may have changed this record
                looked_again = claim.lock_and_read_attempts(self.query, self.tx, [identity])
                if identity not in looked_again.standing:
                    self.concluded.later.append(result)
                    continue
                standing = looked_again.standing[identity]
            self._apply_result(result, standing)
            (run_together if len(self.conclusion.together) > len(run_together) else self.concluded.done).append(result)
        self.conclusion.write_attempts()
        for result, (work, _) in zip(run_together, self.conclusion.together, strict=True):
            (self.concluded.done if id(work) in self.conclusion.reached else self.concluded.let_go).append(result)
        self.concluded.removed = {attempt.call for attempt in self.conclusion.removed}
        self.concluded.works = [work for work, _ in self.conclusion.together if id(work) in self.conclusion.reached]
        self.concluded.watch = self.conclusion.watch
        return self.concluded

    # ---- by type of result ---------------------------------------------------------------------------------------------------
    def _apply_result(self, result: CallResult, standing: AttemptWithFacts) -> None:
        if standing.attempt is None:
            if self.was_concluded_by_us(result):
                self.concluded.outcomes += isinstance(result, Returned)
                return  # an earlier commit had written this result, although its COMMIT got no answer
            if self._was_deleted_by_hand(result):
                standing = self._restore_deleted_attempt(result, standing)
        attempt = standing.attempt
        ours = attempt is not None and attempt.call == result.in_flight.call
        if result.in_flight.is_lookup:
            if attempt is None or not ours or attempt.state is not State.DOUBT or attempt.worker != self.incarnation.id:
                return  # the attempt has changed since the lookup was sent: a later lookup can ask again
            self._apply_lookup_answer(result, standing, attempt)
            return
        match result:
            case Returned(value=value):
                self.concluded.outcomes += 1
                if attempt is not None and ours and attempt.state is State.BEGUN:
                    self.conclusion.apply_outcome(_outcome_to_apply(result, value), standing, attempt)
                else:
                    self._apply_late_outcome(result, standing, value)
            case NothingHappened() | Unclear() | NotSent() | ThreadEnded():
                if attempt is not None and ours:
                    self._apply_result_without_outcome(result, attempt)

    def _apply_result_without_outcome(self, result: CallResult, attempt: Attempt) -> None:
        tx, terms = self.tx, self.query.spec.terms
        now = tx.now
        if isinstance(result, ThreadEnded):
            if attempt.state in (State.DOUBT, State.HELD):
                self.conclusion.saved.append((attempt, replace(attempt, deadline=max(attempt.deadline, now))))
            return
        if attempt.state is not State.BEGUN:
            return  # a late result changes nothing if it has no outcome
        match result:
            case NotSent():
                decision: rules.Decision = rules.on_call_not_sent(attempt, now)
            case NothingHappened(error=error, counts=counts, retry_after=retry_after):
                at = next_try_at(terms.retry, attempt.failures + counts, now, self.incarnation.dice.random(), retry_after)
                if not counts:
                    at = now + (retry_after or timedelta())
                decision = rules.on_call_not_done(attempt, self.incarnation.shorten(error), at, counts=counts)
            case Unclear(error=error):
                at = (
                    now
                    if terms.policy is not None and terms.policy.kind in ("hold", "lookup")
                    else next_try_at(terms.retry, attempt.failures + 1, now, self.incarnation.dice.random())
                )
                decision = rules.put_in_doubt(attempt, self.incarnation.shorten(error), at, now)
                self.concluded.doubts.append(result)
            case _:
                return
        self.conclusion.apply_decision(attempt, decision)

    def _apply_lookup_answer(self, result: CallResult, standing: AttemptWithFacts, attempt: Attempt) -> None:
        """Apply the answer of a lookup to its attempt in doubt."""
        spec, now, asked = self.query.spec, self.tx.now, result.in_flight.asked_at_by_clock(self.tx.now)
        terms = spec.terms
        ends, dice = attempt.deadline, self.incarnation.dice.random()
        absent_to = asked if isinstance(result, FoundAbsent) else None
        at = next_lookup_at(terms.retry, ends, terms.settle_after, ends, now, dice, absent_to=absent_to)
        match result:
            case Returned(value=value):
                self.concluded.outcomes += 1
                self.conclusion.apply_outcome(_outcome_to_apply(result, value), standing, attempt)
            case FoundAbsent():
                if asked <= attempt.deadline + terms.settle_after:
                    log.debug(
                        "%s: Absent is not believed before %s: when the lookup was made, the call could still have been on its way",
                        name_attempt(self.incarnation, attempt),
                        attempt.deadline + terms.settle_after,
                        extra={"event": "absent_too_early", "reaction": attempt.reaction, "record": attempt.record},
                    )
                called_at = now
                if attempt.failures:  # an attempt without failures is in doubt because of a restore, so its call need not wait
                    called_at = max(
                        next_try_at(terms.retry, attempt.failures, ends, self.incarnation.dice.random()), now
                    )  # the wait is counted from the failure, so it includes the time spent on lookups
                self.conclusion.apply_decision(attempt, rules.on_lookup_absent(attempt, terms, standing.facts, asked, at, called_at))
            case FoundUnknown(error=error):
                text = self.incarnation.shorten(error) if error else None
                self.conclusion.apply_decision(attempt, rules.ask_again_or_hold(attempt, terms, now, at, text))
            case _:
                return

    # ---- results that come late ------------------------------------------------------------------------------------------------
    def _apply_late_outcome(self, result: CallResult, standing: AttemptWithFacts, value: Any) -> None:
        spec = self.query.spec
        attempt = standing.attempt
        decision = rules.decide_late_outcome(attempt, spec.terms.policy, spec.when_overtaken, own=spec.kind)
        where = name_record(self.incarnation, *result.in_flight.identity[1:3])
        match decision:
            case rules.Drop(say):
                self.incarnation.after_commit.log(partial(_log_late_outcome_dropped, result, where, say), only_trace=True)
            case rules.HoldNew():
                same_life = self._has_kept_lock_since_call(result)
                self.conclusion.apply_outcome_without_attempt(
                    _outcome_to_apply(result, value), standing, result.in_flight.identity, same_life=same_life
                )
            case rules.AddOutcome(unsure=unsure, loudly=loudly) if attempt is not None:
                say = loudly or "a second outcome came late: it is kept beside the first"
                self.incarnation.after_commit.log(
                    partial(_log_late_outcome_kept, result, where, say, logging.ERROR if loudly else logging.WARNING)
                )
                unknown_states.hold_unknown_states(
                    self.tx, [result.in_flight.identity]
                )  # an outcome is kept even if the attempt's state is unknown
                written = outcome_json.append_outcome(spec.outcome_type, attempt.outcome, value, pen=outcome_writer_of(self.incarnation))
                why = outcome_json.note_if_only_text_was_kept(attempt.why or loudly or "an outcome came late", written)
                held = replace(attempt, state=State.HELD, unsure=unsure, outcome=written, why=why, next_at=None)
                self.conclusion.saved.append((attempt, held))
            case rules.Conclude(loudly=loudly) if attempt is not None:
                self.conclusion.apply_outcome(_outcome_to_apply(result, value), standing, attempt, loudly=loudly)
            case _:
                raise AssertionError(decision)

    # ---- attempts deleted by hand ------------------------------------------------------------------------------------------------
    def _was_deleted_by_hand(self, result: CallResult) -> bool:
        """Return whether the attempt of this result, which is missing, was deleted by hand although its call may have been made. For a call
        that was repeated this is only probable: a late outcome of its earlier try may have concluded the attempt.
        """
        surely_not_done = isinstance(result, NothingHappened | NotSent) and not result.in_flight.moment.restarted
        return not surely_not_done and self._has_kept_lock_since_call(result)

    def _restore_deleted_attempt(self, result: CallResult, standing: AttemptWithFacts) -> AttemptWithFacts:
        """Insert a deleted attempt again if its call was or may have been made, and return the attempt with its facts. Without the attempt,
        the call would be made once more.

        Nothing is inserted for an outcome whose record no longer meets the condition, or is blocked by another attempt:
        `rules.late_outcome` decides what becomes of that outcome.
        """
        in_flight, spec = result.in_flight, self.query.spec
        outcome, blocked = isinstance(result, Returned), standing.blocked is not None
        if not rules.must_restore_attempt(standing.facts, outcome=outcome, repeats=spec.repeats, blocked=blocked):
            return standing
        fresh = attempts.new_attempt_of_record(self.query, in_flight.identity[2], in_flight.identity[3], self.incarnation.id, self.tx.now)
        state = State.DOUBT if in_flight.is_lookup or isinstance(result, ThreadEnded) else State.BEGUN
        unsure = state is State.DOUBT or in_flight.moment.restarted
        again = replace(
            fresh, state=state, unsure=unsure, call=in_flight.call, call_no=in_flight.moment.call_no, first_at=in_flight.moment.now,
            begun_with=self.query.attempts.begun_with_text,
        )  # fmt: skip
        if state is State.DOUBT:
            again = replace(again, next_at=self.tx.now)
        if not attempts.insert_attempts(self.tx, [again]):
            return standing
        self.incarnation.after_commit.log(
            partial(_log_attempt_restored, result, name_record(self.incarnation, spec.name, in_flight.identity[2]))
        )
        return replace(standing, attempt=again)

    def _has_kept_lock_since_call(self, result: CallResult) -> bool:
        """Return whether the incarnation that made the call is the present one and has kept its lock ever since, so that no other worker
        took over the call. The incarnation's row is queried too, since a lost lock is noticed late. The query is rare: this method is
        called only if an attempt is missing.
        """
        if not self.incarnation.sound or self.incarnation.id != result.in_flight.incarnation:
            return False
        row = self.tx.connection.execute(select(worker.c.ended_at).where(worker.c.id == self.incarnation.id)).first()
        return row is not None and row.ended_at is None


OR_CONCLUDED = ", or was concluded by a late outcome of an earlier call"


def _log_late_outcome_dropped(result: CallResult, where: str, text: str) -> None:
    _, reaction, record, _ = result.in_flight.identity
    log.warning("%s: %s", where, text, extra={"event": "late_outcome_dropped", "reaction": reaction, "record": record})


def _log_late_outcome_kept(result: CallResult, where: str, text: str, level: int) -> None:
    _, reaction, record, _ = result.in_flight.identity
    log.log(level, "%s: %s", where, text, extra={"event": "late_outcome_kept", "reaction": reaction, "record": record})


def _log_attempt_restored(result: CallResult, where: str) -> None:
    _, reaction, record, _ = result.in_flight.identity
    log.error(
        "%s: its attempt was deleted by hand while its call was made%s: put back, since the record would be called once more",
        where,
        OR_CONCLUDED if result.in_flight.moment.restarted else "",
        extra={"event": "attempt_put_back", "reaction": reaction, "record": record},
    )


def _outcome_to_apply(result: CallResult, value: Any) -> OutcomeToApply:
    in_flight = result.in_flight
    return OutcomeToApply(value, in_flight.key, in_flight.occurrence, in_flight.moment.restarted)


def settle_begun_without_call(tx: Transaction, unknown: Sequence[Attempt], unanswered: Collection[int]) -> None:
    """Change or delete begun attempts of this worker whose call is no longer in the worker's memory.

    unanswered: The call numbers of attempts that were written in a transaction whose COMMIT got no answer. A call is sent only once its
        COMMIT is confirmed, so these calls were surely not sent. Any other call may have been sent, so its attempt is put in doubt.
    """
    saved: list[tuple[Attempt, Attempt]] = []
    removed: list[Attempt] = []
    for attempt in unknown:
        decision = rules.on_call_not_sent(attempt, tx.now) if attempt.call in unanswered else rules.on_call_not_in_memory(attempt, tx.now)
        if isinstance(decision, rules.Keep):
            saved.append((attempt, decision.attempt))
        else:
            removed.append(attempt)
    attempts.update_attempts(tx.connection, saved)
    attempts.delete_attempts(tx.database, tx.connection, removed)
