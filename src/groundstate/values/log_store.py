"""Adds the field `store`, a store's name, to each line of the log. A thread says once for which store it works.

It also catches exceptions that a user's log handlers raise. Otherwise the code that logs would treat such an exception as a failure of its
own work.
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


class _StoreNameFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        store = _store.get()
        if store and not hasattr(record, "store"):
            record.store = store
        if store and _of_several.get():
            _prefix_store_name(record, store)
        return True


def _prefix_store_name(record: logging.LogRecord, store: str) -> None:
    """Put the store's name before the message, unless the message names it already. A user's formatter may show only the message."""
    if re.search(rf"^{re.escape(store)}:|\b(on|of) {re.escape(store)}(?=[ :])", record.getMessage()) is None:
        prefix = store.replace("%", "%%") if record.args else store
        record.msg = f"{prefix}: {record.msg}"


class _GuardedLogger(logging.Logger):
    """A logger that passes an exception of a user's handler or filter to `handleError`, as the standard library's handlers do."""

    def filter(self, record: logging.LogRecord) -> Any:
        try:
            return super().filter(record)
        except BaseException as error:  # noqa: BLE001  # the user's code may raise anything
            _reraise_keyboard_interrupt(error)
            _last_resort.handleError(record)
            return True

    def callHandlers(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        if not self.hasHandlers():
            super().callHandlers(record)
        for handler in _all_handlers_of(self):
            if record.levelno >= handler.level:
                try:
                    handler.handle(record)
                except BaseException as error:  # noqa: BLE001  # the user's code may raise anything
                    _reraise_keyboard_interrupt(error)
                    handler.handleError(record)


_last_resort = logging.Handler()


def _all_handlers_of(logger: logging.Logger | None) -> Iterator[logging.Handler]:
    """Yield all handlers that receive the lines of this logger."""
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _reraise_keyboard_interrupt(error: BaseException) -> None:
    """Raise the error again if it is a KeyboardInterrupt in the main thread. Its cause is Ctrl-C, and not the user's handler."""
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error


for _name in LOGGERS:
    _logger = logging.getLogger(_name)
    _logger.addFilter(_StoreNameFilter())
    _logger.__class__ = type("Guarded", (_GuardedLogger, type(_logger)), {})  # a subclass, since the user may have set the logger's class


def label_log_lines(store: str, *, of_several: bool = False) -> None:
    """Add this store's name to each line that this thread logs from now on.

    of_several: whether the app has other stores, so that the name is put into the messages as well.
    """
    _store.set(store)
    _of_several.set(of_several)


def keep_log_label(target: Callable[[], None]) -> Callable[[], None]:
    """Wrap the target of a new thread, so that the log lines of the new thread get the store's name that this thread uses."""
    context = copy_context()
    return lambda: context.run(target)
