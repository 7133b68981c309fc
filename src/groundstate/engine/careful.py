"""Careful mode: an attempt is written before DB-only batches too, so that a record that kills its worker is found; and who is suspected
is carried out while nothing else is under way in its worker (hazard 25).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from groundstate.engine import attempts, plain
from groundstate.engine.claim import Taken
from groundstate.engine.life import Life
from groundstate.engine.plain import Done, Feed, new_attempt
from groundstate.engine.question import Question
from groundstate.rules import attempt as rules
from groundstate.rules.attempt import Attempt
from groundstate.rules.careful import TOGETHER


def carry_out(life: Life, question: Question, feed: Feed) -> Done:
    """Two transactions: begun attempts for a batch, then the batch itself, which deletes them. Who is suspected is left out, but where
    `feed.alone` says that it is his turn.
    """
    feed = replace(feed, limit=min(feed.limit, TOGETHER))
    with life.transaction() as tx:
        found = feed.claim(question, tx)
        failed = plain.put_off(life, question, tx, found.unreadable)
        free = [one for one in found.taken if feed.alone or not _suspected(life, one)]
        group = free[:TOGETHER]
        call = attempts.new_call()
        pairs = [(one.attempt, begun(life, _before(life, question, one, tx.now), call, tx.now, len(group))) for one in group]
        attempts.insert(tx, [after for before, after in pairs if before is None])
        attempts.save(tx.connection, [(before, after) for before, after in pairs if before is not None])
    if not group:
        return Done(read=found.read, cursor=found.cursor, busy=found.busy, failed=failed, unread=failed)
    done = plain.carry_out(life, question, Feed(keys=[one.key for one in group], limit=len(group), mine=call))
    left = len(free) - len(group)
    return replace(
        done,
        read=found.read,
        cursor=feed.cursor if left else found.cursor,  # those of the group are done, and the others come again
        failed=done.failed + failed,
        unread=done.unread + failed,
        busy=[*done.busy, *(one.key for one in free[len(group) :])],
        left_begun=done.done + done.failed < len(group),  # somebody else has locked them, or moved them on
    )


def _suspected(life: Life, one: Taken) -> bool:
    return one.attempt is not None and is_suspected(life, one.attempt)


def is_suspected(life: Life, one: Attempt) -> bool:
    """Whether it is carried out by itself alone, as `next_suspect` says when."""
    return life.care.alone(one.why, has_call=one.unsure or one.call_no > 0)


def begun(life: Life, before: Attempt, call: int, now: datetime, together: int) -> Attempt:
    """As it is written before a handler runs. It counts no call: none is made."""
    after = rules.begun(before, worker=life.id, call=call, now=now, deadline=now, together=together)
    return replace(after, call_no=0)


def _before(life: Life, question: Question, one: Taken, now: datetime) -> Attempt:
    return one.attempt or new_attempt(life, question, one.text, one.occurrence, now)
