"""The shop's processes as the judge's process controls them: they are forked, stopped, killed and reaped through their zygotes.

No other process is ever touched.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

BORN_WITHIN_S = 120  # seconds: a zygote must have forked a child by then
DIES_WITHIN_S = 120  # seconds: a killed process must be gone by then


@dataclass(frozen=True)
class Code:
    """The code that a process of the shop runs: a version, and a variant of it."""

    version: int = 1
    variant: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that select this code."""
        return {"TORTURE_VERSION": str(self.version), "TORTURE_VARIANT": self.variant}

    def __str__(self) -> str:
        return f"{self.version}, {self.variant}" if self.variant else str(self.version)


@dataclass(eq=False)
class ShopProcess:
    """One process of the shop, as the judge knows it."""

    pid: int
    code: Code
    what: str = "worker"  # or "restorer", a worker started with --after-restore; or "person"
    since: float = field(default_factory=time.monotonic)
    told: str = ""  # the last thing that the run did to it: "killed", "drained"
    told_at: float = 0.0
    up: bool = False  # whether it has reported that it works
    status: int | None = None
    wakes_at: float | None = None  # for a stopped process: the monotonic time at which it continues
    cold: subprocess.Popen[bytes] | None = None  # for a process that was started as a separate interpreter, not forked by a zygote


