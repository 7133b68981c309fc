"""Servers of AMQP for tests: the tests' own small broker, or by hand, with GROUNDSTATE_RABBITMQ=1, a real RabbitMQ that is installed.

The real one has a node name, ports and a folder of its own, and never meets the machine's.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tools.servers.brokers import START_WITHIN_S, Broker, _find_free_port
from tools.servers.postgres import ServerError

PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
BY_HAND = bool(os.environ.get("GROUNDSTATE_RABBITMQ"))


class AmqpServer(Broker):
    """The tests' own. management: the port of its HTTP API."""

    def __init__(self) -> None:
        super().__init__()
        self.management = _find_free_port()

    @property
    def url(self) -> str:
        """Where it is."""
        return self.url_of("guest")

    def url_of(self, user: str, management: int | None = None) -> str:
        """As a user, whose password is his name."""
        return f"amqp://{user}:{user}@127.0.0.1:{self.port}/%2F?management=http://127.0.0.1:{management or self.management}"

    def command(self) -> Sequence[str]:
        """The broker beside this file."""
        return [sys.executable, str(Path(__file__).with_name("amqp_broker.py")), str(self.port), str(self.management)]


class RabbitServer(AmqpServer):
    """RabbitMQ itself."""

    def start(self) -> None:
        """Returns once AMQP and the management API take connections. The first time it adds `worker`, who may not ask the latter."""
        folder, first = self.folder, not (self.folder / "plugins").exists()
        (folder / "plugins").write_text("[rabbitmq_management].\n")
        (folder / "rabbit.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\nmanagement.tcp.port = {self.management}\n")
        self._settings = {
            **os.environ,
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"groundstate{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(_find_free_port()),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbit"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
        }
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(PROGRAM)], cwd=folder, env=self._settings, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + 2 * START_WITHIN_S
        while not all(_takes(port) for port in (self.port, self.management)):
            if self._process.poll() is not None or time.monotonic() > end:
                raise ServerError((folder / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.05)
        if first:
            self._control("add_user", "worker", "worker")
            self._control("set_permissions", "worker", ".*", ".*", ".*")

    def _control(self, *words: str) -> None:
        command = [str(PROGRAM.with_name("rabbitmqctl")), *words]
        subprocess.run(command, cwd=self.folder, env=self._settings, check=True, capture_output=True)

    def kill(self) -> None:
        """SIGKILL to all of it."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(START_WITHIN_S)
        self._process = None


def _takes(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def made() -> AmqpServer:
    """The one that is asked for."""
    return RabbitServer() if BY_HAND else AmqpServer()
