"""Ends a server of the tests when whoever started it is gone, however it went, and removes its folder.

Run as a process of its own: `python watchdog.py FOLDER STARTER_PID`, its stdin a pipe that the starter holds open and never writes to.
It never looks at processes that do not work inside FOLDER.
"""

from __future__ import annotations

import os
import select
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil


def processes_in(folder: Path) -> list[psutil.Process]:
    """The processes whose current folder is `folder` or below it: every process of a PostgreSQL works in its data folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
    return found


def kill_processes_in(folder: Path, *, within_s: float = 30) -> None:
    """SIGKILL to all of them, until none is left: one may start another while we look.

    Raises:
        TimeoutError: one outlived that.
    """
    deadline = time.monotonic() + within_s
    while found := processes_in(folder):
        if time.monotonic() > deadline:
            message = f"still working in {folder} {within_s} s after SIGKILL: {found}"
            raise TimeoutError(message)
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        # Not until they are reaped: where nobody reaps orphans a zombie stays, and it holds nothing.
        time.sleep(0.005)


def wait_for_the_end_of(parent: int) -> None:
    """Returns when stdin is closed, or `parent` is no more (a forked child of it may keep the pipe open)."""
    while os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], 1)
        if readable:
            return


def main() -> None:
    folder = Path(sys.argv[1])
    wait_for_the_end_of(int(sys.argv[2]))
    kill_processes_in(folder)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
