"""Careful mode for DB-only batches: an attempt is written before the batch, so that a record that kills its worker is found (hazard 25)."""

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


def carry_out(life: Life, question: Question, feed: Feed) -> Done:
    """Two transactions: begun attempts for a small batch, then the batch itself, which deletes them."""
    most = life.care.together(0)
    feed = replace(feed, limit=min(feed.limit, most))
    with life.transaction() as tx:
        found = feed.claim(question, tx)
        failed = plain.put_off(life, question, tx, found.unreadable)
        group = _group(life, found.taken, most)
        call = attempts.new_call()
        pairs = [(one.attempt, begun(life, _before(life, question, one, tx.now), call, tx.now, len(group))) for one in group]
        attempts.insert(tx, [after for before, after in pairs if before is None])
        attempts.save(tx.connection, [(before, after) for before, after in pairs if before is not None])
    if not group:
        return Done(read=found.read, cursor=found.cursor, busy=found.busy, failed=failed)
    done = plain.carry_out(life, question, Feed(keys=[one.key for one in group], limit=len(group), mine=call))
    left = len(found.taken) - len(group)
    return replace(
        done,
        read=found.read,
        cursor=feed.cursor if left else found.cursor,  # those of the group are done, and the others come again
        failed=done.failed + failed,
        busy=[*done.busy, *(one.key for one in found.taken[len(group) :])],
        left_begun=done.done + done.failed < len(group),  # somebody else has locked them, or moved them on
    )


def _group(life: Life, taken: list[Taken], most: int) -> list[Taken]:
    """Records that were among others when their worker ended come again in half that number, and with nothing else."""
    suspects = [one for one in taken if one.attempt is not None and one.attempt.together > 0]
    if not suspects:
        return taken[:most]
    return suspects[: min(life.care.together(one.attempt.together) for one in suspects if one.attempt is not None)]


def begun(life: Life, before: Attempt, call: int, now: datetime, together: int) -> Attempt:
    """As it is written before a handler runs. It counts no call: none is made."""
    after = rules.begun(before, worker=life.id, call=call, now=now, deadline=now, together=together)
    return replace(after, call_no=0)


def _before(life: Life, question: Question, one: Taken, now: datetime) -> Attempt:
    return one.attempt or new_attempt(life, question, one.text, one.occurrence, now)
