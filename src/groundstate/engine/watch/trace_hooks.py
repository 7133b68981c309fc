"""The interface through which a worker can be traced. It changes nothing in the worker, and depends on no tracing library.

Each method of a `Watch` is called when some work begins, in the thread or task that does the work. It returns a function, which is called
in the same thread or task when the work has ended. An exception of the method or of the function is logged, and the work goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from groundstate.engine.rows.in_flight import CallResult, InFlightCall
from groundstate.rules.specs import ReactionSpec

log = logging.getLogger("groundstate")


@dataclass(frozen=True)
class Where:
    """Names the app and the database for which work is done."""

    app: str
    store: str


@dataclass(frozen=True)
class Ran:
    """The result of a batch of a reaction without a call."""

    done: int = 0  # records that were carried out
    failed: int = 0  # records whose handler failed
    error: BaseException | None = None  # the error that made the whole batch fail; None if there was none


@dataclass(frozen=True)
class Committed:
    """The result of a transaction that concludes calls which returned, and begins new calls."""

    concluded: int = 0  # number of calls
    begun: int = 0  # number of calls


class Watch(Protocol):
    """The protocol of a tracing hook, which is implemented outside of the engine. One hook may trace many workers, in all their threads."""

    def trace_calls(self, where: Where, in_flights: Sequence[InFlightCall]) -> Callable[[Sequence[CallResult]], None]:
        """Begin a trace of one call, one lookup, or one `call_many` for several records, before the application's function runs. Return the
        function that ends the trace.
        """
        ...

    def trace_batch(self, where: Where, spec: ReactionSpec) -> Callable[[Ran], None]:
        """Begin a trace of a batch of a reaction without a call, before its handlers run. Return the function that ends the trace."""
        ...

    def trace_transaction(self, where: Where, results: Sequence[CallResult]) -> Callable[[Committed], None]:
        """Begin a trace of one transaction that writes these results of calls and begins new calls. Return the function that ends the
        trace.
        """
        ...


class GuardedWatch:
    """Calls a worker's tracing hook (`Watch`) if there is one. Exceptions of the hook are logged, and do not reach the worker."""

    def __init__(self, where: Where, watch: Watch | None = None) -> None:
        self._where = where
        self._watch = watch
        self._failing = False  # whether the last call of the hook raised an exception; the first such exception was logged as an error
        self._saying = threading.Lock()  # protects `_failing`: calls end in several threads at once

    def trace_calls(self, in_flights: Sequence[InFlightCall]) -> Callable[[Sequence[CallResult]], None]:
        """Call `Watch.trace_calls`, and return the function to call when the work has ended."""
        return (
            _do_nothing if self._watch is None else self._begin_trace(lambda watch: watch.trace_calls(self._where, in_flights), self._watch)
        )

    def trace_batch(self, spec: ReactionSpec) -> Callable[[Ran], None]:
        """Call `Watch.trace_batch`, and return the function to call when the batch has ended."""
        return _do_nothing if self._watch is None else self._begin_trace(lambda watch: watch.trace_batch(self._where, spec), self._watch)

    def trace_transaction(self, results: Sequence[CallResult]) -> Callable[[Committed], None]:
        """Call `Watch.trace_transaction`, and return the function to call when the transaction has ended."""
        return (
            _do_nothing
            if self._watch is None
            else self._begin_trace(lambda watch: watch.trace_transaction(self._where, results), self._watch)
        )

    def _begin_trace(self, begin: Callable[[Watch], Callable[[Any], None]], watch: Watch) -> Callable[[Any], None]:
        try:
            ended = begin(watch)
        except BaseException as error:  # an error of the watch must not stop the work
            self._log_failure("a watch (app.set_watch) failed when work began, and gets no end of that work", error)
            return _do_nothing

        def end_trace(result: Any) -> None:
            try:
                ended(result)
            except BaseException as error:  # an error of the watch must not stop the work
                self._log_failure("a watch (app.set_watch) failed when work ended", error)
            else:
                self._failing = False

        return end_trace

    def _log_failure(self, words: str, error: BaseException) -> None:
        """Log an exception of the hook: as an error the first time, then only at DEBUG until the hook works again."""
        with self._saying:
            said, self._failing = self._failing, True
        if said:
            log.debug(words, exc_info=error, extra={"event": "watch_failed"})
        else:
            log.error(words, exc_info=error, extra={"event": "watch_failed"})


NOBODY = GuardedWatch(Where("", ""))


def _do_nothing(_ended: Any) -> None:
    """Do nothing: called at the end of work that is not traced."""
