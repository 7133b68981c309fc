"""Conclude: what calls and finds said is put to the records and attempts, many in one transaction. An outcome is never dropped.

Locks are taken with others' skipped: an outcome whose record somebody has locked stays in memory and is tried again, uncounted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from groundstate.engine import attempts, claim, handling, outcomes, trouble
from groundstate.engine.claim import Standing
from groundstate.engine.flight import FoundAbsent, FoundUnknown, NothingHappened, NotSent, Returned, ThreadEnded, Unclear, Word
from groundstate.engine.handling import HandlerFailed, Work
from groundstate.engine.life import Life
from groundstate.engine.plain import new_attempt
from groundstate.engine.question import Question
from groundstate.engine.transaction import Transaction
from groundstate.rules import attempt as rules
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.retry import UNKNOWN_HELD_AFTER, next_question, next_try

log = logging.getLogger("groundstate")


class SomeHandlerFailed(Exception):
    """Handlers ran without a savepoint each and one failed: roll back, and conclude one by one."""


@dataclass
class Concluded:
    """What a conclude wrote."""

    done: list[Word] = field(default_factory=list)
    later: list[Word] = field(default_factory=list)  # the record is locked by somebody else
    outcomes: int = 0


def conclude(
    life: Life, tx: Transaction, question: Question, words: Sequence[Word], *, one_by_one: bool, was_ours: Callable[[Word], bool],
    refused: str | None = None,
) -> Concluded:
    """Puts the words to their attempts. Raises SomeHandlerFailed where `one_by_one` is False and a handler failed.

    was_ours: whether a commit of this very word may have landed before (its outcome was unknown, and the lock was never lost).
    refused: why the handler's work cannot be committed: it is not run, and its outcome is held.
    """
    return _Conclusion(life, tx, question, one_by_one, was_ours, refused).of(words)


@dataclass
class _Conclusion:
    life: Life
    tx: Transaction
    question: Question
    one_by_one: bool
    was_ours: Callable[[Word], bool]
    refused: str | None
    result: Concluded = field(default_factory=Concluded)
    saved: list[tuple[Attempt, Attempt]] = field(default_factory=list)
    removed: list[Attempt] = field(default_factory=list)
    new: list[Attempt] = field(default_factory=list)
    together: list[tuple[Work, Attempt]] = field(default_factory=list)

    def of(self, words: Sequence[Word]) -> Concluded:
        looked = claim.look(self.question, self.tx, list({word.flight.identity for word in words}))
        seen: set[attempts.Identity] = set()
        for word in words:
            identity = word.flight.identity
            if identity in looked.busy or identity in seen:
                self.result.later.append(word)  # a second word on one attempt must see what the first made of it
                continue
            seen.add(identity)
            self._word(word, looked.standing[identity])
            self.result.done.append(word)
        self._run_together()
        attempts.save(self.tx.connection, self.saved)
        attempts.remove(self.tx.database, self.tx.connection, self.removed)
        attempts.insert(self.tx.database, self.tx.connection, self.new)
        return self.result

    # ---- by word -------------------------------------------------------------------------------------------------------------
    def _word(self, word: Word, standing: Standing) -> None:
        attempt = standing.attempt
        ours = attempt is not None and attempt.call == word.flight.call
        if word.flight.is_find:
            if attempt is None or not ours or attempt.state is not State.DOUBT or attempt.worker != self.life.id:
                return  # moved on: it can be asked again
            self._answer(word, standing, attempt)
            return
        match word:
            case Returned(value=value):
                self.result.outcomes += 1
                if attempt is not None and ours and attempt.state is State.BEGUN:
                    self._outcome(word, standing, attempt, value)
                elif attempt is None and self.was_ours(word):
                    return  # our own commit landed after all
                else:
                    self._late(word, standing, value)
            case NothingHappened() | Unclear() | NotSent() | ThreadEnded():
                if attempt is not None and ours:
                    self._no_outcome(word, attempt)

    def _no_outcome(self, word: Word, attempt: Attempt) -> None:
        tx, terms = self.tx, self.question.spec.terms
        now = tx.now
        if isinstance(word, ThreadEnded):
            if attempt.state in (State.DOUBT, State.HELD):
                self.saved.append((attempt, replace(attempt, deadline=max(attempt.deadline, now))))
            return
        if attempt.state is not State.BEGUN:
            return  # a late word that is no outcome changes nothing
        match word:
            case NotSent():
                decision: rules.Decision = rules.did_not_go_out(attempt, now)
            case NothingHappened(error=error, counts=counts, retry_after=retry_after):
                at = next_try(terms.retry, attempt.failures + counts, now, self.life.dice.random(), retry_after)
                if not counts:
                    at = now + (retry_after or timedelta())
                decision = rules.not_done(attempt, self.life.shorten(error), at, counts=counts)
            case Unclear(error=error):
                at = now if terms.policy is not None and terms.policy.kind in ("hold", "ask") else next_try(
                    terms.retry, attempt.failures + 1, now, self.life.dice.random()
                )
                decision = rules.unclear(attempt, self.life.shorten(error), at, now)
                log.warning("%s on %s is in doubt: %s", attempt.reaction, attempt.record, error)
            case _:
                return
        self._apply(attempt, decision)

    def _answer(self, word: Word, standing: Standing, attempt: Attempt) -> None:
        """A find's answer, put to the doubt that it was asked for."""
        spec, now, asked = self.question.spec, self.tx.now, word.flight.asked_at or self.tx.now
        terms = spec.terms
        at = next_question(terms.retry, attempt.deadline, terms.settle_after, attempt.deadline, now, self.life.dice.random())
        match word:
            case Returned(value=value):
                self.result.outcomes += 1
                self._outcome(word, standing, attempt, value)
            case FoundAbsent():
                self._apply(attempt, rules.absent(attempt, terms, standing.facts, asked, now, at))
            case FoundUnknown(error=error):
                limit = terms.retry.give_up_after or UNKNOWN_HELD_AFTER
                if now - attempt.deadline > limit:
                    why = f"nobody could say for {limit} what became of its call"
                    self._apply(attempt, rules.unknown_for_too_long(attempt, why))
                else:
                    self._apply(attempt, rules.unknown(attempt, terms, now, at, self.life.shorten(error) if error else None))
            case _:
                return

    def _apply(self, attempt: Attempt, decision: rules.Decision) -> None:
        match decision:
            case rules.Keep(after):
                self.saved.append((attempt, after))
            case rules.Delete(say):
                self.removed.append(attempt)
                if say:
                    log.warning("%s on %s: %s", attempt.reaction, attempt.record, say)
            case _:
                raise AssertionError(decision)

    # ---- an outcome is there ---------------------------------------------------------------------------------------------------
    def _outcome(self, word: Word, standing: Standing, attempt: Attempt, value: Any, *, loudly: str | None = None) -> None:
        if loudly:
            log.error("%s on %s: %s", attempt.reaction, attempt.record, loudly)
        if self.refused is not None:
            self._hold(attempt, value, self.refused, self.refused)
            return
        decision = rules.returned(attempt, standing.facts)
        if isinstance(decision, rules.Conclude):
            work = self._work(word, standing, attempt, value)
            if self.one_by_one:
                self._try(attempt, value, lambda: handling.run_one(self.question, self.tx, self.question.spec.handler, work), standing)
            else:
                self.together.append((work, attempt))
            return
        self._overtaken(word, standing, attempt, value)

    def _overtaken(self, word: Word, standing: Standing, attempt: Attempt, value: Any) -> None:
        spec = self.question.spec
        if not standing.facts.exists:
            self._hold(attempt, value, "the record was deleted while its call was made", None)
            return
        if not self.one_by_one:
            raise SomeHandlerFailed
        work = self._work(word, standing, attempt, value)
        if spec.overtaken is not None:
            function = spec.overtaken
            self._try(attempt, value, lambda: handling.run_one(self.question, self.tx, function, work, progress=False), standing)
            return
        same = self.question.occurrence_text(standing.record) == attempt.occurrence
        self._try(attempt, value, lambda: handling.run_overtaken(self.question, self.tx, work, same_occurrence=same), standing)

    def _try(self, attempt: Attempt, value: Any, run: Callable[[], None], standing: Standing) -> None:
        """Runs a handler in its savepoint; what it raises holds the attempt with the outcome, and is never a new call."""
        try:
            run()
        except HandlerFailed as failure:
            if failure.cause is not None and trouble.transient(failure.cause):
                raise failure.cause from None
            words = self.life.shorten(failure.error)
            log.error("%s on %s is held with its outcome: %s", attempt.reaction, attempt.record, words)
            self._hold(attempt, value, words, words)
        else:
            self.removed.append(attempt)
            self.tx.touched.add(self.question.entity, [standing.key], None)

    def _hold(self, attempt: Attempt, value: Any, why: str, error: str | None) -> None:
        written = outcomes.add(self.question.spec.outcome_type, attempt.outcome, value)
        self.saved.append((attempt, rules.outcome_refused(attempt, why, error, written).attempt))

    def _run_together(self) -> None:
        """All conclusions that look ordinary, without savepoints: one handler that fails makes the whole be done one by one."""
        if not self.together:
            return
        question, tx = self.question, self.tx
        works = [work for work, _ in self.together]
        try:
            handling.run_each(question, tx, question.spec.handler, works)
            new = handling.flush_all(question, tx, works)
        except Exception as error:
            if trouble.transient(error):
                raise
            raise SomeHandlerFailed from error
        if handling.without_progress(question, tx, works, new):
            raise SomeHandlerFailed
        self.removed += [attempt for _, attempt in self.together]
        tx.touched.add(question.entity, [work.key for work in works], new)

    def _work(self, word: Word, standing: Standing, attempt: Attempt, value: Any) -> Work:
        flight = word.flight
        moment = self.tx.moment(call_no=attempt.call_no, restarted=flight.moment.restarted)
        supplies = {"at": moment, "key": flight.key, "occurrence": flight.occurrence}
        return Work(standing.key, standing.record, attempt.occurrence, (value,), supplies)

    # ---- words that come late --------------------------------------------------------------------------------------------------
    def _late(self, word: Word, standing: Standing, value: Any) -> None:
        spec = self.question.spec
        attempt = standing.attempt
        decision = rules.late(attempt, spec.terms.policy)
        where = f"{spec.name} on {spec.table_name} {word.flight.identity[2]}"
        match decision:
            case rules.Drop(say):
                log.warning("%s: %s", where, say)
            case rules.HoldNew():
                self._late_and_gone(word, standing, value)
            case rules.AddOutcome(unsure=unsure, loudly=loudly) if attempt is not None:
                log.log(logging.ERROR if loudly else logging.WARNING, "%s: %s", where, loudly or "a second outcome came late: kept beside the first")
                written = outcomes.add(spec.outcome_type, attempt.outcome, value)
                why = attempt.why or loudly or "an outcome came late"
                self.saved.append((attempt, replace(attempt, state=State.HELD, unsure=unsure, outcome=written, why=why, next_at=None)))
            case rules.Conclude(loudly=loudly) if attempt is not None:
                self._outcome(word, standing, attempt, value, loudly=loudly)
            case _:
                raise AssertionError(decision)

    def _late_and_gone(self, word: Word, standing: Standing, value: Any) -> None:
        """The attempt is gone: the overtaken handler compares; without one it is held anew, with the outcome."""
        spec = self.question.spec
        text, occurrence = word.flight.identity[2], word.flight.identity[3]
        fresh = new_attempt(self.life, self.question, text, occurrence, self.tx.now)
        if spec.overtaken is not None and standing.facts.exists:
            if not self.one_by_one:
                raise SomeHandlerFailed
            try:
                work = self._work(word, standing, fresh, value)
                handling.run_one(self.question, self.tx, spec.overtaken, work, progress=False)
            except HandlerFailed as failure:
                if failure.cause is not None and trouble.transient(failure.cause):
                    raise failure.cause from None
                why = self.life.shorten(failure.error)
            else:
                self.tx.touched.add(self.question.entity, [standing.key], None)
                return
        else:
            why = "an outcome came after its attempt was gone"
        log.error("%s on %s is held with its outcome: %s", spec.name, text, why)
        written = outcomes.dump(spec.outcome_type, [value])
        self.new.append(rules.outcome_refused(fresh, why, None, written).attempt)
