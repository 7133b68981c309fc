"""Warns about listeners to a session's commits that are not called when handlers change something.

Groundstate commits through the connection, once for all handlers of a batch, after their changes were flushed. So the session has no
changes left to show to such a listener, and an error that the listener raised would belong to no single record. Listeners to flushes are
called for all changes.
"""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy.orm import Session

log = logging.getLogger("groundstate")
_EVENTS = ("before_commit", "after_commit")
_told: set[tuple[str, str]] = set()


def warn_of_unheard_listeners(session: Session) -> None:
    """Log one warning per commit listener that is not called for handlers, unless it was logged before."""
    dispatch: Any = session.dispatch
    for event in _EVENTS:
        for function in getattr(dispatch, event):
            module = getattr(function, "__module__", type(function).__module__)
            name = f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"
            if name.startswith("groundstate.") or (event, name) in _told:
                continue
            _told.add((event, name))
            log.warning(
                "%s listens to %s of sessions, and is not called for what handlers change: listen to after_flush, which comes before the"
                " commit, or let a reaction do it, which comes after it",
                name,
                event,
                extra={"event": "listener_unheard"},
            )
