"""The interface through which traces of a worker are made. It changes nothing in the worker, and depends on no tracing library.

Each method of a `Watch` is called when some work begins, in the thread or task that does the work, and returns a function that is called
there when the work has ended. What either raises is logged, and the work goes on.
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
    """The app and the name of the database for which work is done."""

    app: str
    store: str


@dataclass(frozen=True)
class Ran:
    """The result of a batch of a DB-only reaction. error: what kept the whole batch from being carried out."""

    done: int = 0
    failed: int = 0
    error: BaseException | None = None


@dataclass(frozen=True)
class Committed:
    """The result of a transaction that concludes calls and begins others."""

    concluded: int = 0
    begun: int = 0


class Watch(Protocol):
    """A tracing hook that is implemented outside of the engine. One object watches any number of workers, from all their threads."""

    def calls(self, where: Where, in_flights: Sequence[InFlightCall]) -> Callable[[Sequence[CallResult]], None]:
        """Begin the trace of one call or lookup, or of one `call_many` for several records, before the user's function runs."""
        ...

    def batch(self, where: Where, spec: ReactionSpec) -> Callable[[Ran], None]:
        """Begin the trace of a batch of a DB-only reaction, before its handlers run in one transaction or a few."""
        ...

    def transaction(self, where: Where, words: Sequence[CallResult]) -> Callable[[Committed], None]:
        """Begin the trace of one transaction that concludes calls, by their results, and begins new calls."""
        ...


class Watched:
    """Calls a worker's `Watch` if there is one, and keeps what that raises away from the worker."""

    def __init__(self, where: Where, watch: Watch | None = None) -> None:
        self._where = where
        self._watch = watch
        self._failing = False  # the watch raised at its last call, and an error was logged
        self._saying = threading.Lock()  # protects `_failing`: calls end in several threads at once

    def calls(self, in_flights: Sequence[InFlightCall]) -> Callable[[Sequence[CallResult]], None]:
        """Call `Watch.calls`, and return the function to call at the end."""
        return _silent if self._watch is None else self._guarded(lambda watch: watch.calls(self._where, in_flights), self._watch)

    def batch(self, spec: ReactionSpec) -> Callable[[Ran], None]:
        """Call `Watch.batch`, and return the function to call at the end."""
        return _silent if self._watch is None else self._guarded(lambda watch: watch.batch(self._where, spec), self._watch)

    def transaction(self, words: Sequence[CallResult]) -> Callable[[Committed], None]:
        """Call `Watch.transaction`, and return the function to call at the end."""
        return _silent if self._watch is None else self._guarded(lambda watch: watch.transaction(self._where, words), self._watch)

    def _guarded(self, begin: Callable[[Watch], Callable[[Any], None]], watch: Watch) -> Callable[[Any], None]:
        try:
            ended = begin(watch)
        except BaseException as error:  # an error of the watch must not stop the work
            self._say_failed("a watch failed, and was not told of this", error)
            return _silent

        def told(what: Any) -> None:
            try:
                ended(what)
            except BaseException as error:  # an error of the watch must not stop the work
                self._say_failed("a watch failed, and was not told how this ended", error)
            else:
                self._failing = False

        return told

    def _say_failed(self, words: str, error: BaseException) -> None:
        """Log what the watch raised: as an error the first time, and at DEBUG until it works again, since each call may raise."""
        with self._saying:
            said, self._failing = self._failing, True
        if said:
            log.debug(words, exc_info=error, extra={"event": "watch_failed"})
        else:
            log.error(words, exc_info=error, extra={"event": "watch_failed"})


NOBODY = Watched(Where("", ""))


def _silent(_ended: Any) -> None:
    """Do nothing at the end of work that is not watched."""
