"""Finds out how a user's own call reacts to a time-out, by a stand-in for its client and without the external service.

A call that takes a time-out for 'surely not done' is done twice; it passes the type checker, and works on every day without a time-out.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self, TypeGuard

from groundstate.app.validate_not_done import names_a_time_out
from groundstate.rules.specs import CallSpec

ROUNDS = 50  # iterations of the event loop; an async call that awaits longer does not wait for the stand-in
DEPTH = 4  # levels of containers and objects in which the key is looked for among the client's arguments

Fence = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class Ended:
    """How a call ended after a time-out: the exception that it raised, or what it returned."""

    met: str  # the name of the time-out's class
    raised: BaseException | None
    returned: Any = None


class _Enough(BaseException):
    """Raised where the call makes another request after the time-out, whose answer no stand-in can know."""


class StandIn:
    """A client that accepts any attribute and call, until a request carries the idempotency key: that request times out."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def __getattr__(self, name: str) -> Self:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *given: Any, **named: Any) -> Self:
        """Accept the call, or raise the time-out if it is the request."""
        self._request.is_made((given, named))
        return self

    def __getitem__(self, _key: object) -> Self:
        return self

    def __await__(self) -> Generator[None, None, Self]:
        yield from ()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...


class Request:
    """The one request of a call, which is recognised by its idempotency key and raises `error`."""

    def __init__(self, key: str, error: BaseException) -> None:
        self.timed_out = False
        self._key = key
        self.error = error

    def is_made(self, given: object) -> None:
        """Raise the error if these arguments carry the key."""
        if self.timed_out:
            raise _Enough
        if _carries(given, self._key, DEPTH):
            self.timed_out = True
            raise self.error


def taken_by(call: CallSpec, run: Callable[[Any], Any], key: str, fence: Fence) -> Iterator[Ended]:
    """Yield how the user's call ends after each time-out that it could meet: Python's own, and those named in its code.

    run: calls the user's function with this client.
    fence: a context in which nothing reaches external services.
    A call that takes no client or no key is not run, since it could not be tried without a real effect.
    """
    if {"client", "key"} <= set(call.function.wants.values()):
        kinds: list[type[Exception]] = [TimeoutError, *_named_in(call)]
        for kind in dict.fromkeys(kinds):
            request = Request(key, _made(kind))
            ended = _ended(call, run, request, fence)
            if request.timed_out and ended is not None:
                yield ended


def _named_in(call: CallSpec) -> list[type[Exception]]:
    """Return the time-out classes that the call's code names, directly or in a module."""
    function: Any = inspect.unwrap(call.function.call)
    code = getattr(function, "__code__", None)
    if code is None:
        return []
    known = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
    named = [known[name] for name in (*code.co_names, *code.co_freevars) if name in known]
    within = [getattr(module, name, None) for module in named if isinstance(module, ModuleType) for name in code.co_names]
    return list(filter(_is_late, [*named, *within]))


def _is_late(one: object) -> TypeGuard[type[Exception]]:
    """Return whether the object is the class of a time-out that can come after the request was sent."""
    return isinstance(one, type) and issubclass(one, Exception) and names_a_time_out(one.__name__)


def _made(kind: type[Exception]) -> Exception:
    with suppress(Exception):
        return kind()
    with suppress(Exception):
        return kind("the lab lets it time out")
    return kind.__new__(kind)


def _ended(call: CallSpec, run: Callable[[Any], Any], request: Request, fence: Fence) -> Ended | None:
    met = type(request.error).__name__
    try:
        if call.function.is_async:
            return Ended(met, None, asyncio.run(_in_a_loop(run, request, fence)))
        with fence(call.function.name):
            return Ended(met, None, run(StandIn(request)))
    except (_Enough, asyncio.CancelledError, AssertionError):  # the fence raises AssertionError where the call would reach a service
        return None
    except Exception as error:  # noqa: BLE001  # whatever the user's function raises is the result
        return Ended(met, error)


async def _in_a_loop(run: Callable[[Any], Any], request: Request, fence: Fence) -> Any:
    """Await the call for a limited number of iterations of the event loop, so only as long as it awaits the stand-in."""
    task = asyncio.ensure_future(run(StandIn(request)))
    with fence("the call"):
        for _ in range(ROUNDS):
            await asyncio.sleep(0)
            if task.done():
                return task.result()
    task.cancel()
    with suppress(BaseException):
        await task
    raise asyncio.CancelledError


def _carries(given: object, key: str, depth: int) -> bool:
    if isinstance(given, str):
        return key in given
    if isinstance(given, bytes):
        return key.encode() in given
    if depth == 0:
        return False
    if isinstance(given, Mapping):
        return any(_carries(one, key, depth - 1) for pair in given.items() for one in pair)
    if isinstance(given, list | tuple | set | frozenset):
        return any(_carries(one, key, depth - 1) for one in given)
    fields = getattr(given, "__dict__", None)
    return isinstance(fields, dict) and _carries(fields, key, depth - 1)
