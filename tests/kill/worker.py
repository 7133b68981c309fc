"""A worker of the shop as a process of its own, and the nursery that forks workers, so that a thousand of them need not import anew.

`python -m tests.kill.worker` runs one. With `--nursery` it takes commands on stdin and tells on stdout what became of its children: a
signal goes to a child through its parent, so that a number can never have become another process's.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from importlib import import_module

from tests.kill import shop

log = logging.getLogger("tests.kill")
DRAIN = timedelta(seconds=1)
BY_ITSELF = 3  # the exit status of a worker that ended though nobody told it to
LOCKED_OUT = 4  # and of one that could not start, since a stopped process held SQLite's one write lock all the while


def run() -> int:
    """Carries out until SIGTERM, or until the parent is gone. Returns the exit status."""
    parent, told = os.getppid(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    shop.app.start()
    if shop.app.refused:
        log.error("not started: %s", shop.app.refused)
        return BY_ITSELF
    while not told.wait(0.5):
        if os.getppid() != parent:
            os._exit(1)
        if any(not worker._thread.is_alive() for worker in shop.app._workers or ()):
            return BY_ITSELF
    shop.app.stop(DRAIN)
    return 0


def child(log_file: str) -> None:
    """The forked worker: what it says goes to its log."""
    said = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.close(0)
    logging.basicConfig(level=logging.WARNING, format=f"%(asctime)s {os.getpid()} %(levelname)s %(message)s")
    status = BY_ITSELF
    try:
        status = run()
    except Exception as error:
        if "database is locked" in str(error):
            status = LOCKED_OUT
            log.warning("the worker could not start: the database is locked")
        else:
            log.exception("the worker could not start")
    os._exit(status)


def nursery() -> None:
    """Commands: `born LOG` and `signal PID NUMBER`. Answers: `born PID`, and `ended PID STATUS` as waitpid tells it."""
    for driver in ("sqlalchemy.dialects.postgresql.psycopg", "groundstate.store.postgres", "groundstate.store.session_locks"):
        import_module(driver)  # what a start imports late, if it is to live on PostgreSQL
    rest, children = b"", set[int]()
    while True:
        readable, _, _ = select.select([0], [], [], 0.02)
        if readable:
            heard = os.read(0, 65536)
            if not heard:
                return
            *lines, rest = (rest + heard).split(b"\n")
            for line in lines:
                _obey(line.decode().split(" ", 2), children)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                children.discard(ended[0])
                os.write(1, b"ended %d %d\n" % (ended[0], os.waitstatus_to_exitcode(ended[1])))


def _obey(words: list[str], children: set[int]) -> None:
    if words[0] == "signal":
        if int(words[1]) in children:  # not waited for yet: the number is still its own
            os.kill(int(words[1]), int(words[2]))
        return
    born = os.fork()
    if born == 0:
        child(words[1])
    children.add(born)
    os.write(1, b"born %d\n" % born)


if __name__ == "__main__":
    if sys.argv[1:] == ["--nursery"]:
        nursery()
    else:
        logging.basicConfig(level=logging.INFO)
        sys.exit(run())
