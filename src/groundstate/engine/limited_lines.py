"""Lines of the log of which many may be alike: ten a minute of each reaction (or schedule) and kind, and then how many were left out.

What is left out is in the database, and `groundstate pending` and `held` list it. A line that is the only trace of what it tells has no
kind here: each of those is written.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

log = logging.getLogger("groundstate")
LINES_MOST = 10  # of one reaction and kind within
WITHIN_S = 60.0


@dataclass(frozen=True)
class Kind:
    """A kind of line. words: what is counted of those that are left out, as in '3 more calls failed'."""

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
OUTCOME_HELD = Kind("outcome_held", logging.ERROR, "attempts are held with their outcome")


@dataclass
class _Told:
    """What was written, and left out, of one reaction and kind since the first line of this minute."""

    since: float
    lines: int = 0
    left_out: int = 0


class LimitedLines:
    """How many lines of each reaction and kind a worker wrote in this minute. For its transactions' thread; times are monotonic seconds."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, Kind], _Told] = {}

    def may_tell(self, reaction: str, kind: Kind, now: float, *, anyhow: bool = False) -> bool:
        """Whether such a line is written now; it is counted as left out where not. anyhow: it is, however many there were."""
        told = self._told.setdefault((reaction, kind), _Told(now))
        if told.lines >= LINES_MOST and not anyhow:
            told.left_out += 1
            return False
        told.lines += 1
        return True

    def turn(self, now: float, *, over: bool = False) -> None:
        """At each turn: tells how many were left out once their minute is over. over: the worker ends."""
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
