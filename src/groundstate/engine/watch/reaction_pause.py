"""DB-only reactions whose handler fails for one record after another: they pause and probe, as an external service does (rules.md 15).

Only different records count, not retries of the same ones: a few records that always fail keep no other record waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from groundstate.engine.rows.limited_logging import REACTION_PAUSES, LimitedLines
from groundstate.engine.sql.condition_query import PrimaryKey
from groundstate.engine.watch.work_queue import FAILING_MOST, WorkQueue

log = logging.getLogger("groundstate")


def heard(queue: WorkQueue, lines: LimitedLines, done: int, wrong: Mapping[PrimaryKey, str], now: float) -> None:
    """Count a batch in the breaker of its reaction. done: number of records carried out. wrong: the error of each record whose handler
    failed.
    """
    breaker, was_open = queue.failing, queue.failing.open
    if done:
        breaker.succeeded(now, done)  # in whatever order: if a handler carries out some records, the records fail and not the handler
    else:
        for key in wrong:
            if key not in breaker.failed:  # a record that fails again says nothing about the others
                breaker.record_failure(key, now)
    if breaker.open and not was_open and lines.may_tell(queue.name, REACTION_PAUSES, now):
        queue.told_failing = now
        _say(
            queue,
            True,
            f"pauses, and tries one record at a time: its {_handler(queue)} failed for {FAILING_MOST} or more records in a row, the last"
            f" time with {list(wrong.values())[-1]}",
        )
    if not breaker.open and queue.told_failing is not None:
        _say(queue, False, f"goes on after {now - queue.told_failing:.1f} s: its {_handler(queue)} carried out a record")
        queue.told_failing = None


def _handler(queue: WorkQueue) -> str:
    return "expired handler" if queue.query.answers_late else "handler"


def _say(queue: WorkQueue, pauses: bool, words: str) -> None:
    log.warning("%s %s", queue.name, words, extra={"event": "reaction_pauses", "reaction": queue.name, "pauses": pauses})
