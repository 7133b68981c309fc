"""Ends a server that was started for a test once the process that started it is gone, however it ended, and removes its folder.

It runs as a separate process, `python watchdog.py FOLDER STARTER_PID`; its stdin is a pipe that the starter holds open and never writes to.
It touches only processes that work inside FOLDER, and imports nothing of groundstate.
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
    """Return the ids of processes whose current folder is `folder` or below it; every PostgreSQL process works in its data folder."""
    if not (PROC / "self" / "cwd").exists():
        return _listed_in(folder)
    found = []
    for entry in PROC.iterdir():
        # The process has ended meanwhile, is a zombie, or belongs to another user: it is none of the server's.
        with suppress(OSError):
            if entry.name.isdecimal() and (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
    return found


def _listed_in(folder: Path) -> list[int]:
    """Return the ids of processes that work in `folder`, by lsof, where there is no /proc (macOS)."""
    said = subprocess.run(["lsof", "-a", "-d", "cwd", "-F", "pn"], capture_output=True, text=True, check=False).stdout  # noqa: S607
    found, pid = [], 0
    for line in said.splitlines():
        if line.startswith("p"):
            pid = int(line[1:])
        elif line.startswith("n") and Path(line[1:]).is_relative_to(folder):
            found.append(pid)
    return found


def kill_processes_in(folder: Path, *, within_s: float = 30) -> None:
    """Send SIGKILL to all processes in the folder until none is left, since one may start another meanwhile.

    Raises:
        TimeoutError: a process is left after `within_s` seconds.
    """
    deadline = time.monotonic() + within_s
    while found := processes_in(folder):
        if time.monotonic() > deadline:
            message = f"still working in {folder} {within_s} s after SIGKILL: {found}"
            raise TimeoutError(message)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # It does not wait until they are reaped: where no process reaps orphans a zombie stays, but a zombie holds no resources.
        time.sleep(0.005)


def wait_for_parent_end(parent: int) -> None:
    """Return when stdin is closed or `parent` has ended; a forked child of the parent may keep the pipe open."""
    while os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], 1)
        if readable:
            return


def main() -> None:
    """Wait for the end of the starter, then kill the processes in the folder and remove it."""
    folder = Path(sys.argv[1])
    wait_for_parent_end(int(sys.argv[2]))
    kill_processes_in(folder)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
