"""Listeners to the commits of sessions, which do not hear of what handlers changed: told once for each, by its name.

A commit of ours is the connection's, for all handlers of a batch, whose changes were flushed and looked at long before: nothing is dirty in
the session any more, and what such a listener raised would be of no one record. Listeners to flushes hear of all.
"""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy.orm import Session

log = logging.getLogger("groundstate")
_EVENTS = ("before_commit", "after_commit")
_told: set[tuple[str, str]] = set()


def tell(session: Session) -> None:
    """Logs who listens in vain, and was not told of yet."""
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
