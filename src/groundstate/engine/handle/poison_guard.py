"""Carries out batches in careful mode, which begins when two workers have died within some minutes. Attempts are then written before the
handlers run, so that a record that kills its worker can be found. A suspected record is carried out while nothing else runs in its worker
(hazard 25).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from groundstate.engine.handle import run_batch
from groundstate.engine.handle.run_batch import Done, Feed
from groundstate.engine.rows import attempts
from groundstate.engine.rows.claim import ClaimedRecord
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules import attempt as rules
from groundstate.rules.attempt import Attempt
from groundstate.rules.poison_suspects import TOGETHER


def carry_out_with_begun_attempts(incarnation: Incarnation, query: ConditionQuery, feed: Feed) -> Done:
    """Carry out a batch in careful mode: one transaction writes an attempt for each record, a second transaction runs the handlers and
    deletes the attempts. Records that may have killed a worker are left out, unless `feed.alone` is set.
    """
    feed = replace(feed, limit=min(feed.limit, TOGETHER))
    with incarnation.open_transaction() as tx:
        claim = feed.claim_records(query, tx)
        failed = run_batch.fail_unreadable_records(incarnation, query, tx, claim.unreadable)
        free = [claimed for claimed in claim.records if feed.alone or not _has_suspected_attempt(incarnation, claimed)]
        group = free[:TOGETHER]
        call = attempts.new_call_number(tx.database.dice)
        pairs = [
            (
                claimed.attempt,
                begun_attempt(incarnation, _existing_or_new_attempt(incarnation, query, claimed, tx.now), call, tx.now, len(group)),
            )
            for claimed in group
        ]
        attempts.insert_attempts(tx, [after for before, after in pairs if before is None])
        attempts.update_attempts(tx.connection, [(before, after) for before, after in pairs if before is not None])
    if not group:
        return Done(read=claim.read, cursor=claim.cursor, busy=claim.busy, failed=failed)
    done = run_batch.carry_out_batch(incarnation, query, Feed(keys=[claimed.key for claimed in group], limit=len(group), mine=call))
    left = len(free) - len(group)
    return replace(
        done,
        read=claim.read,
        cursor=feed.cursor
        if left
        else claim.cursor,  # if records were read but are not carried out, keep the old cursor, so that they are read again
        failed=done.failed + failed,
        busy=[*done.busy, *(claimed.key for claimed in free[len(group) :])],
        # true if other transactions locked or changed some of the records between the two transactions
        left_begun=done.done + done.failed < len(group),
    )


def _has_suspected_attempt(incarnation: Incarnation, claimed: ClaimedRecord) -> bool:
    return claimed.attempt is not None and is_suspected(incarnation, claimed.attempt)


def is_suspected(incarnation: Incarnation, one: Attempt) -> bool:
    """Return whether this attempt may have killed a worker, so that it must be carried out while nothing else runs in its worker.
    `next_suspect` decides when this is done.
    """
    return incarnation.care.must_run_alone(one.why, has_call=one.unsure or one.call_no > 0)


def begun_attempt(incarnation: Incarnation, before: Attempt, call: int, now: datetime, together: int) -> Attempt:
    """Return the attempt as it is to be written before its record's handler runs. Its number of calls is 0, since the handler makes no
    call.
    """
    after = rules.attempt_with_new_call(before, worker=incarnation.id, call=call, now=now, deadline=now, together=together)
    return replace(after, call_no=0)


def _existing_or_new_attempt(incarnation: Incarnation, query: ConditionQuery, claimed: ClaimedRecord, now: datetime) -> Attempt:
    return claimed.attempt or attempts.new_attempt_of_record(query, claimed.text, claimed.occurrence, incarnation.id, now)
