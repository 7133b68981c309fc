"""An outcome in hand: put to its record by the handler, or by `overtaken`, or held. Never dropped, and never a new call.

Whoever brings it - a call, a find, a person - the same happens to it here. What becomes of the attempts is gathered and written once.
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

from groundstate.engine import attempts, culprits, handling, outcomes, trouble
from groundstate.engine.attempt_log import of_attempt, say_held, say_held_with_outcome, say_let_go
from groundstate.engine.attempts import Identity
from groundstate.engine.claim import Standing
from groundstate.engine.guarded import let_through
from groundstate.engine.handling import HandlerFailed, Work
from groundstate.engine.life import Life
from groundstate.engine.plain import new_attempt
from groundstate.engine.question import PrimaryKey, Question
from groundstate.engine.rings import Watch
from groundstate.engine.transaction import Transaction
from groundstate.rules import attempt as rules
from groundstate.rules import kind, overtaken
from groundstate.rules.attempt import Attempt
from groundstate.values.answers import Key, Occurrence

log = logging.getLogger("groundstate")


class SomeHandlerFailed(Exception):
    """Handlers ran without a savepoint each and one failed: roll back, and conclude one by one.

    reaction: whose handler it was. apart: where it is known which ones failed, those; others: of which nothing shows that they would.
    """

    def __init__(self, reaction: str, apart: Collection[Identity] = (), others: Collection[Identity] = ()) -> None:
        super().__init__()
        self.reaction = reaction
        self.apart = frozenset(apart)
        self.others = frozenset(others)


Some = Callable[[Identity], bool]


def everyone(_: Identity) -> bool:
    """All of them."""
    return True


def nobody(_: Identity) -> bool:
    """None of them."""
    return False


@dataclass(frozen=True, eq=False)
class InHand:
    """An outcome, with what its handler may be given beside it.

    written: the JSON array that is kept where it must be held; None: what the attempt has, and this one.
    remaining: the JSON array of the attempt's other outcomes, which are still to be concluded after this one.
    """

    value: Any
    key: Key
    occurrence: Occurrence
    restarted: bool = False
    written: str | None = None
    remaining: str | None = None


@dataclass
class Conclusion:
    """What one transaction makes of outcomes and their attempts, for one reaction. `write` writes the attempts.

    one_by_one: whose handlers are run with a savepoint each; those of the others are run together.
    refused: why the handler's work cannot be committed: it is not run, and its outcome is held.
    until_s: when to run no further handler, by the monotonic clock; one is run all the same.
    looks: it is looked alone which of them fail together, and SomeHandlerFailed says that.
    """

    life: Life
    tx: Transaction
    question: Question
    one_by_one: Some
    refused: str | None = None
    until_s: float = math.inf
    looks: bool = False
    saved: list[tuple[Attempt, Attempt]] = field(default_factory=list)
    removed: list[Attempt] = field(default_factory=list)
    dropped: list[Attempt] = field(default_factory=list)  # those of the removed whose outcome is a line in the log, and in no record
    new: list[Attempt] = field(default_factory=list)
    together: list[tuple[Work, Attempt]] = field(default_factory=list)
    watch: Watch | None = None  # where some of those that were run together are looked at more closely
    ran: int = 0  # handlers

    def apply(self, attempt: Attempt, decision: rules.Decision) -> None:
        """What needs no handler: the attempt is kept as something else, or deleted."""
        match decision:
            case rules.Keep(after):
                self.saved.append((attempt, after))
                say_held(self.life, after)
            case rules.Delete(say):
                self.removed.append(attempt)
                say_let_go(self.life, attempt, say)
            case _:
                raise AssertionError(decision)

    def outcome(self, given: InHand, standing: Standing, attempt: Attempt, *, loudly: str | None = None) -> None:
        """Puts the outcome to its record: by the handler where the condition holds, else as overtaken. Raises SomeHandlerFailed."""
        if loudly:
            log.error(
                "%s: %s",
                of_attempt(self.life, attempt),
                loudly,
                extra={"event": "outcome_unexpected", "reaction": attempt.reaction, "record": attempt.record},
            )
        if self.refused is not None:
            self._hold(attempt, given, self.refused, self.refused)
            return
        decision = rules.returned(standing.facts)
        if isinstance(decision, rules.Conclude):
            work = self._work(given, standing, attempt)
            if self.one_by_one(attempt.identity):
                self._try(attempt, given, lambda: handling.run_one(self.question, self.tx, self.question.spec.handler, work), standing)
            else:
                self.together.append((work, attempt))
            return
        self._overtaken(given, standing, attempt)

    def came_after_all(self, given: InHand, standing: Standing, identity: Identity, *, same_life: bool) -> None:
        """The attempt is gone: the overtaken handler compares; without one it is held anew, with the outcome.

        same_life: the worker that made the call kept its lock all the while, so that nobody has adopted the call and concluded it. Only
        then does overtaken="same" run the ordinary handler: else it might write one outcome twice.
        """
        spec = self.question.spec
        text, occurrence = identity[2], identity[3]
        fresh = new_attempt(self.life, self.question, text, occurrence, self.tx.now)
        handler = spec.handler if spec.when_overtaken == "same" and same_life else spec.overtaken
        if handler is not None and standing.facts.exists:
            if not self.one_by_one(identity):
                raise SomeHandlerFailed(spec.name)
            try:
                handling.run_one(self.question, self.tx, handler, self._work(given, standing, fresh), progress=False)
            except HandlerFailed as failure:
                if failure.cause is not None and trouble.transient(failure.cause):
                    raise failure.cause from None
                why = self.life.shorten(failure.error)
            else:
                self.tx.touched.add(self.question.entity, [standing.key], None)
                return
        else:
            why = "an outcome came after its attempt was gone"
        written = outcomes.dump(spec.outcome_type, [given.value], pen=pen_of(self.life))
        why = outcomes.with_what_was_kept(why, written)
        say_held_with_outcome(self.life, spec.name, text, why)
        self.new.append(rules.outcome_refused(fresh, why, None, written).attempt)

    @property
    def is_late(self) -> bool:
        """Whether no further handler is to be run."""
        return self.ran > 0 and clock.monotonic() >= self.until_s

    def write(self) -> None:
        """Runs what was put off to be run together, then writes every attempt. Raises SomeHandlerFailed."""
        self._run_together()
        attempts.save(self.tx.connection, self.saved)
        attempts.remove(self.tx.database, self.tx.connection, self.removed)
        attempts.insert(self.tx, self.new)

    def _overtaken(self, given: InHand, standing: Standing, attempt: Attempt) -> None:
        if not self.one_by_one(attempt.identity):
            raise SomeHandlerFailed(self.question.spec.name)  # what is said in the log is said once, and handlers run in a savepoint each
        spec = self.question.spec
        exists, has_handler = standing.facts.exists, spec.overtaken is not None
        decision = overtaken.answer(spec.when_overtaken, has_handler=has_handler, again=spec.again, exists=exists)
        match decision:
            case overtaken.Hold(why):
                self._hold_loudly(attempt, given, why, None)
                return
            case overtaken.DropIt(say):
                self._drop(attempt, given, say)
                return
        work = self._work(given, standing, attempt)
        if isinstance(decision, overtaken.WriteFact):
            same = self.question.is_round(attempt.occurrence, self.question.occurrence_text(standing.record))
            run = partial(handling.run_overtaken, self.question, self.tx, work, same_occurrence=same)
            self._try(attempt, given, run, standing, drops=decision.drops)
            return
        function = spec.overtaken or spec.handler
        self._try(attempt, given, partial(handling.run_one, self.question, self.tx, function, work, progress=False), standing)

    def _hold_loudly(self, attempt: Attempt, given: InHand, why: str, error: str | None, cause: BaseException | None = None) -> None:
        say_held_with_outcome(self.life, attempt.reaction, attempt.record, why, cause)
        self._hold(attempt, given, why, error)

    def _drop(self, attempt: Attempt, given: InHand, why: str) -> None:
        """The attempt goes with all its outcomes, and they are a line in the log: nobody is asked about them any more."""
        outcome = self.life.shorten(self._written(attempt, given))
        log.warning(
            "%s: %s; outcome: %s",
            of_attempt(self.life, attempt),
            why,
            outcome,
            extra={"event": "outcome_dropped", "reaction": attempt.reaction, "record": attempt.record},
        )
        self.removed.append(attempt)
        self.dropped.append(attempt)

    def _try(self, attempt: Attempt, given: InHand, run: Callable[[], None], standing: Standing, *, drops: bool = False) -> None:
        """Runs a handler in its savepoint; what it raises holds the attempt with the outcome, and is never a new call.

        drops: what is not kept is dropped instead.
        """
        self.ran += 1
        try:
            run()
        except HandlerFailed as failure:
            if failure.cause is not None and trouble.transient(failure.cause):
                raise failure.cause from None
            words = self.life.shorten(failure.error)
            if drops:
                self._drop(attempt, given, f"let go under again(): {words}")
                return
            self._hold_loudly(attempt, given, words, words, failure.cause)
            return
        if given.remaining is None:
            self.removed.append(attempt)
        else:
            self.saved.append((attempt, rules.one_of_several(attempt, given.remaining).attempt))
        self.tx.touched.add(self.question.entity, [standing.key], None)

    def _hold(self, attempt: Attempt, given: InHand, why: str, error: str | None) -> None:
        written = self._written(attempt, given)
        kept = outcomes.with_what_was_kept(why, written, last=given.written is None)
        if kept != why:
            say_text_alone(self.life, attempt, kept)
            why = kept
        self.saved.append((attempt, rules.outcome_refused(attempt, why, error, written).attempt))

    def _written(self, attempt: Attempt, given: InHand) -> str:
        """The JSON array of the attempt's outcomes, with this one among them."""
        return given.written or outcomes.add(self.question.spec.outcome_type, attempt.outcome, given.value, pen=pen_of(self.life))

    def _run_together(self) -> None:
        """All conclusions that look ordinary, without savepoints: one handler that fails makes the whole be done again."""
        question, tx = self.question, self.tx
        works = [work for work, _ in self.together]
        if self.looks:
            looked = culprits.look(question, tx, question.spec.handler, works, self.until_s - clock.monotonic())
            raise self._failed(looked.failed, looked.others)
        if not works:
            return
        self.watch = self.life.rings.watch(question, tx.connection, works)
        try:
            self.ran = handling.run_each(question, tx, question.spec.handler, works, self.until_s)
            works = works[: self.ran]
            new = handling.flush_all(question, tx, works)
        except Exception as error:
            if trouble.transient(error) or isinstance(error, trouble.TransactionEnded):
                raise
            raise self._failed() from error
        still = handling.without_progress(question, tx, works, new)
        if still:
            raise self._failed(still, {work.key for work in works} - set(still))
        if self.watch is not None:
            reached = {work.key for work in works}
            self.watch.mine = [step for step in self.watch.mine if step[1] in reached]
            self.life.rings.look(self.watch, tx.connection)
        self.removed += [attempt for _, attempt in self.together[: self.ran]]
        tx.touched.add(question.entity, [work.key for work in works], new)

    def _failed(self, apart: Collection[PrimaryKey] = (), others: Collection[PrimaryKey] = ()) -> SomeHandlerFailed:
        told = {work.key: attempt.identity for work, attempt in self.together}
        return SomeHandlerFailed(self.question.spec.name, [told[key] for key in apart], [told[key] for key in others])

    def _work(self, given: InHand, standing: Standing, attempt: Attempt) -> Work:
        moment = self.tx.moment(due=standing.due, call_no=attempt.call_no, restarted=given.restarted)
        supplies = {"at": moment, "key": given.key, "occurrence": given.occurrence}
        # Where other columns made it then, progress is of the round that stands now: the old text is that of no round of today.
        other = kind.is_of_other_rounds(attempt.begun_with, self.question.spec.occurrence_columns)
        round_ = self.question.occurrence_text(standing.record) if other else attempt.occurrence
        return Work(standing.key, standing.record, round_, (_for_a_handler(given.value),), supplies)


def pen_of(life: Life) -> outcomes.Pen:
    """How this life writes outcomes down."""
    return outcomes.Pen(life.outcome_as_text, life.database.codec)


def say_text_alone(life: Life, attempt: Attempt, why: str) -> None:
    """No handler can be given the outcome any more: a person should know at once."""
    log.error(
        "%s: %s",
        of_attempt(life, attempt),
        why,
        extra={"event": "outcome_as_text", "reaction": attempt.reaction, "record": attempt.record},
    )


def _for_a_handler(value: Any) -> Any:
    """A copy: a handler that takes it apart and then fails is run again, or its outcome is held, and both are of the outcome as it came."""
    if value.__class__ in _CANNOT_BE_EDITED:
        return value
    try:
        return copy.deepcopy(value)
    except BaseException as error:  # it holds what cannot be copied, such as a lock
        let_through(error)
        return value


_CANNOT_BE_EDITED = frozenset({str, bytes, int, float, bool, Decimal, date, datetime, time, timedelta, UUID, type(None)})
