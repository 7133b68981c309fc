"""The one seam through which somebody may watch a worker at its work, for traces. Changes nothing of it, and knows no library.

Each method of a `Watch` is told what begins, in the thread or task in which it is done, and answers with a function that is told how it
ended, in the same one. What either raises is logged, and the work goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from groundstate.engine.flight import Flight, Word
from groundstate.rules.reaction import ReactionSpec

log = logging.getLogger("groundstate")


@dataclass(frozen=True)
class Where:
    """Whose work it is: the app, and its store by name."""

    app: str
    store: str


@dataclass(frozen=True)
class Ran:
    """What came of a batch of a reaction without a call. error: what kept it from being carried out at all."""

    done: int = 0
    failed: int = 0
    error: BaseException | None = None


@dataclass(frozen=True)
class Committed:
    """What came of a transaction that concludes calls and begins others."""

    concluded: int = 0
    begun: int = 0


class Watch(Protocol):
    """Watches any number of workers, from all their threads."""

    def calls(self, where: Where, flights: Sequence[Flight]) -> Callable[[Sequence[Word]], None]:
        """The user's function is called for these: one call or find, or one `call_many` of several records."""
        ...

    def batch(self, where: Where, spec: ReactionSpec) -> Callable[[Ran], None]:
        """Handlers of a reaction without a call run, in one transaction or a few."""
        ...

    def transaction(self, where: Where, words: Sequence[Word]) -> Callable[[Committed], None]:
        """What came back of calls is handled, and new calls are begun, in one transaction."""
        ...


class Watched:
    """What a worker tells: nothing where nobody watches, and nothing that comes back to it where somebody does."""

    def __init__(self, where: Where, watch: Watch | None = None) -> None:
        self._where = where
        self._watch = watch
        self._failing = False  # it raised when it was told the last time, and that was said
        self._saying = threading.Lock()  # calls end in several threads at once

    def calls(self, flights: Sequence[Flight]) -> Callable[[Sequence[Word]], None]:
        """See Watch."""
        return _silent if self._watch is None else self._guarded(lambda watch: watch.calls(self._where, flights), self._watch)

    def batch(self, spec: ReactionSpec) -> Callable[[Ran], None]:
        """See Watch."""
        return _silent if self._watch is None else self._guarded(lambda watch: watch.batch(self._where, spec), self._watch)

    def transaction(self, words: Sequence[Word]) -> Callable[[Committed], None]:
        """See Watch."""
        return _silent if self._watch is None else self._guarded(lambda watch: watch.transaction(self._where, words), self._watch)

    def _guarded(self, begin: Callable[[Watch], Callable[[Any], None]], watch: Watch) -> Callable[[Any], None]:
        try:
            ended = begin(watch)
        except BaseException as error:  # whoever watches is no part of the work
            self._say_failed("a watch failed, and was not told of this", error)
            return _silent

        def told(what: Any) -> None:
            try:
                ended(what)
            except BaseException as error:  # as above
                self._say_failed("a watch failed, and was not told how this ended", error)
            else:
                self._failing = False

        return told

    def _say_failed(self, words: str, error: BaseException) -> None:
        """Once, until it works again: it is told of each call."""
        with self._saying:
            said, self._failing = self._failing, True
        if said:
            log.debug(words, exc_info=error, extra={"event": "watch_failed"})
        else:
            log.error(words, exc_info=error, extra={"event": "watch_failed"})


NOBODY = Watched(Where("", ""))


def _silent(_ended: Any) -> None:
    """Nobody watches."""
