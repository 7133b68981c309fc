"""The processes beside the workers, as the judge's process holds them: the provider, the proxy, and the databases' own. Decides nothing."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import IO, Any, Self

from groundstate.testing.torture.shop import sent, understood

OPENS_WITHIN_S = 60


class ProviderProcess:
    """The outside, in a `with`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.door, self.ledger, self.requests = folder / "provider.sock", folder / "ledger.jsonl", folder / "requests.jsonl"
        self._seed = seed

    def __enter__(self) -> Self:
        files = (str(self.door), str(self.ledger), str(self.requests))
        command = [sys.executable, "-m", "groundstate.testing.torture.provider", *files, str(self._seed)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        waited = threading.Event()
        for _ in range(OPENS_WITHIN_S * 20):
            if self.door.exists():
                return self
            waited.wait(0.05)
        raise TimeoutError("the provider does not open its door")

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)

    def figures(self) -> dict[str, Any]:
        """What it did, by its own count."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(30)
            line.connect(str(self.door))
            line.sendall(sent({"ask": "figures"}))
            with line.makefile("rb") as answers:
                said: dict[str, Any] = understood(answers.readline())
        return said


class ProxyProcess:
    """The proxy before PostgreSQL, in a `with`."""

    def __init__(self, port: int, seed: int) -> None:
        self._to, self._seed = port, seed
        self.done: Counter[str] = Counter()  # cuts and stalls that came to pass

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "groundstate.testing.torture.proxy", str(self._to), str(self._seed)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        said = self._process.stdout
        if said is None:
            raise RuntimeError("the proxy says nothing")
        self.port = int(said.readline())
        self._listener = threading.Thread(target=self._listen, args=(said,), name="proxy", daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)
        self._listener.join(30)

    def cut(self, count: int) -> None:
        """Cuts some connections, after so many bytes."""
        self._command(f"cut {count}")

    def stall(self, count: int, seconds: float) -> None:
        """Stalls some connections, after so many bytes."""
        self._command(f"stall {count} {seconds:.2f}")

    def calm(self) -> None:
        """What was to be cut or stalled, and was not yet, is not."""
        self._command("calm")

    def _command(self, words: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(words.encode() + b"\n")
            self._process.stdin.flush()

    def _listen(self, said: IO[bytes]) -> None:
        for line in said:
            self.done[line.decode().strip()] += 1
