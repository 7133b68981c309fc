"""Watches a function that runs inside a transaction: it refuses actions outside of the database and, if strict, clocks and random numbers
that do not come from the `ReactionContext`.

It sees what Python code calls, by the profiler of the thread that runs the function: sockets (and so every client built on Python's own),
subprocesses and sleeping. It does not see what a C library does by itself, files that are read, or queries of the database driver, which
bypass Python's sockets. It patches nothing, and removes the profiler at the end.
"""

from __future__ import annotations

import _socket
import random
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from types import FrameType
from typing import Any

from groundstate.testing.verdict.invariants import Violation

_WAITS = {("time", "sleep")}
_PROCESSES = {"system", "fork", "forkpty", "posix_spawn", "posix_spawnp", "execv", "execve", "startfile"}
_CLOCKS = {"time", "time_ns", "clock_gettime", "clock_gettime_ns"}
_DRIVERS = {"psycopg", "psycopg_binary", "psycopg_c", "sqlite3"}
# packages that may read clocks and random numbers, since their values go into no row of the user's
_MAY_READ = {"logging", "sqlalchemy", "groundstate", *_DRIVERS}
_CURE = "a crash after it and before the commit would do it again: let a call do that (`@service.call`), and the handler write its outcome"


class Guard:
    """Watches the functions of an app while they run. strict: refuses clocks and random numbers too, except through `ReactionContext`."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict

    @contextmanager
    def watching(self, reaction: str) -> Iterator[None]:
        """Watch this thread within the block. Raises Violation for a forbidden call, even if the code in the block swallowed it."""
        seen: list[Violation] = []

        def profile(frame: FrameType, event: str, called: Any) -> None:
            if event == "c_call" and not seen:
                wrong = self._wrong(frame, called)
                if wrong is not None:
                    seen.append(Violation(wrong[0], f"{reaction} {wrong[1]}\n{_stack(frame)}"))
                    raise seen[0]

        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            yield
        finally:
            sys.setprofile(before)
            if seen:
                raise seen[0]

    def _wrong(self, frame: FrameType, called: Any) -> tuple[str, str] | None:
        """Return the invariant that this call breaks and the message for it; return None for a harmless call."""
        name, owner, module = called.__name__, getattr(called, "__self__", None), _package(getattr(called, "__module__", None))
        if _reaches_out(name, owner, module):
            return None if _by_a_driver(frame) else ("NothingOutside", f"calls {_named(called)} inside its transaction: {_CURE}. It is at:")
        if self._strict and _package(frame.f_globals.get("__name__")) not in _MAY_READ:
            if (module == "time" and name in _CLOCKS) or (isinstance(owner, type) and issubclass(owner, date) and name in _TODAY):
                return (
                    "ContextAlone",
                    f"reads a clock by {_named(called)}, which no run can repeat: take `ctx: ReactionContext` and use ctx.now. It is at:",
                )
            if owner is random._inst or name in ("urandom", "getrandom"):  # noqa: SLF001  # the generator behind the functions of the module
                return "ContextAlone", f"throws dice by {_named(called)}, which no run can repeat: draw it where the row is made. It is at:"
        return None


_TODAY = {"now", "utcnow", "today"}


def _reaches_out(name: str, owner: object, module: str) -> bool:
    if isinstance(owner, _socket.socket) or owner is _socket:
        return name not in _HARMLESS
    return (module, name) in _WAITS or (module == "posix" and name in _PROCESSES) or (module, name) == ("_posixsubprocess", "fork_exec")


# Calls that only inspect a socket or close it.
_HARMLESS = {"close", "detach", "fileno", "getsockname", "gettimeout", "getdefaulttimeout", "htons", "ntohs", "inet_aton", "inet_pton"}


def _by_a_driver(frame: FrameType | None) -> bool:
    """Return whether the database driver makes the call, in order to reach the database."""
    while frame is not None:
        if _package(frame.f_globals.get("__name__")) in _DRIVERS:
            return True
        frame = frame.f_back
    return False


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _named(called: Any) -> str:
    owner = getattr(called, "__self__", None)
    named = owner if isinstance(owner, type) else type(owner)
    whose = called.__module__ or f"{named.__module__}.{named.__qualname__}"
    return f"{whose.removeprefix('_')}.{called.__name__}"


def _stack(frame: FrameType) -> str:
    """Return the stack from the user's own function to this frame."""
    inner: list[str] = []
    at: FrameType | None = frame
    while at is not None and _package(at.f_globals.get("__name__")) != "groundstate":
        inner.insert(0, traceback.format_stack(at, limit=1)[0].rstrip())
        at = at.f_back
    return "\n".join(inner)
