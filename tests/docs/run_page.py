"""Runs one page's blocks in order, in a process and a folder of their own: `python -m tests.docs.run_page PAGE`.

Python blocks share a namespace. Marks after the language: `fresh` begins a new namespace; `refused` must raise a DeclarationError;
`file=NAME` is appended to that file instead, for later blocks to import. A console block marked `run` is run: a command that ends in `&`
goes on until the page ends, and `# exit N` says with what it must end. At the end each App that the page made is set up and carries out.
"""

from __future__ import annotations

import linecache
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import warnings
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

from groundstate import App, DeclarationError, DeclarationWarning
from groundstate.engine.operate.state_circles import StateSteps
from tests.docs.blocks import SHELLS, Block, blocks_of, commands_of
from tests.patience import HANG, HANG_S, LONG_RUN_S

PORTS = ("8001", "1025")  # those that the pages name; each becomes one that is free
PROGRAMS = {
    "groundstate": [sys.executable, "-m", "groundstate.cli.main"],
    "python": [sys.executable],
    "uvicorn": [sys.executable, "-m", "uvicorn"],
}


class Page:
    """One page that is being run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.namespace: dict[str, Any] = {}
        self.apps: list[App] = []
        self.running: list[subprocess.Popen[bytes]] = []
        self.ports = {port: _free_port() for port in PORTS}

    def run(self) -> None:
        """Runs all blocks, then the apps. Raises what a block raises."""
        try:
            for block in blocks_of(self.path):
                self._block(block)
            self._keep_apps()
            for app in self.apps:
                nothing_comes_again(app)
                app.init(tables=True, accept=True)
                app.run_until_idle(HANG)
        finally:
            for process in self.running:
                process.send_signal(signal.SIGTERM)
                process.wait(HANG_S)

    def _block(self, block: Block) -> None:
        if block.language in SHELLS and "run" in block.marks:
            for command in commands_of(block):
                self._command(command, f"{self.path.name}:{block.line}")
        elif block.language == "python" and block.file:
            with Path(block.file).open("a") as file:
                file.write(self._own_ports(block.code))
        elif block.language == "python":
            self._python(block)

    def _python(self, block: Block) -> None:
        if "fresh" in block.marks or not self.namespace:
            self._keep_apps()
            module = sys.modules[f"page_{block.line}"] = ModuleType(f"page_{block.line}")  # where annotations look names up
            self.namespace = module.__dict__
        name = f"{self.path}:{block.line}"
        code = "\n" * (block.line - 1) + block.code
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        compiled = compile(code, name, "exec")
        if "refused" in block.marks:
            try:
                exec(compiled, self.namespace)  # the pages are ours
            except (DeclarationError, DeclarationWarning):
                return
            raise AssertionError(f"{name}: the page says that this is refused, and it is not")
        exec(compiled, self.namespace)

    def _keep_apps(self) -> None:
        self.apps += [value for value in self.namespace.values() if isinstance(value, App) and value not in self.apps]

    def _own_ports(self, text: str) -> str:
        for documented, free in self.ports.items():
            text = re.sub(rf"\b{documented}\b", free, text)
        return text

    def _command(self, command: str, where: str) -> None:
        words = shlex.split(self._own_ports(command), comments=True)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            os.environ[name] = value
            return
        background = words[-1] == "&"
        arguments = [*PROGRAMS.get(words[0], [words[0]]), *(words[1:-1] if background else words[1:])]
        if background:
            self.running.append(subprocess.Popen(arguments))
            _until_served(words, self.running[-1])
            return
        expected = re.search(r"# exit (\d+)", command)
        done = subprocess.run(arguments, check=False, timeout=LONG_RUN_S)
        assert done.returncode == int(expected[1] if expected else 0), f"{where}: {command} ended with {done.returncode}"


def nothing_comes_again(app: App) -> None:
    """What `check` tells of states that come again, and of rings, is told of no app that is right."""
    steps = StateSteps(list(app.reactions.values()))
    for spec in app.reactions.values():
        way = None if spec.call is None or spec.occurrence else steps.find_way_back(spec)
        assert way is None, f"{app.name}: {spec.name} comes again by {way}"
    rings = list(steps.find_endless_cycles())
    assert not rings, f"{app.name}: {rings} go round for ever"


def _free_port() -> str:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _until_served(words: list[str], process: subprocess.Popen[bytes]) -> None:
    """Waits until a server that was told its port on the command line answers there."""
    port = next((int(found[0]) for word in words if (found := re.findall(r"(?:^|:)(\d{4,5})$", word))), None)
    deadline = time.monotonic() + HANG_S
    while port is not None:
        assert process.poll() is None, f"{words} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{words} does not answer"
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


if __name__ == "__main__":
    warnings.simplefilter("error", DeclarationWarning)
    sys.path.insert(0, "")
    os.environ["PYTHONPATH"] = os.pathsep.join(["", os.environ.get("PYTHONPATH", "")])
    Page(Path(sys.argv[1])).run()
