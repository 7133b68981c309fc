"""Labels lines of the log by store: a thread sets once for which store it works, and each line that it logs carries this name as `store`.

It also keeps exceptions of the user's log handlers from the code that logs: they would be taken for a failure of the work in progress.
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
    """Put the store's name before the message where it is not in it yet: a user's formatter may show nothing else."""
    if re.search(rf"^{re.escape(store)}:|\b(on|of) {re.escape(store)}(?=[ :])", record.getMessage()) is None:
        prefix = store.replace("%", "%%") if record.args else store
        record.msg = f"{prefix}: {record.msg}"


class _Guarded(logging.Logger):
    """A _Guarded logger passes what a user's handler or filter raises to `handleError`, as the standard library's handlers do with their
    own.
    """

    def filter(self, record: logging.LogRecord) -> Any:
        try:
            return super().filter(record)
        except BaseException as error:  # noqa: BLE001  # the user's code may raise anything
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
                except BaseException as error:  # noqa: BLE001  # the user's code may raise anything
                    _let_through(error)
                    handler.handleError(record)


_last_resort = logging.Handler()


def _handlers(logger: logging.Logger | None) -> Iterator[logging.Handler]:
    """Yield all handlers that receive the lines of this logger."""
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _let_through(error: BaseException) -> None:
    """Raise the error if it is a person's Ctrl-C, which Python raises in the main thread wherever that is."""
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error


for _name in LOGGERS:
    _logger = logging.getLogger(_name)
    _logger.addFilter(_Named())
    _logger.__class__ = type("Guarded", (_Guarded, type(_logger)), {})  # keeps the class of a logger that the user has set


def label_log_lines(store: str, *, of_several: bool = False) -> None:
    """Label what this thread logs from now on with this store. of_several: put the name in the messages as well, since there are other
    stores.
    """
    _store.set(store)
    _of_several.set(of_several)


def keep_log_label(target: Callable[[], None]) -> Callable[[], None]:
    """Wrap the target of a thread that is started here, so that its lines are labelled with the same store."""
    context = copy_context()
    return lambda: context.run(target)
