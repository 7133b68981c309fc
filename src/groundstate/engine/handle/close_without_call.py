"""Changes or deletes attempts that need no call: begun attempts whose call was never sent, and failed attempts whose record no longer meets
the condition.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from groundstate.engine.rows import attempts, claim
from groundstate.engine.rows.attempt_log import log_if_held
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules import attempt as rules
from groundstate.rules import blocking
from groundstate.rules.attempt import Attempt, State


def settle_begun_without_call(tx: Transaction, unknown: Sequence[Attempt], unanswered: Collection[int]) -> None:
    """Change or delete begun attempts of this worker whose call the worker has no longer in its memory.

    unanswered: The numbers of calls that surely were not sent, since their attempts were written in a transaction whose COMMIT got no
        answer. Any other call may have been sent, so its attempt is put in doubt.
    """
    saved: list[tuple[Attempt, Attempt]] = []
    removed: list[Attempt] = []
    for one in unknown:
        decision = rules.on_call_not_sent(one, tx.now) if one.call in unanswered else rules.on_call_not_in_memory(one, tx.now)
        if isinstance(decision, rules.Keep):
            saved.append((one, decision.attempt))
        else:
            removed.append(one)
    attempts.save(tx.connection, saved)
    attempts.remove(tx.database, tx.connection, removed)


def delete_obsolete_failed_attempts(
    incarnation: Incarnation, tx: Transaction, query: ConditionQuery, identities: Sequence[attempts.Identity]
) -> int:
    """Delete those of these failed attempts whose record no longer meets the condition or is in another occurrence. Return how many were
    deleted. It is used for reactions without a call.

    An attempt in doubt, from an older version of the application in which the reaction had a call, is held: nothing can settle it now.
    """
    looked = claim.lock_and_read_attempts(query, tx, identities)
    for standing in looked.standing.values():
        if standing.attempt is not None and standing.attempt.state is State.DOUBT:
            decision = rules.decide_attempt_in_doubt(standing.attempt, query.spec.terms, standing.facts, tx.now)
            if isinstance(decision, rules.Keep):
                attempts.save(tx.connection, [(standing.attempt, decision.attempt)])
                log_if_held(incarnation, decision.attempt)
    gone = [
        standing.attempt
        for standing in looked.standing.values()
        if standing.attempt is not None and standing.attempt.state is State.FAILED and not standing.facts.holds
    ]
    return attempts.remove(tx.database, tx.connection, gone)


def set_retry_time_to_now(tx: Transaction, failed: Sequence[Attempt]) -> int:
    """Set the retry time to now for those of these failed attempts that were still waiting, and return how many they were. Call it for
    records that have expired: `process_due_attempts` then runs their `expired` handler.
    """
    waited = [(one, replace(one, next_at=tx.now)) for one in failed if not blocking.is_retry_due(one, tx.now)]
    attempts.save(tx.connection, waited)
    return len(waited)
