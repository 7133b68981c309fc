"""Handles by which the judge's process starts and commands the provider process and the proxy process."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import IO, Any, Self

from tools.torture.shop import decode_answer, encode_request

OPENS_WITHIN_S = 60  # seconds: the provider must have opened its socket by then


class ProviderProcess:
    """The process of the external provider, started and ended by a `with` block."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.gate, self.ledger, self.requests = folder / "provider.sock", folder / "ledger.jsonl", folder / "requests.jsonl"
        self._seed = seed

    def __enter__(self) -> Self:
        files = (str(self.gate), str(self.ledger), str(self.requests))
        command = [sys.executable, "-m", "tools.torture.provider", *files, str(self._seed)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        waited = threading.Event()
        for _ in range(OPENS_WITHIN_S * 20):
            if self.gate.exists():
                return self
            waited.wait(0.05)
        raise TimeoutError("the provider does not open its door")

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)

    def query_figures(self) -> dict[str, Any]:
        """Ask the provider for its own counts of what it did."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(30)
            line.connect(str(self.gate))
            line.sendall(encode_request({"ask": "figures"}))
            with line.makefile("rb") as answers:
                said: dict[str, Any] = decode_answer(answers.readline())
        return said


class ProxyProcess:
    """The process of the proxy before PostgreSQL, started and ended by a `with` block."""

    def __init__(self, port: int, seed: int) -> None:
        self._to, self._seed = port, seed
        self.done: Counter[str] = Counter()  # how many cuts and stalls the proxy carried out

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tools.torture.proxy", str(self._to), str(self._seed)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        said = self._process.stdout
        if said is None:
            raise RuntimeError("the proxy says nothing")
        self.port = int(said.readline())
        self._listener = threading.Thread(target=self._read_answers, args=(said,), name="proxy", daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)
        self._listener.join(30)

    def cut_connections(self, count: int) -> None:
        """Let the proxy cut some connections, each after a number of bytes that it draws."""
        self._send_command(f"cut {count}")

    def stall_connections(self, count: int, seconds: float) -> None:
        """Let the proxy stall some connections for these seconds, each after a number of bytes that it draws."""
        self._send_command(f"stall {count} {seconds:.2f}")

    def cancel_faults(self) -> None:
        """Cancel cuts and stalls that have not happened yet."""
        self._send_command("calm")

    def _send_command(self, words: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(words.encode() + b"\n")
            self._process.stdin.flush()

    def _read_answers(self, said: IO[bytes]) -> None:
        for line in said:
            self.done[line.decode().strip()] += 1
