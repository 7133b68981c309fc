"""Ends a server that was started for a test when whoever started it is gone, however it went, and removes its folder.

Run as a process of its own: `python watchdog.py FOLDER STARTER_PID`, its stdin a pipe that the starter holds open and never writes to.
It never looks at processes that do not work inside FOLDER, and imports nothing of groundstate.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def processes_in(folder: Path) -> list[int]:
    """The ids of processes whose current folder is `folder` or below it: every process of a PostgreSQL works in its data folder."""
    if not (PROC / "self" / "cwd").exists():
        return _listed_in(folder)
    found = []
    for entry in PROC.iterdir():
        # A process that ended meanwhile, a zombie, or one of somebody else's: not one of ours.
        with suppress(OSError):
            if entry.name.isdecimal() and (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
    return found


def _listed_in(folder: Path) -> list[int]:
    """The same where there is no /proc (macOS): what the system's own lsof says."""
    said = subprocess.run(["lsof", "-a", "-d", "cwd", "-F", "pn"], capture_output=True, text=True, check=False).stdout  # noqa: S607
    found, pid = [], 0
    for line in said.splitlines():
        if line.startswith("p"):
            pid = int(line[1:])
        elif line.startswith("n") and Path(line[1:]).is_relative_to(folder):
            found.append(pid)
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
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # Not until they are reaped: where nobody reaps orphans a zombie stays, and it holds nothing.
        time.sleep(0.005)


def wait_for_the_end_of(parent: int) -> None:
    """Returns when stdin is closed, or `parent` is no more (a forked child of it may keep the pipe open)."""
    while os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], 1)
        if readable:
            return


def main() -> None:
    """Waits, then ends and removes what is in the folder."""
    folder = Path(sys.argv[1])
    wait_for_the_end_of(int(sys.argv[2]))
    kill_processes_in(folder)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
