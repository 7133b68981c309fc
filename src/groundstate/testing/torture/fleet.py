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


@dataclass(eq=False)
class Seen:
    """One process of the shop, as the judge knows it."""

    pid: int
    version: int
    what: str = "worker"  # or "person"
    since: float = field(default_factory=time.monotonic)
    told: str = ""  # what we did to it last: "killed", "drained"
    told_at: float = 0.0
    status: int | None = None
    wakes_at: float | None = None  # a stopped one: when it is let go on
    cold: subprocess.Popen[bytes] | None = None  # a whole interpreter of its own, and no zygote's child


class Zygote:
    """One zygote: the code of one version, and the children that were forked of it."""

    def __init__(self, version: int, environment: Mapping[str, str], log: Path, changed: threading.Condition) -> None:
        self.version = version
        self.children: dict[int, Seen] = {}
        self.ended: list[Seen] = []
        self.born: list[Seen] = []
        self._changed = changed
        self._wanted: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "groundstate.testing.torture.zygote", str(log)],
            env=dict(environment) | {"TORTURE_VERSION": str(version)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), name=f"zygote {version}", daemon=True)
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
                    self.children[pid] = Seen(pid, self.version, self._wanted.pop(0))
                    self.born.append(self.children[pid])
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
        self._zygotes: dict[int, Zygote] = {}
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
    def bear(self, version: int, what: str = "worker") -> Seen:
        """Forks one; returns once its process is there, long before it carries out."""
        zygote = self._zygotes.get(version)
        if zygote is None:
            zygote = self._zygotes[version] = Zygote(version, self._environment, self._log, self._changed)
        before = len(zygote.born)
        zygote.bear(what)
        if not self.wait(lambda: len(zygote.born) > before, BORN_WITHIN_S):
            raise TimeoutError("the zygote bears no child")
        return zygote.born[before]

    def bear_cold(self, version: int) -> Seen:
        """A whole interpreter, as a user would start it."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "groundstate.testing.torture.worker"],
                env=self._cold | {"TORTURE_VERSION": str(version)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        seen = Seen(process.pid, version, cold=process)
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
        return [one for one in self.all() if one.what == "worker" and not one.told]

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
            self._zygotes[one.version].send(one, number)
