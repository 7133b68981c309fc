"""Pauses a reaction without a call whose handler fails for many records in a row. The reaction then tries one record at a time (rules.md
15).

Only different records count, and not the retries of one record, so that a few records that always fail do not pause the reaction.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from groundstate.engine.rows.limited_logging import REACTION_PAUSES, LimitedLines
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.watch.postponement import FAILING_MOST
from groundstate.engine.watch.work_queue import WorkQueue

log = logging.getLogger("groundstate")


def count_batch_in_breaker(queue: WorkQueue, lines: LimitedLines, done: int, wrong: Mapping[PrimaryKey, str], now: float) -> None:
    """Count the results of a batch in the circuit breaker of its reaction, and log when a pause of the reaction begins or ends.

    done: number of records carried out. wrong: by key, the error text of each record whose handler failed. now: monotonic time.
    """
    was_failing = queue.postponement.is_failing
    logged_at = queue.postponement.count_handler_results(done, wrong, now)
    if queue.postponement.is_failing and not was_failing and lines.count_line(queue.name, REACTION_PAUSES, now):
        queue.postponement.note_pause_logged(now)
        _log_pause(
            queue,
            True,
            f"pauses, and tries one record at a time: its {_handler_in_words(queue)} failed for {FAILING_MOST} or more records in a row,"
            f" the last time with {list(wrong.values())[-1]}",
        )
    if logged_at is not None:
        _log_pause(queue, False, f"goes on after {now - logged_at:.1f} s: its {_handler_in_words(queue)} carried out a record")


def _handler_in_words(queue: WorkQueue) -> str:
    return "expired handler" if queue.query.takes_expired_records else "handler"


def _log_pause(queue: WorkQueue, pauses: bool, words: str) -> None:
    log.warning("%s %s", queue.name, words, extra={"event": "reaction_pauses", "reaction": queue.name, "pauses": pauses})
