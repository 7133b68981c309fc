"""Logs the calls and lookups that failed or ended in doubt, one line each, up to a number of lines per minute."""

from __future__ import annotations

import logging
from collections.abc import Callable

from groundstate.engine.rows.in_flight import CallResult, FoundUnknown, InFlightCall, NothingHappened, Unclear
from groundstate.engine.rows.limited_logging import CALL_FAILED, CALL_HANGS, CALL_IN_DOUBT, LimitedLines

log = logging.getLogger("groundstate")
_CURES = {
    False: "give its client a time limit of its own, since no thread can be ended from outside",
    True: "it swallows its cancellation, or another call blocks the loop",
}


class FailedCalls:
    """Logs failed calls of one worker; used by its transactions' thread only. shorten: makes an error's text fit for the log."""

    def __init__(self, shorten: Callable[[str], str], lines: LimitedLines) -> None:
        self._shorten = shorten
        self._lines = lines

    def heard(self, word: CallResult, now: float, *, pauses: bool, doubts: bool = False) -> None:
        """Log a concluded call result if it is a failure. pauses: it paused its service, so that it is logged in any case. doubts: it put
        its attempt in doubt.
        """
        reaction, record = word.in_flight.identity[1:3]
        match word:
            case Unclear(error=error, running=False) if doubts and self._lines.may_tell(reaction, CALL_IN_DOUBT, now, anyhow=pauses):
                words = self._shorten(error)
                log.warning(
                    "%s is in doubt: %s",
                    _named(word.in_flight),
                    words,
                    extra={"event": "call_in_doubt", "reaction": reaction, "record": record},
                )
                return
            case NothingHappened(error=error):
                said = f"the call failed: {error}"
            case FoundUnknown(error=error) if error is not None:
                said = error
            case _:
                return  # no failure; or a call still running, which `hangs` has logged
        if self._lines.may_tell(reaction, CALL_FAILED, now, anyhow=pauses):
            words = f"{_named(word.in_flight)}: {self._shorten(said)}"
            if pauses:
                log.warning("%s", words, extra={"event": "call_failed", "reaction": reaction, "record": record})
            else:
                log.info("%s", words, extra={"event": "call_failed", "reaction": reaction, "record": record})

    def hangs(self, in_flight: InFlightCall, error: str, now: float) -> None:
        """Log that a call or lookup is running past its time limit."""
        call, (reaction, record) = in_flight.query.spec.call, in_flight.identity[1:3]
        if call is None or not self._lines.may_tell(reaction, CALL_HANGS, now):
            return
        find = call.lookup if in_flight.is_lookup else None
        log.warning(
            "%s%s %s%s: %s",
            _named(in_flight),
            ": its lookup" if in_flight.is_lookup else "",
            error,
            "" if in_flight.is_lookup else ", and is in doubt",
            _CURES[(find or call.function).is_async],
            extra={"event": "call_hangs", "reaction": reaction, "record": record},
        )


def _named(in_flight: InFlightCall) -> str:
    spec = in_flight.query.spec
    return f"{spec.name} on {spec.table_name} {in_flight.identity[2]}"
