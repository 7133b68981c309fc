"""Lines of the log. Which store one is about: said once by a thread that works for it, and put on each line that it logs as `store`.

And nobody who logs hears of a handler that raises: it would be taken for the trouble of what was carried out just then.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from typing import Any

LOGGERS = ("groundstate", "groundstate.store")
_store: ContextVar[str] = ContextVar("groundstate_store", default="")
_of_several: ContextVar[bool] = ContextVar("groundstate_of_several", default=False)


class _Named(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        store = _store.get()
        if store and not hasattr(record, "store"):
            record.store = store
        if store and _of_several.get():
            _say_which(record, store)
        return True


def _say_which(record: logging.LogRecord, store: str) -> None:
    """Puts the store before the words, where they do not have it: a formatter of the user's shows nothing else."""
    if re.search(rf"^{re.escape(store)}:|\b(on|of) {re.escape(store)}(?=[ :])", record.getMessage()) is None:
        prefix = store.replace("%", "%%") if record.args else store
        record.msg = f"{prefix}: {record.msg}"


class _Guarded(logging.Logger):
    """What a handler, or a filter, of the user's raises goes where the standard library's own handlers put what they raise."""

    def filter(self, record: logging.LogRecord) -> Any:
        try:
            return super().filter(record)
        except BaseException as error:  # noqa: BLE001  # of the user's code, which may raise what it likes
            _let_through(error)
            _last_resort.handleError(record)
            return True

    def callHandlers(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        if not self.hasHandlers():
            super().callHandlers(record)
        for handler in _handlers(self):
            if record.levelno >= handler.level:
                try:
                    handler.handle(record)
                except BaseException as error:  # noqa: BLE001  # as above
                    _let_through(error)
                    handler.handleError(record)


_last_resort = logging.Handler()


def _handlers(logger: logging.Logger | None) -> Iterator[logging.Handler]:
    """All that are to have a line of this logger."""
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _let_through(error: BaseException) -> None:
    """A person's Ctrl-C, which Python raises in the main thread wherever that is."""
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error


for _name in LOGGERS:
    _logger = logging.getLogger(_name)
    _logger.addFilter(_Named())
    _logger.__class__ = type("Guarded", (_Guarded, type(_logger)), {})  # whatever class somebody has set for loggers


def are_of(store: str, *, of_several: bool = False) -> None:
    """From now on what this thread logs has this store's name. of_several: in its words as well, since there are others."""
    _store.set(store)
    _of_several.set(of_several)


def as_here(target: Callable[[], None]) -> Callable[[], None]:
    """The target of a thread that is started here, whose lines are of the same store."""
    context = copy_context()
    return lambda: context.run(target)
