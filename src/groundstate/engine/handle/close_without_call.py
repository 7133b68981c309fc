"""Settles attempts that need no call: begun ones that were never sent, and failed ones whose condition no longer holds. Begins nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from groundstate.engine.rows import attempts, claim
from groundstate.engine.rows.attempt_log import say_held
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules import attempt as rules
from groundstate.rules import blocking
from groundstate.rules.attempt import Attempt, State


def unknown_begins(tx: Transaction, unknown: Sequence[Attempt], unanswered: Collection[int]) -> None:
    """Settle begun attempts of a running worker that has no such call in memory. `unanswered` are calls whose begin's COMMIT got no answer,
    so that none of them was sent; about the others nothing is known.
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


def let_go(incarnation: Incarnation, tx: Transaction, query: ConditionQuery, identities: Sequence[attempts.Identity]) -> int:
    """Delete failed attempts without a call whose condition or occurrence is gone, and return how many.

    An attempt in doubt, from the time when the reaction still made a call, is held: no code is left that could settle it.
    """
    looked = claim.lock_and_read_attempts(query, tx, identities)
    for standing in looked.standing.values():
        if standing.attempt is not None and standing.attempt.state is State.DOUBT:
            decision = rules.settle(standing.attempt, query.spec.terms, standing.facts, tx.now)
            if isinstance(decision, rules.Keep):
                attempts.save(tx.connection, [(standing.attempt, decision.attempt)])
                say_held(incarnation, decision.attempt)
    gone = [
        standing.attempt
        for standing in looked.standing.values()
        if standing.attempt is not None and standing.attempt.state is State.FAILED and not standing.facts.holds
    ]
    return attempts.remove(tx.database, tx.connection, gone)


def set_retry_time_to_now(tx: Transaction, failed: Sequence[Attempt]) -> int:
    """Set the retry time of these failed attempts to now, and return how many were still waiting: they are too late to be retried, and
    `consider` runs their `expired` handler.
    """
    waited = [(one, replace(one, next_at=tx.now)) for one in failed if not blocking.due(one, tx.now)]
    attempts.save(tx.connection, waited)
    return len(waited)
