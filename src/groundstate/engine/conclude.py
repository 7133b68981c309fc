"""Conclude: what calls and finds said is put to the records and attempts, many in one transaction. An outcome is never dropped.

Locks are taken with others' skipped: an outcome whose record somebody has locked stays in memory and is tried again, uncounted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import select

from groundstate.engine import attempts, claim, outcomes, unknown_states
from groundstate.engine.attempt_log import named, of_attempt
from groundstate.engine.claim import Standing
from groundstate.engine.flight import FoundAbsent, FoundUnknown, NothingHappened, NotSent, Returned, ThreadEnded, Unclear, Word
from groundstate.engine.handling import Work
from groundstate.engine.in_hand import Conclusion, InHand, Some, pen_of
from groundstate.engine.life import Life
from groundstate.engine.plain import new_attempt
from groundstate.engine.question import Question
from groundstate.engine.rings import Watch
from groundstate.engine.transaction import Transaction
from groundstate.rules import attempt as rules
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.retry import next_question, next_try
from groundstate.store.tables import worker

log = logging.getLogger("groundstate")


@dataclass
class Concluded:
    """What a conclude wrote."""

    done: list[Word] = field(default_factory=list)
    later: list[Word] = field(default_factory=list)  # not now: among them those whose record is locked by somebody else
    locked: list[Word] = field(default_factory=list)  # those
    doubts: list[Word] = field(default_factory=list)  # whose attempts are in doubt by them
    let_go: list[Word] = field(default_factory=list)  # for which no time was left
    outcomes: int = 0
    removed: set[int] = field(default_factory=set)  # calls whose attempts are gone with it
    works: Sequence[Work] = ()  # that were carried out together
    watch: Watch | None = None  # where some of them are looked at more closely


def conclude(  # noqa: PLR0913  # all of it differs from call to call
    life: Life,
    tx: Transaction,
    question: Question,
    words: Sequence[Word],
    *,
    one_by_one: Some,
    was_ours: Callable[[Word], bool],
    refused: str | None = None,
    until_s: float = math.inf,
    looks: bool = False,
) -> Concluded:
    """Puts the words to their attempts. Raises SomeHandlerFailed where a handler failed that `one_by_one` does not name.

    looks: it is looked alone which of them fail, and SomeHandlerFailed says that.
    was_ours: whether a commit of this very word may have landed before (its outcome was unknown, and the lock was never lost).
    refused: why the handler's work cannot be committed: it is not run, and its outcome is held.
    until_s: when to run no further handler, by the monotonic clock; one is run all the same.
    """
    return _Words(life, tx, question, was_ours, Conclusion(life, tx, question, one_by_one, refused, until_s, looks)).put(words)


@dataclass
class _Words:
    life: Life
    tx: Transaction
    question: Question
    was_ours: Callable[[Word], bool]
    conclusion: Conclusion
    result: Concluded = field(default_factory=Concluded)

    def put(self, words: Sequence[Word]) -> Concluded:
        looked = claim.look(self.question, self.tx, list({word.flight.identity for word in words}))
        seen: set[attempts.Identity] = set()
        waiting: list[Word] = []  # whose handlers are run together
        for word in words:
            identity = word.flight.identity
            if identity in looked.busy:
                self.result.locked.append(word)
            if identity in looked.busy or identity in looked.unreadable or identity in seen:
                self.result.later.append(word)  # a second word on one attempt must see what the first made of it
                continue
            seen.add(identity)
            if self.conclusion.is_late and isinstance(word, Returned):
                self.result.let_go.append(word)
                continue
            self._word(word, looked.standing[identity])
            (waiting if len(self.conclusion.together) > len(waiting) else self.result.done).append(word)
        self.conclusion.write()
        self.result.done += waiting[: self.conclusion.ran]
        self.result.let_go += waiting[self.conclusion.ran :]
        self.result.removed = {attempt.call for attempt in self.conclusion.removed}
        self.result.works = [work for work, _ in self.conclusion.together[: self.conclusion.ran]]
        self.result.watch = self.conclusion.watch
        return self.result

    # ---- by word -------------------------------------------------------------------------------------------------------------
    def _word(self, word: Word, standing: Standing) -> None:
        if standing.attempt is None:
            if self.was_ours(word):
                self.result.outcomes += isinstance(word, Returned)
                return  # our own commit landed after all
            if self._was_deleted_by_hand(word):
                standing = self._put_back(word, standing)
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
                    self.conclusion.outcome(_in_hand(word, value), standing, attempt)
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
                self.conclusion.saved.append((attempt, replace(attempt, deadline=max(attempt.deadline, now))))
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
                at = (
                    now
                    if terms.policy is not None and terms.policy.kind in ("hold", "ask")
                    else next_try(terms.retry, attempt.failures + 1, now, self.life.dice.random())
                )
                decision = rules.unclear(attempt, self.life.shorten(error), at, now)
                self.result.doubts.append(word)
            case _:
                return
        self.conclusion.apply(attempt, decision)

    def _answer(self, word: Word, standing: Standing, attempt: Attempt) -> None:
        """A find's answer, put to the doubt that it was asked for."""
        spec, now, asked = self.question.spec, self.tx.now, word.flight.asked_by(self.tx.now)
        terms = spec.terms
        ends, dice = attempt.deadline, self.life.dice.random()
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
                        of_attempt(self.life, attempt),
                        attempt.deadline + terms.settle_after,
                        extra={"event": "absent_too_early", "reaction": attempt.reaction, "record": attempt.record},
                    )
                called_at = now
                if attempt.failures:  # else no call of it went wrong, as that of a doubt after a restore
                    called_at = max(
                        next_try(terms.retry, attempt.failures, ends, self.life.dice.random()), now
                    )  # asking was waiting as well
                self.conclusion.apply(attempt, rules.absent(attempt, terms, standing.facts, asked, at, called_at))
            case FoundUnknown(error=error):
                words = self.life.shorten(error) if error else None
                self.conclusion.apply(attempt, rules.unanswered(attempt, terms, now, at, words))
            case _:
                return

    # ---- words that come late --------------------------------------------------------------------------------------------------
    def _late(self, word: Word, standing: Standing, value: Any) -> None:
        spec = self.question.spec
        attempt = standing.attempt
        decision = rules.late(attempt, spec.terms.policy, spec.when_overtaken, own=spec.kind)
        where = named(self.life, *word.flight.identity[1:3])
        match decision:
            case rules.Drop(say):
                log.warning(
                    "%s: %s", where, say, extra={"event": "late_outcome_dropped", "reaction": spec.name, "record": word.flight.identity[2]}
                )
            case rules.HoldNew():
                same_life = self._never_adopted(word)
                self.conclusion.came_after_all(_in_hand(word, value), standing, word.flight.identity, same_life=same_life)
            case rules.AddOutcome(unsure=unsure, loudly=loudly) if attempt is not None:
                say = loudly or "a second outcome came late: kept beside the first"
                log.log(
                    logging.ERROR if loudly else logging.WARNING,
                    "%s: %s",
                    where,
                    say,
                    extra={"event": "late_outcome_kept", "reaction": spec.name, "record": word.flight.identity[2]},
                )
                unknown_states.take_as_held(self.tx, [word.flight.identity])  # an outcome is kept whatever somebody wrote there
                written = outcomes.add(spec.outcome_type, attempt.outcome, value, pen=pen_of(self.life))
                why = outcomes.with_what_was_kept(attempt.why or loudly or "an outcome came late", written)
                held = replace(attempt, state=State.HELD, unsure=unsure, outcome=written, why=why, next_at=None)
                self.conclusion.saved.append((attempt, held))
            case rules.Conclude(loudly=loudly) if attempt is not None:
                self.conclusion.outcome(_in_hand(word, value), standing, attempt, loudly=loudly)
            case _:
                raise AssertionError(decision)

    # ---- its row was deleted by hand ---------------------------------------------------------------------------------------------
    def _was_deleted_by_hand(self, word: Word) -> bool:
        """Where the attempt is gone: whether nobody of ours can have removed it, and its call is not surely undone. Of a call that was not
        the first one, whoever made an earlier one may have: its outcome, which came late, concluded the attempt.
        """
        surely_not_done = isinstance(word, NothingHappened | NotSent) and not word.flight.moment.restarted
        return not surely_not_done and self._never_adopted(word)

    def _put_back(self, word: Word, standing: Standing) -> Standing:
        """The attempt as it was, where it must not stay away: its call was made, or may have been, and without it the record would be
        called once more. An outcome whose record moved on, or waits for another call, is what `rules.late` says.
        """
        flight, spec = word.flight, self.question.spec
        outcome, blocked = isinstance(word, Returned), standing.blocked is not None
        if not rules.comes_back(standing.facts, outcome=outcome, again=spec.again, blocked=blocked):
            return standing
        fresh = new_attempt(self.life, self.question, flight.identity[2], flight.identity[3], self.tx.now)
        state = State.DOUBT if flight.is_find or isinstance(word, ThreadEnded) else State.BEGUN
        unsure = state is State.DOUBT or flight.moment.restarted
        again = replace(
            fresh, state=state, unsure=unsure, call=flight.call, call_no=flight.moment.call_no, first_at=flight.moment.now,
            begun_with=self.question.begun_with,
        )  # fmt: skip
        if state is State.DOUBT:
            again = replace(again, next_at=self.tx.now)
        if not attempts.insert(self.tx, [again]):
            return standing
        log.error(
            "%s: its attempt was deleted by hand while its call was made%s: put back, since the record would be called once more",
            named(self.life, spec.name, flight.identity[2]),
            OR_CONCLUDED if flight.moment.restarted else "",
            extra={"event": "attempt_put_back", "reaction": spec.name, "record": flight.identity[2]},
        )
        return replace(standing, attempt=again)

    def _never_adopted(self, word: Word) -> bool:
        """Whether the life that made the call still goes on and has kept its lock: asked of its row as well, since a lock that is lost
        is noticed late. Asked only where an attempt is gone.
        """
        if not self.life.sound or self.life.id != word.flight.life:
            return False
        row = self.tx.connection.execute(select(worker.c.ended_at).where(worker.c.life == self.life.id)).first()
        return row is not None and row.ended_at is None


OR_CONCLUDED = ", or concluded by what an earlier call brought late"


def _in_hand(word: Word, value: Any) -> InHand:
    flight = word.flight
    return InHand(value, flight.key, flight.occurrence, flight.moment.restarted)
