"""A worker of the shop as a separate process; `python -m tools.torture.worker` starts one as a user would.

Its exit status says how it ended; its log goes to stderr.
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

from groundstate.values.errors import StoreRefusedError
from tools.torture import shop

log = logging.getLogger("tools.torture")
DRAIN = timedelta(seconds=1)
BY_ITSELF = 3  # the exit status of a worker that ended without being told to
NO_DATABASE = 4  # the exit status where the database was in trouble at the start
REFUSED = 5  # the exit status where the start was refused; the reason is in the log
ORPHAN = 6  # the exit status of a worker whose parent process has ended


def run(up: Callable[[], None] = lambda: None, *, after_restore: bool = False) -> int:
    """Run a worker until SIGTERM, or until the parent process has ended; return the exit status.

    up: called once the worker is started.
    after_restore: start as `groundstate run --after-restore` does.
    """
    parent, told = os.getppid(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        shop.app.start(after_restore=after_restore)
    except DBAPIError as error:
        log.warning("the worker could not start: %s", str(error.orig).strip())
        return NO_DATABASE
    except StoreRefusedError as refused:
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
    """Run one worker, with its pid in each line of the log."""
    logging.basicConfig(level=logging.WARNING, format=f"%(asctime)s {os.getpid()} %(levelname)s %(message)s", stream=sys.stderr)
    try:
        return run()
    except Exception:
        log.exception("the worker ended by an error")
        return BY_ITSELF


if __name__ == "__main__":
    sys.exit(main())
