"""A worker of the shop as a process of its own. `python -m groundstate.testing.torture.worker` is one as a user would start it.

Its exit status tells how it ended; what it says goes to stderr.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy.exc import DBAPIError

from groundstate.testing.torture import shop
from groundstate.values.errors import StoreRefused

log = logging.getLogger("groundstate.testing.torture")
DRAIN = timedelta(seconds=1)
BY_ITSELF = 3  # the exit status of one that ended though nobody told it to
NO_DATABASE = 4  # of one that could not start, since the database was in trouble just then
REFUSED = 5  # of one whose start was refused, with the reason in its log
ORPHAN = 6  # of one whose parent is gone


def run(up: Callable[[], None] = lambda: None, *, after_restore: bool = False) -> int:
    """Carries out until SIGTERM, or until the parent is gone. Returns the exit status.

    up: called once it carries out. after_restore: as `groundstate run --after-restore`.
    """
    parent, told = os.getppid(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        shop.app.start(after_restore=after_restore)
    except DBAPIError as error:
        log.warning("the worker could not start: %s", str(error.orig).strip())
        return NO_DATABASE
    except StoreRefused as refused:
        log.warning("the worker was refused: %s", refused)
        return REFUSED
    up()
    while not told.wait(0.5):
        if os.getppid() != parent:
            os._exit(ORPHAN)
        if shop.app.failure is not None:
            return BY_ITSELF
    shop.app.stop(DRAIN)
    return 0


def main() -> int:
    """Runs one, and says what it says with its number."""
    logging.basicConfig(level=logging.WARNING, format=f"%(asctime)s {os.getpid()} %(levelname)s %(message)s", stream=sys.stderr)
    try:
        return run()
    except Exception:
        log.exception("the worker ended by an error")
        return BY_ITSELF


if __name__ == "__main__":
    sys.exit(main())
