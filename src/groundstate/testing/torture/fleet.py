"""Workers as the judge's process sees them: born, stopped, killed and reaped by their zygotes, and never any process but these."""

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

BORN_WITHIN_S = 120
DIES_WITHIN_S = 120


@dataclass(frozen=True)
class Code:
    """Which of the shop's codes a process runs: a version, and a variant of it."""

    version: int = 1
    variant: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """What tells a process."""
        return {"TORTURE_VERSION": str(self.version), "TORTURE_VARIANT": self.variant}

    def __str__(self) -> str:
        return f"{self.version}, {self.variant}" if self.variant else str(self.version)


@dataclass(eq=False)
class Seen:
    """One process of the shop, as the judge knows it."""

    pid: int
    code: Code
    what: str = "worker"  # or "restorer", a worker that is told of a backup put back; or "person"
    since: float = field(default_factory=time.monotonic)
    told: str = ""  # what we did to it last: "killed", "drained"
    told_at: float = 0.0
    up: bool = False  # whether it said that it carries out
    status: int | None = None
    wakes_at: float | None = None  # a stopped one: when it is let go on
    cold: subprocess.Popen[bytes] | None = None  # a whole interpreter of its own, and no zygote's child


class Zygote:
    """One zygote: one code, and the children that were forked of it."""

    def __init__(self, code: Code, environment: Mapping[str, str], log: Path, changed: threading.Condition) -> None:
        self.code = code
        self.children: dict[int, Seen] = {}
        self.ended: list[Seen] = []
        self.born: list[Seen] = []
        self._changed = changed
        self._wanted: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "groundstate.testing.torture.zygote", str(log)],
            env=dict(environment) | code.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), name=f"zygote {code}", daemon=True)
        self._listener.start()

    def bear(self, what: str) -> None:
        """Asks for a child."""
        with self._changed:
            self._wanted.append(what)
        self._command(what)

    def send(self, child: Seen, number: signal.Signals) -> None:
        """A signal to a child, by its parent."""
        self._command(f"signal {child.pid} {int(number)}")

    def close(self) -> None:
        """Ends it; its children were killed before."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)
        self._listener.join(30)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _command(self, words: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(words.encode() + b"\n")
            self._process.stdin.flush()

    def _listen(self, said: IO[bytes]) -> None:
        for line in said:
            words = line.split()
            with self._changed:
                pid = int(words[1])
                if words[0] == b"born":
                    self.children[pid] = Seen(pid, self.code, self._wanted.pop(0))
                    self.born.append(self.children[pid])
                elif words[0] == b"up":
                    self.children[pid].up = True
                else:
                    gone = self.children.pop(pid)
                    gone.status = int(words[2])
                    self.ended.append(gone)
                self._changed.notify_all()


class Fleet:
    """All processes of the shop, in a `with`: on the way out all of them are killed.

    environment: of those that are forked, by the way that their zygote was given; `cold`: of those that start as a user's would.
    """

    def __init__(self, environment: Mapping[str, str], cold: Mapping[str, str], log: Path) -> None:
        self._environment, self._cold, self._log = dict(environment), dict(cold), log
        self._zygotes: dict[Code, Zygote] = {}
        self._colds: list[Seen] = []
        self._cold_ended: list[Seen] = []
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.all():
            self._send(one, signal.SIGKILL)
        self.wait(lambda: not self.all(), DIES_WITHIN_S)
        for zygote in self._zygotes.values():
            zygote.close()

    # ---- what is done to processes -------------------------------------------------------------------------------------------------
    def bear(self, code: Code, what: str = "worker") -> Seen:
        """Forks one; returns once its process is there, long before it carries out."""
        zygote = self._zygotes.get(code)
        if zygote is None:
            zygote = self._zygotes[code] = Zygote(code, self._environment, self._log, self._changed)
        before = len(zygote.born)
        zygote.bear(what)
        if not self.wait(lambda: len(zygote.born) > before, BORN_WITHIN_S):
            raise TimeoutError("the zygote bears no child")
        return zygote.born[before]

    def bear_cold(self, code: Code) -> Seen:
        """A whole interpreter, as a user would start it."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "groundstate.testing.torture.worker"],
                env=self._cold | code.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        seen = Seen(process.pid, code, cold=process)
        self._colds.append(seen)
        return seen

    def kill(self, one: Seen) -> None:
        """SIGKILL; returns once it is dead, so that what is read then was not written by it later."""
        one.told = "killed"
        self._send(one, signal.SIGKILL)
        if not self.wait(lambda: one.status is not None, DIES_WITHIN_S):
            raise TimeoutError(f"{one} does not die")

    def stop(self, one: Seen, for_s: float) -> None:
        """SIGSTOP, until `wake_due` is called later than that."""
        one.wakes_at = time.monotonic() + for_s
        self._send(one, signal.SIGSTOP)

    def halt(self) -> None:
        """SIGSTOP to all that run, and returns once they stand still; `wake_due` with `all_of_them` lets them go on."""
        for one in self.all():
            self.stop(one, 60)
        while not all(_stands_still(one.pid) for one in self.all()):
            time.sleep(0.005)  # nobody tells of it

    def wake_due(self, *, all_of_them: bool = False) -> list[Seen]:
        """SIGCONT to those whose time has come."""
        due = [one for one in self.all() if one.wakes_at is not None and (all_of_them or time.monotonic() >= one.wakes_at)]
        for one in due:
            one.wakes_at = None
            self._send(one, signal.SIGCONT)
        return due

    def drain(self, one: Seen) -> None:
        """SIGTERM: it is to end by itself, soon."""
        one.told, one.told_at = "drained", time.monotonic()
        self._send(one, signal.SIGTERM)

    # ---- what is seen --------------------------------------------------------------------------------------------------------------
    def all(self) -> list[Seen]:
        """Those whose processes have not ended."""
        self._reap()
        with self._changed:
            return [*self._colds, *(child for zygote in self._zygotes.values() for child in zygote.children.values())]

    def living(self) -> list[Seen]:
        """The workers that nobody told to end."""
        return [one for one in self.all() if one.what != "person" and not one.told]

    def ended(self) -> list[Seen]:
        """Those that ended since this was last asked."""
        self._reap()
        with self._changed:
            gone, self._cold_ended = self._cold_ended, []
            for zygote in self._zygotes.values():
                gone += zygote.ended
                zygote.ended = []
        return gone

    def wait(self, until: Callable[[], bool], within_s: float) -> bool:
        """Waits for it; looks whenever something became of a process, and ten times a second. Returns whether it came true."""
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

    def _send(self, one: Seen, number: signal.Signals) -> None:
        if one.cold is not None:
            with suppress(ProcessLookupError):
                if one.cold.poll() is None:
                    os.kill(one.pid, number)
        else:
            self._zygotes[one.code].send(one, number)


def _stands_still(pid: int) -> bool:
    """Whether the system says so; where it has no /proc, it is taken to be quick."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZX"
    except OSError:
        return True
