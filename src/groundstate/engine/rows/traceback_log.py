"""Makes redacted tracebacks of exceptions from users' functions for log lines. A traceback is logged once for each type of exception and
place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

from groundstate.engine.sql.safe_text import OURS, original_exception, safe_str, where_raised

log = logging.getLogger("groundstate")
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
_KINDS_MOST = 1000  # the most kinds of errors that are remembered; when there are more, all are forgotten and logged anew
_CHAIN_MOST = 5  # how many causes (`__cause__` or `__context__`) of an exception are shown at most


class Tracebacks:
    """Remembers which tracebacks one worker incarnation has logged. redacted: returns an error's text without what may not be logged."""

    def __init__(self, redacted: Callable[[str], str]) -> None:
        self._redacted = redacted
        self._told: set[tuple[str, type[BaseException], str]] = set()

    def exc_info_if_new(self, name: str, error: BaseException | None) -> ExcInfo | None:
        """Return the `exc_info` for a log line about this reaction or schedule. Return None if a traceback for the same type of error and
        the same place was logged before, unless DEBUG is on.
        """
        if error is not None:
            error = original_exception(error)
        if error is None or error.__traceback__ is None:
            return None
        kind = (name, type(error), where_raised(error))
        if kind in self._told and not log.isEnabledFor(logging.DEBUG):
            return None
        if len(self._told) >= _KINDS_MOST:
            self._told.clear()
        self._told.add(kind)
        shown = self._redacted_copy(error, _CHAIN_MOST)
        return type(shown), shown, shown.__traceback__

    def _redacted_copy(self, error: BaseException, most: int) -> BaseException:
        """Return an exception that prints like this one, but with a redacted text: the text of the original may contain secrets.

        The copy has the chain of the original's causes, up to `most` causes.
        """
        kind = type(error)
        like: type[Exception] = type(kind.__name__, (Exception,), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})
        made = like(self._redacted(safe_str(error))).with_traceback(_without_own_frames(error.__traceback__))
        because = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if because is not None and most and not type(because).__module__.startswith("groundstate.engine."):
            made.__context__ = self._redacted_copy(because, most - 1)
            if error.__cause__ is not None:
                made.__cause__ = made.__context__
        return made


def _without_own_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback without its first entries that lie in groundstate's own files, so that it starts in the user's code."""
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename.startswith(OURS):
        trace = trace.tb_next
    return trace
