"""The demo's processes. Each has a process group of its own. None outlives the director (the process that started it), even if the director
is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_PR_SET_PDEATHSIG = 1  # number of an option of Linux's prctl: it sets the signal that a process gets when its parent dies


def _hook_that_binds_child_to_parent(parent: int) -> Callable[[], None] | None:
    """Return a `preexec_fn` for Popen: it tells the kernel of Linux to kill the child when its parent dies. On other systems return
    None.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def request_kill_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the call of prctl
            os._exit(1)

    return request_kill_with_parent


class ListeningSockets:
    """Listening sockets on loopback, which the director creates and the servers inherit. So the director knows each port before it starts a
    server, and no other program can take the port.
    """

    def __init__(self, *names: str) -> None:
        self._sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in names}
        self.ports: dict[str, int] = {name: gate.getsockname()[1] for name, gate in self._sockets.items()}

    def fd(self, name: str) -> int:
        """Return the file descriptor of the socket of the server with this name."""
        return self._sockets[name].fileno()

    def close(self, name: str) -> None:
        """Close the director's copy of a server's socket. Otherwise clients of a dead server would wait instead of being refused."""
        self._sockets.pop(name).close()


class Processes:
    """All child processes of the director. At the end of the `with` block, children that still run are killed.

    The kernel kills a child when the thread that started it ends, so one thread that outlives all children must start them.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._environment = {**os.environ, **environment}
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, arguments: Sequence[str], *, fd: int | None = None) -> subprocess.Popen[bytes]:
        """Start Python with these arguments, and append its output to logs/NAME.log. fd: a file descriptor that the child inherits."""
        with (self._logs / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=() if fd is None else (fd,),
                start_new_session=True,  # so Ctrl-C reaches only the director, which then ends its children
                preexec_fn=_hook_that_binds_child_to_parent(os.getpid()),  # noqa: PLW1509  # safe, since the director has only one thread then
            )
        self._children.append(child)
        return child

    def run_to_end(self, arguments: Sequence[str], *, columns: int = 100) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments until it ends. Return the result, with stdout and stderr in one text.

        columns: the width of the terminal that the program assumes.
        """
        return subprocess.run(
            [sys.executable, *arguments],
            env={**self._environment, "COLUMNS": str(columns)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
            preexec_fn=_hook_that_binds_child_to_parent(os.getpid()),
        )

    def last_log_lines(self, name: str) -> str:
        """Return the last 15 lines of the output of the process with this name, as one text."""
        path = self._logs / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-15:]) if path.exists() else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
        for child in self._children:
            child.wait()


def kill_and_reap(child: subprocess.Popen[bytes]) -> None:
    """Kill a child by SIGKILL and wait for its end. The child cannot handle the signal, and flushes nothing."""
    child.kill()
    child.wait()
