"""Calls and finds that failed, or ended in doubt, each a line in the log: so many a minute for each reaction and kind of line, and then
how many were left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from groundstate.engine.flight import Flight, FoundUnknown, NothingHappened, Unclear, Word

log = logging.getLogger("groundstate")
LINES_MOST = 10  # of one reaction and event within
WITHIN_S = 60.0
_CURES = {
    False: "give its client a time limit of its own, since no thread can be ended from outside",
    True: "it swallows its cancellation, or another call blocks the loop",
}


@dataclass
class _Told:
    """Of one reaction and event, since its first line."""

    since: float
    lines: int = 0
    left_out: int = 0


class FailedCalls:
    """Of one worker, for its transactions' thread. shorten: an error's text as it may be told."""

    def __init__(self, shorten: Callable[[str], str]) -> None:
        self._shorten = shorten
        self._told: dict[tuple[str, str], _Told] = {}

    def heard(self, word: Word, now: float, *, pauses: bool, doubts: bool = False) -> None:
        """A word was concluded. pauses: its endpoint is paused by it, which is told in any case. doubts: its attempt is in doubt by it."""
        reaction, record = word.flight.identity[1:3]
        match word:
            case Unclear(error=error, running=False) if doubts and self._may_tell(reaction, "call_in_doubt", now, anyhow=pauses):
                words = self._shorten(error)
                log.warning(
                    "%s on %s is in doubt: %s",
                    reaction,
                    record,
                    words,
                    extra={"event": "call_in_doubt", "reaction": reaction, "record": record},
                )
                return
            case NothingHappened(error=error):
                said = f"the call failed: {error}"
            case FoundUnknown(error=error) if error is not None:
                said = error
            case _:
                return  # no failure; or one that goes on, which was told when its time was over
        if self._may_tell(reaction, "call_failed", now, anyhow=pauses):
            words = f"{reaction} on {record}: {self._shorten(said)}"
            if pauses:
                log.warning("%s", words, extra={"event": "call_failed", "reaction": reaction, "record": record})
            else:
                log.info("%s", words, extra={"event": "call_failed", "reaction": reaction, "record": record})

    def hangs(self, flight: Flight, error: str, now: float) -> None:
        """It went on past its time limit."""
        call, (reaction, record) = flight.question.spec.call, flight.identity[1:3]
        if call is None or not self._may_tell(reaction, "call_hangs", now):
            return
        find = call.find if flight.is_find else None
        log.warning(
            "%s on %s%s %s%s: %s",
            reaction,
            record,
            ": its find" if flight.is_find else "",
            error,
            "" if flight.is_find else ", and is in doubt",
            _CURES[(find or call.function).is_async],
            extra={"event": "call_hangs", "reaction": reaction, "record": record},
        )

    def _may_tell(self, reaction: str, event: str, now: float, *, anyhow: bool = False) -> bool:
        told = self._told.setdefault((reaction, event), _Told(now))
        if told.lines >= LINES_MOST and not anyhow:
            told.left_out += 1
            return False
        told.lines += 1
        return True

    def turn(self, now: float, *, over: bool = False) -> None:
        """At each turn: what was left out is told of when its minute is over, and at the end of the worker."""
        for (reaction, event), told in [(name, one) for name, one in self._told.items() if over or now - one.since >= WITHIN_S]:
            del self._told[(reaction, event)]
            if told.left_out and event == "call_failed":
                log.info(
                    "%s: %d more calls failed since then, of which no line tells",
                    reaction,
                    told.left_out,
                    extra={"event": "calls_failed", "reaction": reaction, "count": told.left_out},
                )
            elif told.left_out:
                what = "are in doubt" if event == "call_in_doubt" else "went on past their time limit"
                log.warning(
                    "%s: %d more calls %s since then, of which no line tells",
                    reaction,
                    told.left_out,
                    what,
                    extra={"event": "calls_in_doubt", "reaction": reaction, "count": told.left_out},
                )
