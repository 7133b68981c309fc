"""The demo's processes: each in a group of its own, none outlives the director, whatever way that one ends."""

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

_PR_SET_PDEATHSIG = 1


def _dies_with(parent: int) -> Callable[[], None] | None:
    """What a child does before it runs, on Linux: asks the kernel to be killed when its parent dies."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def before_it_runs() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return before_it_runs


class Doors:
    """Listening sockets on loopback, made by the director and inherited by the servers, so that ports are known and never raced for."""

    def __init__(self, *names: str) -> None:
        self._sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in names}
        self.ports: dict[str, int] = {name: door.getsockname()[1] for name, door in self._sockets.items()}

    def fd(self, name: str) -> int:
        """The descriptor to hand to a server."""
        return self._sockets[name].fileno()

    def close(self, name: str) -> None:
        """Leaves the socket to its server alone: when that dies, its clients are refused and do not wait."""
        self._sockets.pop(name).close()


class Processes:
    """All children of the director. On the way out of the `with`, those still there are killed, whatever happened.

    Start them from one thread that lives as long as they shall: the kernel's promise is about the thread that started them.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._environment = {**os.environ, **environment}
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, arguments: Sequence[str], *, fd: int | None = None) -> subprocess.Popen[bytes]:
        """Starts `python ...arguments`; what it says is added to logs/NAME.log."""
        with (self._logs / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=() if fd is None else (fd,),
                start_new_session=True,  # Ctrl-C goes to the director alone, which ends the rest in order
                preexec_fn=_dies_with(os.getpid()),  # noqa: PLW1509 - the director has one thread when it starts children
            )
        self._children.append(child)
        return child

    def ask(self, arguments: Sequence[str], *, columns: int = 100) -> subprocess.CompletedProcess[str]:
        """Runs `python ...arguments` to its end and returns what it said, out and err together."""
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
        """The last lines that a process said."""
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
    """SIGKILL: no handler runs, nothing is flushed, nothing is said goodbye to."""
    child.kill()
    child.wait()