class Zygote:
    """One zygote process, which runs one code and forks the workers of that code."""

    def __init__(self, code: Code, environment: Mapping[str, str], log: Path, changed: threading.Condition) -> None:
        self.code = code
        self.children: dict[int, ShopProcess] = {}
        self.ended: list[ShopProcess] = []
        self.record_new_process: list[ShopProcess] = []
        self._changed = changed
        self._wanted: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.torture.zygote", str(log)],
            env=dict(environment) | code.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._read_answers, args=(self._process.stdout,), name=f"zygote {code}", daemon=True)
        self._listener.start()

    def fork(self, what: str) -> None:
        """Ask the zygote to fork a child."""
        with self._changed:
            self._wanted.append(what)
        self._send_command(what)

    def send_signal(self, child: ShopProcess, number: signal.Signals) -> None:
        """Let the zygote send a signal to one of its children."""
        self._send_command(f"signal {child.pid} {int(number)}")

    def close(self) -> None:
        """End the zygote; its children must have been killed before."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)
        self._listener.join(30)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _send_command(self, words: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(words.encode() + b"\n")
            self._process.stdin.flush()

    def _read_answers(self, said: IO[bytes]) -> None:
        for line in said:
            words = line.split()
            with self._changed:
                pid = int(words[1])
                if words[0] == b"born":
                    self.children[pid] = ShopProcess(pid, self.code, self._wanted.pop(0))
                    self.record_new_process.append(self.children[pid])
                elif words[0] == b"up":
                    self.children[pid].up = True
                else:
                    gone = self.children.pop(pid)
                    gone.status = int(words[2])
                    self.ended.append(gone)
                self._changed.notify_all()


class Fleet:
    """All processes of the shop; leaving the `with` block kills them.

    environment: the variables of forked processes.
    cold: the variables of processes that start as a separate interpreter, as a user's would.
    """

    def __init__(self, environment: Mapping[str, str], cold: Mapping[str, str], log: Path) -> None:
        self._environment, self._cold, self._log = dict(environment), dict(cold), log
        self._zygotes: dict[Code, Zygote] = {}
        self._colds: list[ShopProcess] = []
        self._cold_ended: list[ShopProcess] = []
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.all_processes():
            self._send_signal(one, signal.SIGKILL)
        self.wait_until(lambda: not self.all_processes(), DIES_WITHIN_S)
        for zygote in self._zygotes.values():
            zygote.close()

    # ---- actions on processes ------------------------------------------------------------------------------------------------------
    def fork(self, code: Code, what: str = "worker") -> ShopProcess:
        """Fork a process of this code; return once the process exists, which is long before it works."""
        zygote = self._zygotes.get(code)
        if zygote is None:
            zygote = self._zygotes[code] = Zygote(code, self._environment, self._log, self._changed)
        before = len(zygote.record_new_process)
        zygote.fork(what)
        if not self.wait_until(lambda: len(zygote.record_new_process) > before, BORN_WITHIN_S):
            raise TimeoutError("the zygote bears no child")
        return zygote.record_new_process[before]

    def start_cold(self, code: Code) -> ShopProcess:
        """Start a worker as a separate interpreter, as a user would."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tools.torture.worker"],
                env=self._cold | code.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        seen = ShopProcess(process.pid, code, cold=process)
        self._colds.append(seen)
        return seen

    def kill(self, one: ShopProcess) -> None:
        """Kill a process by SIGKILL; return once it is dead, so that it cannot write after what is read next."""
        one.told = "killed"
        self._send_signal(one, signal.SIGKILL)
        if not self.wait_until(lambda: one.status is not None, DIES_WITHIN_S):
            raise TimeoutError(f"{one} does not die")

    def suspend(self, one: ShopProcess, for_s: float) -> None:
        """Suspend a process by SIGSTOP for at least `for_s` seconds; the next `resume_due` after that continues it."""
        one.wakes_at = time.monotonic() + for_s
        self._send_signal(one, signal.SIGSTOP)

    def suspend_all(self) -> None:
        """Suspend all processes by SIGSTOP, and return once they stand still; `resume_due(all_of_them=True)` continues them."""
        for one in self.all_processes():
            self.suspend(one, 60)
        while not all(_is_stopped(one.pid) for one in self.all_processes()):
            time.sleep(0.005)  # no event reports it

    def resume_due(self, *, all_of_them: bool = False) -> list[ShopProcess]:
        """Continue the suspended processes whose time has come by SIGCONT, and return them."""
        due = [one for one in self.all_processes() if one.wakes_at is not None and (all_of_them or time.monotonic() >= one.wakes_at)]
        for one in due:
            one.wakes_at = None
            self._send_signal(one, signal.SIGCONT)
        return due

    def send_sigterm(self, one: ShopProcess) -> None:
        """Send SIGTERM to a process, which must then end by itself soon."""
        one.told, one.told_at = "drained", time.monotonic()
        self._send_signal(one, signal.SIGTERM)

    # ---- observation ---------------------------------------------------------------------------------------------------------------
    def all_processes(self) -> list[ShopProcess]:
        """Return the processes that have not ended."""
        self._reap()
        with self._changed:
            return [*self._colds, *(child for zygote in self._zygotes.values() for child in zygote.children.values())]

    def living_workers(self) -> list[ShopProcess]:
        """Return the workers that the run has neither killed nor told to end."""
        return [one for one in self.all_processes() if one.what != "person" and not one.told]

    def take_ended(self) -> list[ShopProcess]:
        """Return the processes that ended since the last call."""
        self._reap()
        with self._changed:
            gone, self._cold_ended = self._cold_ended, []
            for zygote in self._zygotes.values():
                gone += zygote.ended
                zygote.ended = []
        return gone

    def wait_until(self, until: Callable[[], bool], within_s: float) -> bool:
        """Wait until `until()` holds, and return whether it did; it is checked when a process changes, and 10 times a second with cold
        workers.
        """
        end = time.monotonic() + within_s
        with self._changed:
            while True:
                self._reap()
                if until():
                    return True
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.1 if self._colds else left))

    def _reap(self) -> None:
        with self._changed:
            for one in [one for one in self._colds if one.cold is not None and one.cold.poll() is not None]:
                one.status = one.cold.returncode if one.cold is not None else None
                self._colds.remove(one)
                self._cold_ended.append(one)

    def _send_signal(self, one: ShopProcess, number: signal.Signals) -> None:
        if one.cold is not None:
            with suppress(ProcessLookupError):
                if one.cold.poll() is None:
                    os.kill(one.pid, number)
        else:
            self._zygotes[one.code].send_signal(one, number)


def _is_stopped(pid: int) -> bool:
    """Return whether the system reports the process as stopped; where it has no /proc, the stop is assumed to be immediate."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZX"
    except OSError:
        return True
