"""Logs calls and lookups that failed or ended in doubt, one line for each, up to a limit of lines per minute."""

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
    """Logs failed calls of one worker. Must be used only by the thread that runs its transactions.

    shorten: returns an error text, redacted and cut to the length that is stored.
    """

    def __init__(self, shorten: Callable[[str], str], lines: LimitedLines) -> None:
        self._shorten = shorten
        self._lines = lines

    def log_failure(self, result: CallResult, now: float, *, pauses: bool, doubts: bool = False) -> None:
        """Log a concluded call result if it is a failure.

        pauses: whether the failure paused its service; then it is logged even beyond the limit of lines.
        doubts: whether the result put its attempt in doubt.
        """
        reaction, record = result.in_flight.identity[1:3]
        match result:
            case Unclear(error=error, running=False) if doubts and self._lines.may_log(reaction, CALL_IN_DOUBT, now, anyhow=pauses):
                text = self._shorten(error)
                log.warning(
                    "%s is in doubt: %s",
                    _name_reaction_and_record(result.in_flight),
                    text,
                    extra={"event": "call_in_doubt", "reaction": reaction, "record": record},
                )
                return
            case NothingHappened(error=error):
                text = f"the call failed: {error}"
            case FoundUnknown(error=error) if error is not None:
                text = error
            case _:
                return  # either no failure, or a call that still runs, which was logged at its time limit
        if self._lines.may_log(reaction, CALL_FAILED, now, anyhow=pauses):
            text = f"{_name_reaction_and_record(result.in_flight)}: {self._shorten(text)}"
            if pauses:
                log.warning("%s", text, extra={"event": "call_failed", "reaction": reaction, "record": record})
            else:
                log.info("%s", text, extra={"event": "call_failed", "reaction": reaction, "record": record})

    def log_hanging_call(self, in_flight: InFlightCall, error: str, now: float) -> None:
        """Log that a call or lookup still runs after its time limit."""
        call, (reaction, record) = in_flight.query.spec.call, in_flight.identity[1:3]
        if call is None or not self._lines.may_log(reaction, CALL_HANGS, now):
            return
        find = call.lookup if in_flight.is_lookup else None
        log.warning(
            "%s%s %s%s: %s",
            _name_reaction_and_record(in_flight),
            ": its lookup" if in_flight.is_lookup else "",
            error,
            "" if in_flight.is_lookup else ", and is in doubt",
            _CURES[(find or call.function).is_async],
            extra={"event": "call_hangs", "reaction": reaction, "record": record},
        )


def _name_reaction_and_record(in_flight: InFlightCall) -> str:
    spec = in_flight.query.spec
    return f"{spec.name} on {spec.table_name} {in_flight.identity[2]}"
