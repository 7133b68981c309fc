"""Calls and finds that failed, or ended in doubt: each a line in the log, of which so many a minute are written."""

from __future__ import annotations

import logging
from collections.abc import Callable

from groundstate.engine.flight import Flight, FoundUnknown, NothingHappened, Unclear, Word
from groundstate.engine.limited_lines import CALL_FAILED, CALL_HANGS, CALL_IN_DOUBT, LimitedLines

log = logging.getLogger("groundstate")
_CURES = {
    False: "give its client a time limit of its own, since no thread can be ended from outside",
    True: "it swallows its cancellation, or another call blocks the loop",
}


class FailedCalls:
    """Of one worker, for its transactions' thread. shorten: an error's text as it may be told."""

    def __init__(self, shorten: Callable[[str], str], lines: LimitedLines) -> None:
        self._shorten = shorten
        self._lines = lines

    def heard(self, word: Word, now: float, *, pauses: bool, doubts: bool = False) -> None:
        """A word was concluded. pauses: its endpoint is paused by it, which is told in any case. doubts: its attempt is in doubt by it."""
        reaction, record = word.flight.identity[1:3]
        match word:
            case Unclear(error=error, running=False) if doubts and self._lines.may_tell(reaction, CALL_IN_DOUBT, now, anyhow=pauses):
                words = self._shorten(error)
                log.warning(
                    "%s is in doubt: %s",
                    _named(word.flight),
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
        if self._lines.may_tell(reaction, CALL_FAILED, now, anyhow=pauses):
            words = f"{_named(word.flight)}: {self._shorten(said)}"
            if pauses:
                log.warning("%s", words, extra={"event": "call_failed", "reaction": reaction, "record": record})
            else:
                log.info("%s", words, extra={"event": "call_failed", "reaction": reaction, "record": record})

    def hangs(self, flight: Flight, error: str, now: float) -> None:
        """It went on past its time limit."""
        call, (reaction, record) = flight.question.spec.call, flight.identity[1:3]
        if call is None or not self._lines.may_tell(reaction, CALL_HANGS, now):
            return
        find = call.find if flight.is_find else None
        log.warning(
            "%s%s %s%s: %s",
            _named(flight),
            ": its find" if flight.is_find else "",
            error,
            "" if flight.is_find else ", and is in doubt",
            _CURES[(find or call.function).is_async],
            extra={"event": "call_hangs", "reaction": reaction, "record": record},
        )


def _named(flight: Flight) -> str:
    spec = flight.question.spec
    return f"{spec.name} on {spec.table_name} {flight.identity[2]}"
