"""Applies the results of calls and lookups to their records and attempts, many in one transaction. An outcome is never dropped.

Rows that other transactions have locked are skipped: such an outcome stays in memory and is tried again, without counting as a failure.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import select

from groundstate.engine.handle.apply_outcome import Conclusion, OutcomeToApply, Some, pen_of
from groundstate.engine.handle.run_handler import Work
from groundstate.engine.rows import attempts, claim, outcome_json
from groundstate.engine.rows.attempt_log import named, of_attempt
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
from groundstate.engine.sql.record_cycles import Watch
from groundstate.engine.sql.transaction import Transaction
from groundstate.engine.watch import unknown_states
from groundstate.rules import attempt as rules
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.retry import next_question, next_try
from groundstate.store.tables import worker

log = logging.getLogger("groundstate")


@dataclass
class Concluded:
    """Lists what a call of `conclude` wrote, and which results it left for later."""

    done: list[CallResult] = field(default_factory=list)
    later: list[CallResult] = field(default_factory=list)  # results to be tried again, `locked` and `unasked` included
    locked: list[CallResult] = field(default_factory=list)  # results whose record another transaction has locked
    unasked: list[tuple[CallResult, str]] = field(default_factory=list)  # outcomes for whose record the condition raises, with the reasons
    doubts: list[CallResult] = field(default_factory=list)  # results that put their attempts in doubt
    let_go: list[CallResult] = field(default_factory=list)  # results for which no time was left
    outcomes: int = 0
    removed: set[int] = field(default_factory=set)  # calls whose attempts it deleted
    works: Sequence[Work] = ()  # the handlers that were run together
    watch: Watch | None = None  # set where record_cycles.py traces some of these handlers


def conclude(  # noqa: PLR0913  # every argument differs from call to call
    incarnation: Incarnation,
    tx: Transaction,
    query: ConditionQuery,
    words: Sequence[CallResult],
    *,
    one_by_one: Some,
    was_ours: Callable[[CallResult], bool],
    refused: str | None = None,
    until_s: float = math.inf,
    looks: bool = False,
    waits: bool = True,
) -> Concluded:
    """Apply the results to their attempts. Raises SomeHandlerFailed where a handler failed that `one_by_one` does not name.

    looks: only find out which handlers fail; SomeHandlerFailed reports them.
    one_by_one: names the attempts whose handlers are run in a savepoint each.
    was_ours: whether a commit of this very result may have landed before (its COMMIT brought no answer, and the lock was never lost).
    refused: why the handler's work cannot be committed: it is not run, and its outcome is held.
    until_s: monotonic time after which no further handler is started; one is run in any case.
    waits: whether an outcome for whose record the condition raises may wait until somebody mends that; otherwise it is held.
    """
    conclusion = Conclusion(incarnation, tx, query, one_by_one, refused, until_s, looks)
    return _ResultWriter(incarnation, tx, query, was_ours, conclusion, waits).put(words)


@dataclass
class _ResultWriter:
    incarnation: Incarnation
    tx: Transaction
    query: ConditionQuery
    was_ours: Callable[[CallResult], bool]
    conclusion: Conclusion
    waits: bool
    result: Concluded = field(default_factory=Concluded)

    def put(self, words: Sequence[CallResult]) -> Concluded:
        looked = claim.lock_and_read_attempts(self.query, self.tx, list({word.in_flight.identity for word in words}))
        seen: set[attempts.Identity] = set()
        waiting: list[CallResult] = []  # results whose handlers are run together at the end
        for word in words:
            identity = word.in_flight.identity
            if identity in looked.busy:
                self.result.locked.append(word)
            if identity in looked.busy or identity in seen:
                self.result.later.append(word)  # a second result for an attempt must see what the first one changed
                continue
            seen.add(identity)
            unread = looked.without_its_record(identity)
            if self.waits and identity in looked.unasked and isinstance(word, Returned):
                self.result.later.append(word)
                self.result.unasked.append((word, looked.unreadable[identity][1]))
                continue
            if self.conclusion.is_late and isinstance(word, Returned):
                self.result.let_go.append(word)
                continue
            standing = unread or looked.standing[identity]
            if unread is None and self.conclusion.ran:  # the handler of an earlier word may have changed this record
                looked_again = claim.lock_and_read_attempts(self.query, self.tx, [identity])
                if identity not in looked_again.standing:
                    self.result.later.append(word)
                    continue
                standing = looked_again.standing[identity]
            self._word(word, standing)
            (waiting if len(self.conclusion.together) > len(waiting) else self.result.done).append(word)
        self.conclusion.write()
        for word, (work, _) in zip(waiting, self.conclusion.together, strict=True):
            (self.result.done if id(work) in self.conclusion.reached else self.result.let_go).append(word)
        self.result.removed = {attempt.call for attempt in self.conclusion.removed}
        self.result.works = [work for work, _ in self.conclusion.together if id(work) in self.conclusion.reached]
        self.result.watch = self.conclusion.watch
        return self.result

    # ---- by type of result ---------------------------------------------------------------------------------------------------
    def _word(self, word: CallResult, standing: AttemptWithFacts) -> None:
        if standing.attempt is None:
            if self.was_ours(word):
                self.result.outcomes += isinstance(word, Returned)
                return  # our own commit of this result landed after all
            if self._was_deleted_by_hand(word):
                standing = self._put_back(word, standing)
        attempt = standing.attempt
        ours = attempt is not None and attempt.call == word.in_flight.call
        if word.in_flight.is_lookup:
            if attempt is None or not ours or attempt.state is not State.DOUBT or attempt.worker != self.incarnation.id:
                return  # the attempt moved on: a later lookup can ask again
            self._answer(word, standing, attempt)
            return
        match word:
            case Returned(value=value):
                self.result.outcomes += 1
                if attempt is not None and ours and attempt.state is State.BEGUN:
                    self.conclusion.outcome(_in_hand(word, value), standing, attempt)
                else:
                    self._late(word, standing, value)
            case NothingHappened() | Unclear() | NotSent() | ThreadEnded():
                if attempt is not None and ours:
                    self._no_outcome(word, attempt)

    def _no_outcome(self, word: CallResult, attempt: Attempt) -> None:
        tx, terms = self.tx, self.query.spec.terms
        now = tx.now
        if isinstance(word, ThreadEnded):
            if attempt.state in (State.DOUBT, State.HELD):
                self.conclusion.saved.append((attempt, replace(attempt, deadline=max(attempt.deadline, now))))
            return
        if attempt.state is not State.BEGUN:
            return  # a late result that is no outcome changes nothing
        match word:
            case NotSent():
                decision: rules.Decision = rules.did_not_go_out(attempt, now)
            case NothingHappened(error=error, counts=counts, retry_after=retry_after):
                at = next_try(terms.retry, attempt.failures + counts, now, self.incarnation.dice.random(), retry_after)
                if not counts:
                    at = now + (retry_after or timedelta())
                decision = rules.not_done(attempt, self.incarnation.shorten(error), at, counts=counts)
            case Unclear(error=error):
                at = (
                    now
                    if terms.policy is not None and terms.policy.kind in ("hold", "lookup")
                    else next_try(terms.retry, attempt.failures + 1, now, self.incarnation.dice.random())
                )
                decision = rules.unclear(attempt, self.incarnation.shorten(error), at, now)
                self.result.doubts.append(word)
            case _:
                return
        self.conclusion.apply(attempt, decision)

    def _answer(self, word: CallResult, standing: AttemptWithFacts, attempt: Attempt) -> None:
        """Apply the answer of a lookup to the attempt in doubt for which it was made."""
        spec, now, asked = self.query.spec, self.tx.now, word.in_flight.asked_by(self.tx.now)
        terms = spec.terms
        ends, dice = attempt.deadline, self.incarnation.dice.random()
        absent_to = asked if isinstance(word, FoundAbsent) else None
        at = next_question(terms.retry, ends, terms.settle_after, ends, now, dice, absent_to=absent_to)
        match word:
            case Returned(value=value):
                self.result.outcomes += 1
                self.conclusion.outcome(_in_hand(word, value), standing, attempt)
            case FoundAbsent():
                if asked <= attempt.deadline + terms.settle_after:
                    log.debug(
                        "%s: Absent is not believed before %s: its call could still be on its way when it was asked for",
                        of_attempt(self.incarnation, attempt),
                        attempt.deadline + terms.settle_after,
                        extra={"event": "absent_too_early", "reaction": attempt.reaction, "record": attempt.record},
                    )
                called_at = now
                if attempt.failures:  # without a failure no call went wrong: an attempt put in doubt by a restore
                    called_at = max(
                        next_try(terms.retry, attempt.failures, ends, self.incarnation.dice.random()), now
                    )  # the time spent on lookups counts as waiting
                self.conclusion.apply(attempt, rules.absent(attempt, terms, standing.facts, asked, at, called_at))
            case FoundUnknown(error=error):
                words = self.incarnation.shorten(error) if error else None
                self.conclusion.apply(attempt, rules.unanswered(attempt, terms, now, at, words))
            case _:
                return

    # ---- results that come late ------------------------------------------------------------------------------------------------
    def _late(self, word: CallResult, standing: AttemptWithFacts, value: Any) -> None:
        spec = self.query.spec
        attempt = standing.attempt
        decision = rules.late_outcome(attempt, spec.terms.policy, spec.when_overtaken, own=spec.kind)
        where = named(self.incarnation, *word.in_flight.identity[1:3])
        match decision:
            case rules.Drop(say):
                self.incarnation.after_commit.say(partial(_say_late_dropped, word, where, say), only_trace=True)
            case rules.HoldNew():
                same_life = self._never_adopted(word)
                self.conclusion.came_after_all(_in_hand(word, value), standing, word.in_flight.identity, same_life=same_life)
            case rules.AddOutcome(unsure=unsure, loudly=loudly) if attempt is not None:
                say = loudly or "a second outcome came late: kept beside the first"
                self.incarnation.after_commit.say(partial(_say_late_kept, word, where, say, logging.ERROR if loudly else logging.WARNING))
                unknown_states.take_as_held(self.tx, [word.in_flight.identity])  # an outcome is kept even if the row's state is unknown
                written = outcome_json.add(spec.outcome_type, attempt.outcome, value, pen=pen_of(self.incarnation))
                why = outcome_json.with_what_was_kept(attempt.why or loudly or "an outcome came late", written)
                held = replace(attempt, state=State.HELD, unsure=unsure, outcome=written, why=why, next_at=None)
                self.conclusion.saved.append((attempt, held))
            case rules.Conclude(loudly=loudly) if attempt is not None:
                self.conclusion.outcome(_in_hand(word, value), standing, attempt, loudly=loudly)
            case _:
                raise AssertionError(decision)

    # ---- attempts deleted by hand ------------------------------------------------------------------------------------------------
    def _was_deleted_by_hand(self, word: CallResult) -> bool:
        """Return whether a missing attempt was deleted by hand although its call may have been made. For a repeated call that is not
        certain: an outcome of an earlier call, which came late, may have concluded the attempt.
        """
        surely_not_done = isinstance(word, NothingHappened | NotSent) and not word.in_flight.moment.restarted
        return not surely_not_done and self._never_adopted(word)

    def _put_back(self, word: CallResult, standing: AttemptWithFacts) -> AttemptWithFacts:
        """Insert a deleted attempt again where its call was made, or may have been, since the record would be called once more without it.
        An outcome whose record moved on, or waits for another call, is left to `rules.late`.
        """
        in_flight, spec = word.in_flight, self.query.spec
        outcome, blocked = isinstance(word, Returned), standing.blocked is not None
        if not rules.attempt_is_restored(standing.facts, outcome=outcome, repeats=spec.repeats, blocked=blocked):
            return standing
        fresh = attempts.new_attempt_of_record(self.query, in_flight.identity[2], in_flight.identity[3], self.incarnation.id, self.tx.now)
        state = State.DOUBT if in_flight.is_lookup or isinstance(word, ThreadEnded) else State.BEGUN
        unsure = state is State.DOUBT or in_flight.moment.restarted
        again = replace(
            fresh, state=state, unsure=unsure, call=in_flight.call, call_no=in_flight.moment.call_no, first_at=in_flight.moment.now,
            begun_with=self.query.begun_with,
        )  # fmt: skip
        if state is State.DOUBT:
            again = replace(again, next_at=self.tx.now)
        if not attempts.insert(self.tx, [again]):
            return standing
        self.incarnation.after_commit.say(partial(_say_put_back, word, named(self.incarnation, spec.name, in_flight.identity[2])))
        return replace(standing, attempt=again)

    def _never_adopted(self, word: CallResult) -> bool:
        """Return whether the incarnation that made the call is still running and has kept its lock. Its row is read as well, since a lost
        lock is noticed late; that query is made only where an attempt is missing.
        """
        if not self.incarnation.sound or self.incarnation.id != word.in_flight.incarnation:
            return False
        row = self.tx.connection.execute(select(worker.c.ended_at).where(worker.c.id == self.incarnation.id)).first()
        return row is not None and row.ended_at is None


OR_CONCLUDED = ", or concluded by what an earlier call brought late"


def _say_late_dropped(word: CallResult, where: str, words: str) -> None:
    _, reaction, record, _ = word.in_flight.identity
    log.warning("%s: %s", where, words, extra={"event": "late_outcome_dropped", "reaction": reaction, "record": record})


def _say_late_kept(word: CallResult, where: str, words: str, level: int) -> None:
    _, reaction, record, _ = word.in_flight.identity
    log.log(level, "%s: %s", where, words, extra={"event": "late_outcome_kept", "reaction": reaction, "record": record})


def _say_put_back(word: CallResult, where: str) -> None:
    _, reaction, record, _ = word.in_flight.identity
    log.error(
        "%s: its attempt was deleted by hand while its call was made%s: put back, since the record would be called once more",
        where,
        OR_CONCLUDED if word.in_flight.moment.restarted else "",
        extra={"event": "attempt_put_back", "reaction": reaction, "record": record},
    )


def _in_hand(word: CallResult, value: Any) -> OutcomeToApply:
    in_flight = word.in_flight
    return OutcomeToApply(value, in_flight.key, in_flight.occurrence, in_flight.moment.restarted)
