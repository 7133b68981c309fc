"""Limits log lines of which many may be alike: ten a minute for each kind and reaction (or schedule), then a count of those left out.

What a left-out line would have told is in the database, and `groundstate pending` and `held` list it. A line that is the only trace of its
event has no kind here, and is always written.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

log = logging.getLogger("groundstate")
LINES_MOST = 10  # lines of one kind and reaction within WITHIN_S
WITHIN_S = 60.0


@dataclass(frozen=True)
class Kind:
    """A kind of log line. `words` names what is counted when lines are left out, as in '3 more calls failed'."""

    event: str
    level: int
    words: str


CALL_FAILED = Kind("call_failed", logging.INFO, "calls failed")
CALL_IN_DOUBT = Kind("call_in_doubt", logging.WARNING, "calls are in doubt")
CALL_HANGS = Kind("call_hangs", logging.WARNING, "calls went on past their time limit")
HANDLER_FAILED = Kind("handler_failed", logging.WARNING, "handlers failed")
TICK_FAILED = Kind("tick_failed", logging.WARNING, "ticks failed")
REACTION_PAUSES = Kind("reaction_pauses", logging.WARNING, "pauses of its handler")
RECORD_UNREADABLE = Kind("record_unreadable", logging.WARNING, "records could not be read")
CONDITION_RAISES = Kind("condition_raises", logging.WARNING, "times its condition could not be asked of some record")
GIVEN_UP = Kind("given_up", logging.INFO, "records were given up")
KEPT = Kind("attempt_kept", logging.INFO, "attempts wait")
HELD = Kind("attempt_kept", logging.ERROR, "attempts are held")
OUTCOME_WAITS = Kind("outcome_waits", logging.WARNING, "outcomes wait until their records are mended")
OUTCOME_HELD = Kind("outcome_held", logging.ERROR, "attempts are held with their outcome")


@dataclass
class _Told:
    """How many lines of one kind and reaction were written and left out since the first line of this minute."""

    since: float
    lines: int = 0
    left_out: int = 0


class LimitedLines:
    """Counts the lines of each kind and reaction that a worker logged in this minute. Used by the transactions' thread only; times are
    monotonic seconds.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[str, Kind], _Told] = {}

    def may_tell(self, reaction: str, kind: Kind, now: float, *, anyhow: bool = False) -> bool:
        """Whether such a line may be written now; if not, it is counted as left out. With `anyhow` it may always be written."""
        told = self._told.setdefault((reaction, kind), _Told(now))
        if told.lines >= LINES_MOST and not anyhow:
            told.left_out += 1
            return False
        told.lines += 1
        return True

    def turn(self, now: float, *, over: bool = False) -> None:
        """Log how many lines were left out, for every kind and reaction whose minute is over; with `over` (the worker ends), for all.
        Called in each loop iteration.
        """
        for (reaction, kind), told in [(name, one) for name, one in self._told.items() if over or now - one.since >= WITHIN_S]:
            del self._told[(reaction, kind)]
            if told.left_out:
                log.log(
                    kind.level,
                    "%s: %d more %s since then, of which no line tells",
                    reaction,
                    told.left_out,
                    kind.words,
                    extra={"event": "lines_left_out", "reaction": reaction, "of": kind.event, "count": told.left_out},
                )
