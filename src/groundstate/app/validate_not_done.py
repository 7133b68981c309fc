"""Checks the `not_done` list of an external service. Refuses exception types that can mean a timeout or a broken connection."""

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


def check_not_done_list(not_done: Sequence[NotDoneWhen]) -> tuple[NotDoneWhen, ...]:
    """Return the list as a tuple. Raises DeclarationError for an exception type that does not prove that the service did not act."""
    if isinstance(not_done, (str, type)) or callable(not_done):
        raise DeclarationError(f"not_done={not_done!r}: give a list, also of a single one, as in not_done=[ConnectionRefusedError]")
    for one in not_done:
        if inspect.iscoroutinefunction(one):
            raise DeclarationError(f"not_done={one!r}: it is called where nothing can be awaited: make it a plain function")
        if isinstance(one, type) or not callable(one):
            _check_exception_type(one)
    return tuple(not_done)


def _check_exception_type(one: Any) -> None:
    if isinstance(one, str):
        module, _, name = one.rpartition(".")
        if not module or not all(part.isidentifier() for part in one.split(".")):
            raise DeclarationError(f"not_done={one!r}: write the exception's dotted path, such as 'httpx.ConnectError'")
        known = getattr(sys.modules.get(module), name, None)
        if known is None:
            if is_timeout_name(name) or name in ("Exception", "BaseException", "OSError", "IOError", "RequestException", "HTTPError"):
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
    for kind in _type_and_all_subclasses(one):
        if is_timeout_name(kind.__name__):
            raise DeclarationError(
                f"not_done={one.__name__} can be a {kind.__name__}, after which nobody knows whether it was done: {_CURE}"
            )


def _type_and_all_subclasses(one: type) -> Iterator[type]:
    yield one
    below: list[type] = type.__subclasses__(one)
    for kind in below:
        yield from _type_and_all_subclasses(kind)


def is_timeout_name(name: str) -> bool:
    """Whether an exception with this name means a timeout after which the service may have acted. It is False for a timeout of connecting,
    or of waiting for a pooled connection.
    """
    plain = name.lower()
    return ("timeout" in plain or "timedout" in plain) and not any(word in plain for word in ("connect", "pool"))
