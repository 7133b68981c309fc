"""Attempts that go, or come back, without any call: what never went out, and failures whose condition is gone. Begins nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from groundstate.engine import attempts, claim
from groundstate.engine.attempt_log import say_held
from groundstate.engine.life import Life
from groundstate.engine.question import Question
from groundstate.engine.transaction import Transaction
from groundstate.rules import attempt as rules
from groundstate.rules import blocking
from groundstate.rules.attempt import Attempt, State


def unknown_begins(tx: Transaction, unknown: Sequence[Attempt], unanswered: Collection[int]) -> None:
    """Begun attempts of a living worker that has no such call in memory. unanswered: calls whose begin's COMMIT brought no answer, so that
    none of them went out; of the others nobody knows.
    """
    saved: list[tuple[Attempt, Attempt]] = []
    removed: list[Attempt] = []
    for one in unknown:
        decision = rules.did_not_go_out(one, tx.now) if one.call in unanswered else rules.not_in_memory(one, tx.now)
        if isinstance(decision, rules.Keep):
            saved.append((one, decision.attempt))
        else:
            removed.append(one)
    attempts.save(tx.connection, saved)
    attempts.remove(tx.database, tx.connection, removed)


def let_go(life: Life, tx: Transaction, question: Question, identities: Sequence[attempts.Identity]) -> int:
    """Failed attempts without a call whose condition or occurrence is gone are deleted; returns how many.

    A doubt of the time when the reaction made a call is held: no code is left that could settle it.
    """
    looked = claim.look(question, tx, identities)
    for standing in looked.standing.values():
        if standing.attempt is not None and standing.attempt.state is State.DOUBT:
            decision = rules.settle(standing.attempt, question.spec.terms, standing.facts, tx.now)
            if isinstance(decision, rules.Keep):
                attempts.save(tx.connection, [(standing.attempt, decision.attempt)])
                say_held(life, decision.attempt)
    gone = [
        standing.attempt
        for standing in looked.standing.values()
        if standing.attempt is not None and standing.attempt.state is State.FAILED and not standing.facts.holds
    ]
    return attempts.remove(tx.database, tx.connection, gone)


def looked_at_now(tx: Transaction, failed: Sequence[Attempt]) -> int:
    """What is surely not done and too late waits for no further try: `consider` answers it. Returns how many waited."""
    waited = [(one, replace(one, next_at=tx.now)) for one in failed if not blocking.due(one, tx.now)]
    attempts.save(tx.connection, waited)
    return len(waited)
