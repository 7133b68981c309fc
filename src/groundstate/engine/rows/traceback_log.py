"""The traceback of an exception from a user's code, for the log line about it: redacted, and logged once for each kind and place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

from groundstate.engine.sql.safe_text import OURS, meant, place_of, text_of

log = logging.getLogger("groundstate")
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
_KINDS_MOST = 1000  # kinds of error that are remembered; beyond that all are forgotten, and each is logged once more
_CHAIN_MOST = 5  # exceptions: the longest `__cause__` / `__context__` chain that is shown


class Tracebacks:
    """Remembers which tracebacks one worker incarnation has logged. `redacted` turns an error's text into one that may be logged."""

    def __init__(self, redacted: Callable[[str], str]) -> None:
        self._redacted = redacted
        self._told: set[tuple[str, type[BaseException], str]] = set()

    def of(self, name: str, error: BaseException | None) -> ExcInfo | None:
        """Return the `exc_info` for a log line about this reaction or schedule; None if the same kind of error from the same place was
        logged before, unless DEBUG is on.
        """
        if error is not None:
            error = meant(error)
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
        """Return an exception that prints like this one, with redacted text in place of its own, which may contain secrets."""
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
    """Drop the leading traceback entries of groundstate's own files, so that the traceback starts in the user's code."""
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename.startswith(OURS):
        trace = trace.tb_next
    return trace
