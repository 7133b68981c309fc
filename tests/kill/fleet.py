"""Workers as the judge's process sees them: born, stopped, killed and reaped by their nursery, and never any process but these."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
BORN_WITHIN_S = 30


@dataclass
class WorkerSeen:
    """One worker process, as the judge knows it."""

    pid: int
    since: float
    told: str = ""  # what we did to it last: "killed", "stopped", "drained"
    status: int | None = None
    wakes_at: float | None = None  # a stopped one: when it is let go on
    told_at: float = 0.0


@dataclass
class Fleet:
    """The workers, in a `with`: on the way out all of them are killed."""

    environment: Mapping[str, str]
    log: Path
    workers: dict[int, WorkerSeen] = field(default_factory=dict)  # the living, and those told to end that have not ended yet
    ended: list[WorkerSeen] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._changed = threading.Condition()
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "tests.kill.worker", "--nursery"],
            cwd=ROOT,
            env=dict(self.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._born: list[int] = []
        self._listener = threading.Thread(target=self._listen, name="fleet", daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in list(self.workers.values()):
            self._send(worker, signal.SIGKILL)
        self.wait(lambda: not self.workers, 30)
        if self._nursery.stdin is not None:
            self._nursery.stdin.close()
        self._nursery.wait(30)
        self._listener.join(30)
        if self._nursery.stdout is not None:
            self._nursery.stdout.close()

    # ---- what is done to workers ---------------------------------------------------------------------------------------------------
    def bear(self) -> WorkerSeen:
        """Starts a worker; returns once its process is there, long before it carries out."""
        before = len(self._born)
        self._command(f"born {self.log}")
        if not self.wait(lambda: len(self._born) > before, BORN_WITHIN_S):
            raise TimeoutError("the nursery bears no worker")
        return self.workers[self._born[-1]]

    def kill(self, worker: WorkerSeen) -> None:
        """SIGKILL; returns once it is dead, so that what is read then was not written by it later."""
        worker.told = "killed"
        self._send(worker, signal.SIGKILL)
        if not self.wait(lambda: worker.status is not None, 30):
            raise TimeoutError(f"{worker} does not die")

    def stop(self, worker: WorkerSeen, for_s: float) -> None:
        """SIGSTOP, until `wake_due` is called later than that."""
        worker.wakes_at = time.monotonic() + for_s
        self._send(worker, signal.SIGSTOP)

    def wake_due(self, *, all_of_them: bool = False) -> None:
        """SIGCONT to those whose time has come."""
        for worker in list(self.workers.values()):
            if worker.wakes_at is not None and (all_of_them or time.monotonic() >= worker.wakes_at):
                worker.wakes_at = None
                self._send(worker, signal.SIGCONT)

    def drain(self, worker: WorkerSeen) -> None:
        """SIGTERM: it is to end by itself, soon."""
        worker.told, worker.told_at = "drained", time.monotonic()
        self._send(worker, signal.SIGTERM)

    # ---- what is seen --------------------------------------------------------------------------------------------------------------
    def living(self) -> list[WorkerSeen]:
        """Those that nobody told to end."""
        return [worker for worker in list(self.workers.values()) if not worker.told]

    def wait(self, until: Callable[[], bool], within_s: float) -> bool:
        """Waits for it; woken whenever something became of a worker. Returns whether it came true."""
        with self._changed:
            return self._changed.wait_for(until, within_s)

    def _send(self, worker: WorkerSeen, number: signal.Signals) -> None:
        self._command(f"signal {worker.pid} {int(number)}")

    def _command(self, words: str) -> None:
        if self._nursery.stdin is None:
            raise RuntimeError("the nursery is closed")
        self._nursery.stdin.write(words.encode() + b"\n")
        self._nursery.stdin.flush()

    def _listen(self) -> None:
        if self._nursery.stdout is None:
            return
        for line in self._nursery.stdout:
            words = line.split()
            with self._changed:
                pid = int(words[1])
                if words[0] == b"born":
                    self.workers[pid] = WorkerSeen(pid, time.monotonic())
                    self._born.append(pid)
                else:
                    gone = self.workers.pop(pid)
                    gone.status = int(words[2])
                    self.ended.append(gone)
                self._changed.notify_all()
