"""Pauses a reaction without a call whose handler fails for many records in a row. The reaction then tries one record at a time (rules.md
15).

Only different records count, and not the retries of one record, so that a few records that always fail do not pause the reaction.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from groundstate.engine.rows.limited_logging import REACTION_PAUSES, LimitedLines
from groundstate.engine.sql.condition_query import PrimaryKey
from groundstate.engine.watch.work_queue import FAILING_MOST, WorkQueue

log = logging.getLogger("groundstate")


def count_batch_in_breaker(queue: WorkQueue, lines: LimitedLines, done: int, wrong: Mapping[PrimaryKey, str], now: float) -> None:
    """Count the results of a batch in the circuit breaker of its reaction, and log when the reaction begins or ends to pause.

    done: number of records carried out. wrong: by key, the error text of each record whose handler failed. now: monotonic time.
    """
    breaker, was_open = queue.failing, queue.failing.is_open
    if done:
        breaker.record_success(now, done)  # the handler works, so the failures of this batch are faults of their records: do not count them
    else:
        for key in wrong:
            if key not in breaker.failed:  # a record that fails again says nothing about the others
                breaker.record_failure(key, now)
    if breaker.is_open and not was_open and lines.may_log(queue.name, REACTION_PAUSES, now):
        queue.told_failing = now
        _log_pause(
            queue,
            True,
            f"pauses, and tries one record at a time: its {_handler_in_words(queue)} failed for {FAILING_MOST} or more records in a row,"
            f" the last time with {list(wrong.values())[-1]}",
        )
    if not breaker.is_open and queue.told_failing is not None:
        _log_pause(queue, False, f"goes on after {now - queue.told_failing:.1f} s: its {_handler_in_words(queue)} carried out a record")
        queue.told_failing = None


def _handler_in_words(queue: WorkQueue) -> str:
    return "expired handler" if queue.query.is_for_expired else "handler"


def _log_pause(queue: WorkQueue, pauses: bool, words: str) -> None:
    log.warning("%s %s", queue.name, words, extra={"event": "reaction_pauses", "reaction": queue.name, "pauses": pauses})
