"""The demo's processes: each has a process group of its own, and none outlives the director, however the director ends."""

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

_PR_SET_PDEATHSIG = 1  # option number of Linux's prctl: the signal that a child gets when its parent dies


def _dies_with(parent: int) -> Callable[[], None] | None:
    """Return what a child must run before its program on Linux, so that the kernel kills it when its parent dies; elsewhere None."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def before_it_runs() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the prctl call
            os._exit(1)

    return before_it_runs


class Doors:
    """Listening sockets on loopback, created by the director and inherited by the servers, so that their ports are known and free."""

    def __init__(self, *names: str) -> None:
        self._sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in names}
        self.ports: dict[str, int] = {name: gate.getsockname()[1] for name, gate in self._sockets.items()}

    def fd(self, name: str) -> int:
        """Return the file descriptor of a server's socket."""
        return self._sockets[name].fileno()

    def close(self, name: str) -> None:
        """Close the director's copy of a server's socket, so that clients of a dead server are refused and do not wait."""
        self._sockets.pop(name).close()


class Processes:
    """All child processes of the director. Leaving the `with` block kills those that still run.

    Start them from one thread that runs for as long as they must run: the kernel kills a child when the thread that started it ends.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._environment = {**os.environ, **environment}
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, arguments: Sequence[str], *, fd: int | None = None) -> subprocess.Popen[bytes]:
        """Start `python ...arguments`, and append its output to logs/NAME.log."""
        with (self._logs / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=() if fd is None else (fd,),
                start_new_session=True,  # Ctrl-C reaches only the director, which ends the others in order
                preexec_fn=_dies_with(os.getpid()),  # noqa: PLW1509  # the director has one thread when it starts children
            )
        self._children.append(child)
        return child

    def ask(self, arguments: Sequence[str], *, columns: int = 100) -> subprocess.CompletedProcess[str]:
        """Run `python ...arguments` to its end and return the result, with stdout and stderr together."""
        return subprocess.run(
            [sys.executable, *arguments],
            env={**self._environment, "COLUMNS": str(columns)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
            preexec_fn=_dies_with(os.getpid()),
        )

    def log(self, name: str) -> str:
        """Return the last 15 lines of a process's output."""
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


def kill(child: subprocess.Popen[bytes]) -> None:
    """Kill a child by SIGKILL and reap it: none of its handlers run, and it flushes nothing."""
    child.kill()
    child.wait()
