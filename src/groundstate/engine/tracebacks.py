"""The traceback of what a user's code raised, for the line that tells of the failure: once for each kind and place, and redacted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

from groundstate.engine.guarded import OURS, Raised, place_of, text_of

log = logging.getLogger("groundstate")
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
_KINDS_MOST = 1000  # that are remembered; then each is told once more
_CHAIN_MOST = 5  # exceptions that were raised because of one another


class Tracebacks:
    """Of one life. redacted: an error's text as it may be told."""

    def __init__(self, redacted: Callable[[str], str]) -> None:
        self._redacted = redacted
        self._told: set[tuple[str, type[BaseException], str]] = set()

    def of(self, name: str, error: BaseException | None) -> ExcInfo | None:
        """For `exc_info` of a line about this reaction or schedule; None where the same was told before, but at DEBUG."""
        if isinstance(error, Raised):
            error = error.error
        if error is None or error.__traceback__ is None:
            return None
        kind = (name, type(error), place_of(error))
        if kind in self._told and not log.isEnabledFor(logging.DEBUG):
            return None
        if len(self._told) >= _KINDS_MOST:
            self._told.clear()
        self._told.add(kind)
        shown = self._shown(error, _CHAIN_MOST)
        return type(shown), shown, shown.__traceback__

    def _shown(self, error: BaseException, most: int) -> BaseException:
        """An exception that is printed like this one, with words that may be told: its own may hold what is to be hidden."""
        kind = type(error)
        like: type[Exception] = type(kind.__name__, (Exception,), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})
        made = like(self._redacted(text_of(error))).with_traceback(_from_theirs_on(error.__traceback__))
        because = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if because is not None and most and not type(because).__module__.startswith("groundstate.engine."):
            made.__context__ = self._shown(because, most - 1)
            if error.__cause__ is not None:
                made.__cause__ = made.__context__
        return made


def _from_theirs_on(trace: TracebackType | None) -> TracebackType | None:
    """Without the lines by which we came to the user's code."""
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename.startswith(OURS):
        trace = trace.tb_next
    return trace
