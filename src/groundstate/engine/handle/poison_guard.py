"""Careful mode: an attempt is written before a DB-only batch runs too, so that a record that kills its worker is found. A suspected record
is carried out while nothing else runs in its worker (hazard 25).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from groundstate.engine.handle import run_batch
from groundstate.engine.handle.run_batch import Done, Feed
from groundstate.engine.rows import attempts
from groundstate.engine.rows.claim import Taken
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules import attempt as rules
from groundstate.rules.attempt import Attempt
from groundstate.rules.poison_suspects import TOGETHER


def carry_out(incarnation: Incarnation, query: ConditionQuery, feed: Feed) -> Done:
    """Carry out a batch in two transactions: the first writes its attempts as begun, the second runs it and deletes them. Suspected records
    are left out unless `feed.alone` is set.
    """
    feed = replace(feed, limit=min(feed.limit, TOGETHER))
    with incarnation.transaction() as tx:
        found = feed.claim(query, tx)
        failed = run_batch.fail_unreadable_records(incarnation, query, tx, found.unreadable)
        free = [one for one in found.taken if feed.alone or not _suspected(incarnation, one)]
        group = free[:TOGETHER]
        call = attempts.new_call()
        pairs = [(one.attempt, begun(incarnation, _before(incarnation, query, one, tx.now), call, tx.now, len(group))) for one in group]
        attempts.insert(tx, [after for before, after in pairs if before is None])
        attempts.save(tx.connection, [(before, after) for before, after in pairs if before is not None])
    if not group:
        return Done(read=found.read, cursor=found.cursor, busy=found.busy, failed=failed)
    done = run_batch.carry_out(incarnation, query, Feed(keys=[one.key for one in group], limit=len(group), mine=call))
    left = len(free) - len(group)
    return replace(
        done,
        read=found.read,
        cursor=feed.cursor if left else found.cursor,  # if some were read but not carried out, the old cursor, to read them again
        failed=done.failed + failed,
        busy=[*done.busy, *(one.key for one in free[len(group) :])],
        left_begun=done.done + done.failed < len(group),  # another transaction has locked some of them, or they changed
    )


def _suspected(incarnation: Incarnation, one: Taken) -> bool:
    return one.attempt is not None and is_suspected(incarnation, one.attempt)


def is_suspected(incarnation: Incarnation, one: Attempt) -> bool:
    """Whether this attempt must be carried out with nothing else running in its worker; `next_suspect` says when."""
    return incarnation.care.alone(one.why, has_call=one.unsure or one.call_no > 0)


def begun(incarnation: Incarnation, before: Attempt, call: int, now: datetime, together: int) -> Attempt:
    """Return the attempt as it is written before a handler runs. It keeps call number 0, since no call is made."""
    after = rules.begun(before, worker=incarnation.id, call=call, now=now, deadline=now, together=together)
    return replace(after, call_no=0)


def _before(incarnation: Incarnation, query: ConditionQuery, one: Taken, now: datetime) -> Attempt:
    return one.attempt or attempts.new_attempt_of_record(query, one.text, one.occurrence, incarnation.id, now)
