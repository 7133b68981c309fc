"""Limits log lines that may come in great numbers: ten a minute of each kind for each reaction (or schedule), then a count of those left
out.

What a left-out line would have said is in the database too, where `groundstate pending` and `held` show it. A line that is the only trace
of its event is always written, without this module.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

log = logging.getLogger("groundstate")
LINES_MOST = 10  # the most lines of one kind and reaction that are written within WITHIN_S
WITHIN_S = 60.0


@dataclass(frozen=True)
class Kind:
    """A kind of log line. words: what follows the number of left-out lines, as in '3 more calls failed'."""

    event: str
    level: int
    words: str


CALL_FAILED = Kind("call_failed", logging.INFO, "calls failed")
CALL_IN_DOUBT = Kind("call_in_doubt", logging.WARNING, "calls are in doubt")
CALL_HANGS = Kind("call_hangs", logging.WARNING, "calls went on past their time limit")
HANDLER_FAILED = Kind("handler_failed", logging.WARNING, "handlers failed")
HANDLER_MEETS_LOCK = Kind("handler_meets_lock", logging.WARNING, "handlers met locks of other transactions")
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
class _LineCounts:
    """For one kind and reaction: how many lines were written, and how many left out, since the first line of this minute."""

    since: float
    lines: int = 0
    left_out: int = 0


class LimitedLines:
    """Counts the lines of each kind and reaction that a worker logged in this minute. Must be used only by the thread that runs
    transactions. Times are monotonic seconds.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Kind], _LineCounts] = {}

    def count_line(self, reaction: str, kind: Kind, now: float, *, anyhow: bool = False) -> bool:
        """Return whether the caller may write a line of this kind now, and count the line as written or as left out. With `anyhow` the line
        may always be written.
        """
        counts = self._counts.setdefault((reaction, kind), _LineCounts(now))
        if counts.lines >= LINES_MOST and not anyhow:
            counts.left_out += 1
            return False
        counts.lines += 1
        return True

    def log_left_out_counts(self, now: float, *, over: bool = False) -> None:
        """Log how many lines were left out, for each kind and reaction whose minute is over. With `over`, log it for all kinds and
        reactions, since the worker ends. The worker's loop calls this in each iteration.
        """
        for (reaction, kind), counts in [(name, one) for name, one in self._counts.items() if over or now - one.since >= WITHIN_S]:
            del self._counts[(reaction, kind)]
            if counts.left_out:
                log.log(
                    kind.level,
                    "%s: %d more %s since then, for which no line was written",
                    reaction,
                    counts.left_out,
                    kind.words,
                    extra={"event": "lines_left_out", "reaction": reaction, "of": kind.event, "count": counts.left_out},
                )
