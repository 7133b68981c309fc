"""Reactions without a call whose handler fails for one record after another: they pause and probe, as an outside does (rules.md 15).

What counts are different records, and not tries of the same ones: a handful that always fails keeps no other record waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from groundstate.engine.lane import FAILING_MOST, Lane
from groundstate.engine.limited_lines import REACTION_PAUSES, LimitedLines
from groundstate.engine.question import PrimaryKey

log = logging.getLogger("groundstate")


def heard(lane: Lane, lines: LimitedLines, done: int, wrong: Mapping[PrimaryKey, str], now: float) -> None:
    """A batch is over. done: how many records were carried out. wrong: for which its handler failed, and with what."""
    breaker, was_open = lane.failing, lane.failing.open
    if done:
        breaker.succeeded(now, done)  # in whatever order: a handler that carries out some of its records is not what fails
    else:
        for key in wrong:
            if key not in breaker.failed:  # one that fails again says nothing of the others
                breaker.went_wrong(key, now)
    if breaker.open and not was_open and lines.may_tell(lane.name, REACTION_PAUSES, now):
        lane.told_failing = now
        _say(
            lane,
            True,
            f"pauses, and tries one record at a time: its {_handler(lane)} failed for {FAILING_MOST} or more records in a row, the last"
            f" time with {list(wrong.values())[-1]}",
        )
    if not breaker.open and lane.told_failing is not None:
        _say(lane, False, f"goes on after {now - lane.told_failing:.1f} s: its {_handler(lane)} carried out a record")
        lane.told_failing = None


def _handler(lane: Lane) -> str:
    return "expired handler" if lane.question.answers_late else "handler"


def _say(lane: Lane, pauses: bool, words: str) -> None:
    log.warning("%s %s", lane.name, words, extra={"event": "reaction_pauses", "reaction": lane.name, "pauses": pauses})
