"""Checks the `not_done` list of an external service. Refuses exception types that can be a timeout or a broken connection."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from groundstate.rules.specs import NotDoneWhen
from groundstate.values.errors import DeclarationError

_BROKEN = (ConnectionError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)  # these can be raised after bytes were sent
_CURE = (
    "list only what surely means that nothing was sent, such as ConnectionRefusedError, not_done.HTTPX or not_done.SMTPLIB;"
    " whatever else a call raises is in doubt, and its policy settles it"
)


def checked(not_done: Sequence[NotDoneWhen]) -> tuple[NotDoneWhen, ...]:
    """Return the list as it was given. Raises DeclarationError for an exception type that does not tell whether something was sent."""
    if isinstance(not_done, (str, type)) or callable(not_done):
        raise DeclarationError(f"not_done={not_done!r}: give a list, not one alone")
    for one in not_done:
        if inspect.iscoroutinefunction(one):
            raise DeclarationError(f"not_done={one!r}: it is asked in the midst of a turn, and cannot be awaited: make it a plain function")
        if isinstance(one, type) or not callable(one):
            _check(one)
    return tuple(not_done)


def _check(one: Any) -> None:
    if isinstance(one, str):
        module, _, name = one.rpartition(".")
        if not module or not all(part.isidentifier() for part in one.split(".")):
            raise DeclarationError(f"not_done={one!r}: write the exception's dotted path, such as 'httpx.ConnectError'")
        known = getattr(sys.modules.get(module), name, None)
        if known is None:
            if names_a_time_out(name) or name in ("Exception", "BaseException", "OSError", "IOError", "RequestException", "HTTPError"):
                raise DeclarationError(f"not_done={one!r} can mean a time-out, after which nobody knows whether it was done: {_CURE}")
            return
        one = known
    if not isinstance(one, type) or not issubclass(one, BaseException):
        raise DeclarationError(f"not_done={one!r}: give exception types, dotted paths of such, or functions that are given an exception")
    if not issubclass(one, Exception):
        raise DeclarationError(f"not_done={one.__name__}: that is no Exception but what ends a program: {_CURE}")
    if issubclass(one, TimeoutError) or issubclass(TimeoutError, one):
        raise DeclarationError(f"not_done={one.__name__} can be a time-out, after which nobody knows whether it was done: {_CURE}")
    if one in _BROKEN:
        raise DeclarationError(f"not_done={one.__name__} can be a connection that broke after sending: {_CURE}")
    for kind in _kinds(one):
        if names_a_time_out(kind.__name__):
            raise DeclarationError(
                f"not_done={one.__name__} can be a {kind.__name__}, after which nobody knows whether it was done: {_CURE}"
            )


def _kinds(one: type) -> Iterator[type]:
    yield one
    below: list[type] = type.__subclasses__(one)
    for kind in below:
        yield from _kinds(kind)


def names_a_time_out(name: str) -> bool:
    """Whether an exception of this name is a timeout, but not one of connecting or of waiting for a pooled connection."""
    plain = name.lower()
    return ("timeout" in plain or "timedout" in plain) and not any(word in plain for word in ("connect", "pool"))
