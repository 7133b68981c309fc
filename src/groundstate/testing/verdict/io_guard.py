"""Watches user functions that run inside a transaction. Refuses actions outside of the database and, if strict, clocks and random numbers
other than those of the `ReactionContext`.

A profiler in the thread of the function sees what Python code calls: sockets (and every client that uses them), subprocesses and sleeping.
It does not see file access, queries of the database driver, or what a C library does by itself. Nothing is patched, and the profiler is
removed at the end.
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
# Packages that may use clocks and random numbers, since the values that these packages read never reach a row of the user.
_MAY_READ = {"logging", "sqlalchemy", "groundstate", *_DRIVERS}
_CURE = "a crash between it and the commit would repeat it: do it in a call (`@service.call`), and write the outcome in the handler"


class Guard:
    """Watches the functions of an app while they run. strict: whether clocks and random numbers are refused too, except through
    `ReactionContext`.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict

    @contextmanager
    def watch_block(self, reaction: str) -> Iterator[None]:
        """Watch this thread in the block. Raise Violation at a forbidden call, and again at the end if the block caught the Violation."""
        seen: list[Violation] = []

        def profile(frame: FrameType, event: str, called: Any) -> None:
            if event == "c_call" and not seen:
                wrong = self._find_violation(frame, called)
                if wrong is not None:
                    seen.append(Violation(wrong[0], f"{reaction} {wrong[1]}\n{_stack_from_user_function(frame)}"))
                    raise seen[0]

        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            yield
        finally:
            sys.setprofile(before)
            if seen:
                raise seen[0]

    def _find_violation(self, frame: FrameType, called: Any) -> tuple[str, str] | None:
        """Return a pair (name of the invariant that this call breaks, message); None for a harmless call."""
        name, owner, module = called.__name__, getattr(called, "__self__", None), _top_package(getattr(called, "__module__", None))
        if _acts_outside(name, owner, module):
            return (
                None
                if _is_called_by_driver(frame)
                else ("NothingOutside", f"calls {_qualified_name(called)} inside its transaction: {_CURE}. At:")
            )
        if self._strict and _top_package(frame.f_globals.get("__name__")) not in _MAY_READ:
            if (module == "time" and name in _CLOCKS) or (isinstance(owner, type) and issubclass(owner, date) and name in _TODAY):
                return (
                    "ContextAlone",
                    f"reads a clock by {_qualified_name(called)}, which no run repeats: take `ctx: ReactionContext` and use ctx.now. At:",
                )
            if owner is random._inst or name in ("urandom", "getrandom"):  # noqa: SLF001  # the generator behind the functions of the module `random`
                return (
                    "ContextAlone",
                    f"reads random numbers by {_qualified_name(called)}: draw them where the row is made. At:",
                )
        return None


_TODAY = {"now", "utcnow", "today"}


def _acts_outside(name: str, owner: object, module: str) -> bool:
    if isinstance(owner, _socket.socket) or owner is _socket:
        return name not in _HARMLESS
    return (module, name) in _WAITS or (module == "posix" and name in _PROCESSES) or (module, name) == ("_posixsubprocess", "fork_exec")


# These calls only inspect a socket or close it.
_HARMLESS = {"close", "detach", "fileno", "getsockname", "gettimeout", "getdefaulttimeout", "htons", "ntohs", "inet_aton", "inet_pton"}


def _is_called_by_driver(frame: FrameType | None) -> bool:
    """Return whether the database driver makes this call, to reach the database."""
    while frame is not None:
        if _top_package(frame.f_globals.get("__name__")) in _DRIVERS:
            return True
        frame = frame.f_back
    return False


def _top_package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _qualified_name(called: Any) -> str:
    owner = getattr(called, "__self__", None)
    named = owner if isinstance(owner, type) else type(owner)
    whose = called.__module__ or f"{named.__module__}.{named.__qualname__}"
    return f"{whose.removeprefix('_')}.{called.__name__}"


def _stack_from_user_function(frame: FrameType) -> str:
    """Return the stack from the user's own function to this frame, as text."""
    inner: list[str] = []
    at: FrameType | None = frame
    while at is not None and _top_package(at.f_globals.get("__name__")) != "groundstate":
        inner.insert(0, traceback.format_stack(at, limit=1)[0].rstrip())
        at = at.f_back
    return "\n".join(inner)
